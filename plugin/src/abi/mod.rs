//! The module's edge: the host's functions behind our traits, and the callbacks that Envoy enters.
//!
//! There are two ways in. The finished module exports only what `exports.txt` or `exports-lean.txt` lists: requests come
//! straight to [`waypost_on_request_headers`], and no context is made for them. The module as the compiler leaves it
//! works too, by the SDK's table of contexts, at several entries per request. Both end in the same functions.
#![allow(unsafe_code)] // Exports, imports, and memory that the host hands over: what an ABI is made of.

use std::{cell::RefCell, time::Duration};

use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, BufferType, ContextType, LogLevel, MetricType},
};
use waypost_catalog::wire::limits;

use crate::{
    counters::Counter,
    filter::{Filter, Verdict},
    host::{Host, Level, SharedData},
    stream::TICK,
};

mod host_bytes;
mod imports;
mod request;

use self::{
    host_bytes::HostBytes,
    request::{HttpEnd, HttpRequest, HttpResponse},
};

const SERVICE: &str = "waypost.catalog.v1.CatalogService";
const METHOD: &str = "Stream";

struct Vm {
    filter: Option<Filter>,
    /// Envoy's numbers for our counters, in the order of [`Counter::ALL`].
    metrics: Vec<u32>,
    /// Root contexts that the SDK was told of.
    roots: Vec<u32>,
    /// The one that opened the stream. Envoy keeps streams for each, and each has its own tick.
    stream_root: u32,
}

thread_local! {
    static VM: RefCell<Vm> =
        const { RefCell::new(Vm { filter: None, metrics: Vec::new(), roots: Vec::new(), stream_root: 0 }) };
}

/// The filter together with the host as a root context sees it, if the VM is configured. A callback within a callback,
/// which Envoy does not make, would find it taken and do nothing.
fn with_filter(root: u32, act: impl FnOnce(&mut Filter, &mut Envoy<'_>)) {
    VM.with(|vm| {
        if let Ok(mut vm) = vm.try_borrow_mut() {
            let Vm { filter, metrics, stream_root, .. } = &mut *vm;
            if let Some(filter) = filter {
                act(filter, &mut Envoy { metrics, root, stream_root });
            }
        }
    });
}

fn configure(root: u32, configuration: &[u8]) -> bool {
    VM.with(|vm| {
        let Ok(mut vm) = vm.try_borrow_mut() else { return false };
        let Vm { filter, metrics, stream_root, .. } = &mut *vm;
        if metrics.is_empty() {
            let define = |counter: Counter| hostcalls::define_metric(MetricType::Counter, counter.name()).ok();
            metrics.extend(Counter::ALL.into_iter().filter_map(define));
        }
        let mut host = Envoy { metrics, root, stream_root };
        let accepted = match filter {
            Some(filter) => filter.join(configuration),
            None => {
                Filter::start(&mut host, configuration, !cfg!(feature = "lean")).map(|started| *filter = Some(started))
            }
        };
        if let Err(error) = &accepted {
            host.log(Level::Error, &error.to_string());
        }
        accepted.is_ok()
    })
}

/// A clock that never goes back.
fn now() -> Duration {
    const MONOTONIC: u32 = 1;
    let mut nanos = 0;
    // SAFETY: the host writes eight bytes to where we say. It knows this clock; were it not so, time would stand still,
    // and the catalog last read would be used for ever.
    unsafe { imports::clock_time_get(MONOTONIC, 0, &raw mut nanos) };
    Duration::from_nanos(nanos)
}

fn on_request(context: u32) -> Action {
    #[cfg(feature = "trap-for-test")]
    if crate::host::Request::header(&mut HttpRequest, "x-waypost-trap").is_some() {
        core::arch::wasm32::unreachable();
    }
    let mut verdict = Verdict::Continue;
    with_filter(0, |filter, _| verdict = filter.on_request(&mut HttpRequest, context));
    match verdict {
        Verdict::Continue => Action::Continue,
        Verdict::Answered => Action::Pause,
    }
}

#[unsafe(no_mangle)]
extern "C" fn waypost_on_request_headers(context: u32, _headers: usize, _end_of_stream: bool) -> u32 {
    on_request(context) as u32
}

#[unsafe(no_mangle)]
extern "C" fn waypost_on_response_headers(context: u32, _headers: usize, _end_of_stream: bool) -> u32 {
    with_filter(0, |filter, _| filter.on_response(&mut HttpResponse, context));
    Action::Continue as u32
}

#[unsafe(no_mangle)]
extern "C" fn waypost_on_log(context: u32) {
    with_filter(0, |filter, _| filter.on_end(&mut HttpEnd, context));
}

/// Makes up for the announcement of the root context, which in the finished module does not come.
#[unsafe(no_mangle)]
extern "C" fn waypost_on_vm_start(root: u32, configuration_size: usize) -> bool {
    unsafe extern "C" {
        // The SDK's, in this module.
        fn proxy_on_context_create(context: u32, root: u32);
        fn proxy_on_vm_start(root: u32, configuration_size: usize) -> bool;
    }
    let new = VM.with(|vm| {
        vm.try_borrow_mut().is_ok_and(|mut vm| {
            let new = !vm.roots.contains(&root);
            if new {
                vm.roots.push(root);
            }
            new
        })
    });
    // SAFETY: plain functions of the SDK. It panics on a context that it knows already, hence the check.
    unsafe {
        if new {
            proxy_on_context_create(root, 0);
        }
        proxy_on_vm_start(root, configuration_size)
    }
}

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Warn);
    proxy_wasm::set_root_context(|id| Box::new(Root { id }));
}}

