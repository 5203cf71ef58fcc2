//! A request as Envoy shows it at each of its callbacks. By the imports themselves: the SDK would build a property's path
//! anew for each request, and panic on any status that it does not expect.

use std::time::Duration;

use proxy_wasm::{hostcalls, types::MapType};

use super::{host_bytes::HostBytes, imports};
use crate::host::{Ended, Request, Response};

/// The request whose headers Envoy has just handed over.
pub struct HttpRequest;

/// The answer whose headers Envoy has just handed over.
pub struct HttpResponse;

/// The request that Envoy has done with.
pub struct HttpEnd;

impl Request for HttpRequest {
    fn cluster(&mut self) -> Option<Vec<u8>> {
        property(b"xds\0cluster_name")
    }

    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        let mut value = HostBytes::default();
        // SAFETY: the name lives as long as the call; see `HostBytes` for what comes back.
        let status = unsafe {
            let (data, size) = (&raw mut value.data, &raw mut value.size);
            imports::proxy_get_header_map_value(MapType::HttpRequestHeaders, name.as_ptr(), name.len(), data, size)
        };
        value.take(status)
    }

    fn source(&mut self) -> Option<Vec<u8>> {
        property(b"source\0address")
    }

    fn set_header(&mut self, name: &str, value: &str) {
        let (key, key_size) = (name.as_ptr(), name.len());
        // SAFETY: name and value live as long as the call.
        unsafe {
            let map = MapType::HttpRequestHeaders;
            imports::proxy_replace_header_map_value(map, key, key_size, value.as_ptr(), value.len());
        }
    }

    fn remove_header(&mut self, name: &str) {
        // SAFETY: the name lives as long as the call.
        unsafe {
            imports::proxy_remove_header_map_value(MapType::HttpRequestHeaders, name.as_ptr(), name.len());
        }
    }

    fn set_filter_state(&mut self, arguments: &[u8]) {
        let _ = hostcalls::call_foreign_function("set_envoy_filter_state", Some(arguments));
    }

    fn answer(&mut self, status: u32, text: &str) {
        // One pair: how many, the lengths of name and value, then both, each with a zero behind it.
        const HEADERS: &[u8] = b"\x01\0\0\0\x0c\0\0\0\x0a\0\0\0content-type\0text/plain\0";
        const DETAILS: &str = "waypost";
        // SAFETY: everything lives as long as the call.
        unsafe {
            imports::proxy_send_local_response(
                status,
                DETAILS.as_ptr(),
                DETAILS.len(),
                text.as_ptr(),
                text.len(),
                HEADERS.as_ptr(),
                HEADERS.len(),
                -1,
            );
        }
    }
}

impl Response for HttpResponse {
    fn add_header(&mut self, name: &str, value: &str) {
        let (key, key_size) = (name.as_ptr(), name.len());
        // SAFETY: name and value live as long as the call.
        unsafe {
            let map = MapType::HttpResponseHeaders;
            imports::proxy_add_header_map_value(map, key, key_size, value.as_ptr(), value.len());
        }
    }
}

impl Ended for HttpEnd {
    fn status(&mut self) -> u32 {
        number(b"response\0code").and_then(|code| u32::try_from(code).ok()).unwrap_or_default()
    }

    fn flags(&mut self) -> u64 {
        number(b"response\0flags").unwrap_or_default()
    }

    fn tries(&mut self) -> u64 {
        number(b"upstream\0request_attempt_count").unwrap_or_default()
    }

    fn latency(&mut self) -> Option<Duration> {
        number(b"response\0backend_latency").map(Duration::from_nanos)
    }

    fn now(&mut self) -> Duration {
        super::now()
    }
}

fn property(path: &[u8]) -> Option<Vec<u8>> {
    let mut value = HostBytes::default();
    // SAFETY: the path lives as long as the call; see `HostBytes` for what comes back.
    let status =
        unsafe { imports::proxy_get_property(path.as_ptr(), path.len(), &raw mut value.data, &raw mut value.size) };
    value.take(status)
}

/// A number or a duration: eight bytes, or nothing where Envoy knows none.
fn number(path: &[u8]) -> Option<u64> {
    property(path).and_then(|bytes| bytes.as_slice().try_into().ok()).map(u64::from_le_bytes)
}
