//! A registration straight in etcd, kept for as long as this process runs.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Map, Value};
use waypost_catalog::{Health, ServiceName};
use waypost_registry::{
    Connector, IfHeld, Registrar, RegistrarOptions, Registration, RegistrationHandle, RegistrationState, Shutdown,
    format::{Timestamps, rfc3339},
};

use crate::{
    cli::{
        output::{
            self, Paint, Reader, Tone,
            text::{clock, printable},
        },
        signals::Signals,
        values,
    },
    config::{self, Service, service_from_json},
};

/// For etcd to have what is shown before the end.
const PARTING: Duration = Duration::from_secs(3);

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Straight at etcd")]
pub(super) struct Options {
    /// What to do if somebody else holds the key [default: wait]
    #[arg(long, value_enum, value_name = "CHOICE")]
    if_held: Option<Choice>,
    /// How long it is shown as draining before it is deregistered [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    drain: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Choice {
    /// Wait until it is let go
    #[default]
    Wait,
    /// Fail
    Fail,
    /// Take it
    Overwrite,
}

impl Options {
    pub(super) fn is_given(&self) -> bool {
        self.if_held.is_some() || self.drain.is_some()
    }
}

pub(super) async fn run(
    connector: Connector,
    name: &ServiceName,
    definition: Map<String, Value>,
    options: &Options,
    json: bool,
) -> anyhow::Result<()> {
    let service = service_from_json(&definition, &config::host_name()).map_err(|wrong| {
        let wrong: Vec<String> =
            wrong.iter().map(|wrong| format!("{}: {}", wrong.path.join("."), wrong.message)).collect();
        anyhow!("{name} cannot be registered so: {}", wrong.join("; "))
    })?;
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let ip = service.address.resolve(None).context("no address for it")?;
    let address = SocketAddr::new(ip, service.port);
    let registered_at = SystemTime::now();
    let encode = |health| {
        let times = Timestamps { registered_at, updated_at: SystemTime::now() };
        service.format.encode(&service.root, &service.name, &service.instance, &service.node_at(address, health), times)
    };
    let (key, value) = encode(Health::Passing)?;
    let if_held = match options.if_held.unwrap_or_default() {
        Choice::Wait => IfHeld::Wait,
        Choice::Fail => IfHeld::Fail,
        Choice::Overwrite => IfHeld::Overwrite,
    };
    let registrar = Registrar::start(connector, RegistrarOptions { ttl: service.ttl, adopt: None });
    let handle = registrar.register(Registration::new(key.clone(), value).if_held(if_held));
    let teller = Teller { service: &service, key: &key, address, json, paint: Paint::stdout() };
    let ended = teller.tell_until_signal(&handle, &mut signals).await;

    let drain = options.drain.unwrap_or_default();
    if ended.is_ok() && !drain.is_zero() && service.format.carries_health() {
        handle.update(encode(Health::Draining)?.1);
        // Whether etcd has it or not: the time to drain runs, and a second signal ends it.
        tokio::select! {
            () = async {
                let _ = tokio::time::timeout(PARTING, handle.settled()).await;
                tokio::time::sleep(drain).await;
            } => {}
            _ = signals.next() => {}
        }
    }
    let gone = match &ended {
        Ok(()) => handle.deregister().await,
        Err(_) => Ok(()),
    };
    registrar.shutdown(Shutdown::Deregister).await;
    ended?;
    gone?;
    teller.tell("deregistered", None)?;
    Ok(())
}

/// Says how the registration stands.
struct Teller<'a> {
    service: &'a Service,
    key: &'a str,
    address: SocketAddr,
    json: bool,
    paint: Paint,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    state: &'a str,
    service: &'a str,
    instance: &'a str,
    address: SocketAddr,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
}

impl Teller<'_> {
    /// Tells of each state, until a signal says to end.
    async fn tell_until_signal(&self, handle: &RegistrationHandle, signals: &mut Signals) -> anyhow::Result<()> {
        let mut states = handle.state();
        loop {
            let state = states.borrow_and_update().clone();
            self.tell(state.name(), state.cause())?;
            if let RegistrationState::Failed { cause } = state {
                bail!("{cause}");
            }
            tokio::select! {
                _ = signals.next() => return Ok(()),
                changed = states.changed() => changed.context("the registration is not looked after any more")?,
            }
        }
    }

    /// What is told when nobody reads is not told: the registration goes on.
    fn tell(&self, state: &str, cause: Option<&str>) -> anyhow::Result<Reader> {
        let (now, Self { service, key, address, .. }) = (SystemTime::now(), self);
        if self.json {
            let (time, instance) = (rfc3339(now), &service.instance);
            let line = Line { time, state, service: &service.name, instance, address: *address, key, cause };
            return output::print_json(&line);
        }
        let tone = match state {
            "registered" => Tone::Good,
            "retrying" | "lost" | "failed" => Tone::Bad,
            _ => Tone::Plain,
        };
        let (time, state) =
            (self.paint.paint(Tone::Faint, &clock(now)), self.paint.paint(tone, &format!("{state:12}")));
        let cause = cause.map(|cause| format!(": {}", printable(cause))).unwrap_or_default();
        output::print(&format!("{time}  {state}  {address}  {key}{cause}\n"))
    }
}