struct Root {
    id: u32,
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        let message = if size <= limits::MESSAGE_BYTES {
            // No buffer is an empty message.
            Some(hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size).ok().flatten().unwrap_or_default())
        } else {
            None
        };
        with_filter(self.id, |filter, host| filter.on_message(host, stream, message.as_deref()));
    }

    fn on_grpc_stream_close(&mut self, stream: u32, status: u32) {
        with_filter(self.id, |filter, host| filter.on_close(host, stream, status));
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let bytes = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size).ok().flatten();
        configure(self.id, &bytes.unwrap_or_default()) && hostcalls::set_tick_period(TICK).is_ok()
    }

    fn on_tick(&mut self) {
        with_filter(self.id, |filter, host| filter.on_tick(host));
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http { context }))
    }
}

/// A request that came by the SDK.
struct Http {
    context: u32,
}

impl Context for Http {}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        on_request(self.context)
    }

    fn on_http_response_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        with_filter(0, |filter, _| filter.on_response(&mut HttpResponse, self.context));
        Action::Continue
    }

    fn on_log(&mut self) {
        with_filter(0, |filter, _| filter.on_end(&mut HttpEnd, self.context));
    }
}

struct Envoy<'a> {
    metrics: &'a [u32],
    /// The root context that Envoy has called.
    root: u32,
    stream_root: &'a mut u32,
}

impl SharedData for Envoy<'_> {
    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        match hostcalls::get_shared_data(key) {
            // What is empty comes without bytes, but with the number of its version.
            Ok((value, version)) => value.or(version.map(|_| Vec::new())),
            Err(_) => None,
        }
    }

    fn set(&mut self, key: &str, value: &[u8]) {
        // Fails only where a version is asked for, and none is.
        let _ = hostcalls::set_shared_data(key, Some(value), None);
    }
}

impl Host for Envoy<'_> {
    fn log(&mut self, level: Level, message: &str) {
        let level = match level {
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        };
        let _ = hostcalls::log(level, message);
    }

    fn now(&mut self) -> Duration {
        now()
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the host writes as many bytes as we say to where we say.
        unsafe { imports::random_get(bytes.as_mut_ptr(), bytes.len()) };
        u64::from_le_bytes(bytes)
    }

    fn node(&mut self) -> Option<String> {
        let node = hostcalls::get_property(vec!["xds", "node", "id"]).ok().flatten()?;
        String::from_utf8(node).ok()
    }

    fn count(&mut self, counter: Counter, by: u64) {
        if let Some(metric) = self.metrics.get(counter as usize) {
            let _ = hostcalls::increment_metric(*metric, by as i64);
        }
    }

    fn open_stream(&mut self, target: &str) -> Option<u32> {
        let stream = hostcalls::open_grpc_stream(target, SERVICE, METHOD, Vec::new()).ok()?;
        *self.stream_root = self.root;
        Some(stream)
    }

    fn enter_stream(&mut self) -> bool {
        // Holds until we return to Envoy. It knows no root context any more whose listener is gone.
        *self.stream_root == self.root || hostcalls::set_effective_context(*self.stream_root).is_ok()
    }

    fn send(&mut self, stream: u32, message: &[u8]) {
        let _ = hostcalls::send_grpc_stream_message(stream, Some(message), false);
    }

    fn stream_status(&mut self) -> String {
        let mut message = HostBytes::default();
        let mut code = 0;
        // SAFETY: the host writes to three places that live as long as the call; see `HostBytes` for what comes back.
        let status = unsafe { imports::proxy_get_status(&raw mut code, &raw mut message.data, &raw mut message.size) };
        String::from_utf8_lossy(&message.take(status).unwrap_or_default()).into_owned()
    }

    fn close_stream(&mut self, stream: u32) {
        let _ = hostcalls::close_grpc_stream(stream);
    }

    fn cancel_stream(&mut self, stream: u32) {
        let _ = hostcalls::cancel_grpc_stream(stream);
    }
}
