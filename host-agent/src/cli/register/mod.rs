//! `waypost register`: with the agent, which keeps it registered; or straight at etcd, for as long as this runs.

mod foreground;

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;
use clap::Args;
use hyper::Method;
use serde_json::{Map, Value};
use waypost_catalog::ServiceName;
use waypost_registry::Format;

use super::{
    definition::{Checked, Fields, at},
    exit::Exit,
    output,
    poll::poll,
    source::{Target, TargetOptions, told},
    values,
};
use crate::{
    api::types::{Registration, RegistrationState, Status},
    client::{Client, Path},
    config,
};

#[derive(Debug, Args)]
pub(super) struct Register {
    /// The service
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    service: ServiceName,
    /// The port it listens on
    #[arg(long, value_name = "PORT", required_unless_present = "from")]
    port: Option<u16>,
    /// Name of the instance [default: the host's name and the port]
    #[arg(long, value_name = "NAME", value_parser = values::segment)]
    instance: Option<String>,
    /// auto, an IP address, interface:NAME or cidr:NETWORK [default: auto]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    #[command(flatten)]
    fields: Fields,
    /// What it speaks: http1 or http2 [default: http1]
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// How it is written to etcd [default: waypost]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// The prefix that it is written under [default: the format's]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// How long it outlasts whoever keeps it registered [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    ttl: Option<Duration>,
    #[command(flatten)]
    checked: Checked,
    /// How long to wait for etcd to have it [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = "With an agent")]
    wait: Option<Duration>,
    #[command(flatten)]
    foreground: foreground::Options,
    #[command(flatten)]
    target: TargetOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Register {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let definition = self.checked.under(self.given())?;
        match self.target.target()? {
            Target::Agent(_) if self.foreground.is_given() => {
                Err(Exit::usage("--if-held and --drain are for --etcd: the agent keeps what is registered with it"))
            }
            Target::Agent(client) => self.with_agent(&client, definition).await,
            Target::Etcd(_) if self.checked.check_is_given() || definition.contains_key("check") => {
                Err(Exit::usage("nobody checks what is registered straight at etcd: register it with an agent"))
            }
            Target::Etcd(_) if self.wait.is_some() => {
                Err(Exit::usage("--wait is for agents: see its lines with --etcd"))
            }
            Target::Etcd(connector) => {
                foreground::run(connector, &self.service, definition, &self.foreground, self.json).await
            }
        }
    }

    /// What the command line says of it.
    fn given(&self) -> Map<String, Value> {
        let mut object = self.fields.to_json();
        let text = |text: &Option<String>| text.clone().map(Value::from);
        let more = [
            ("name", Some(self.service.as_str().into())),
            ("port", self.port.map(Value::from)),
            ("instance", text(&self.instance)),
            ("address", text(&self.address)),
            ("protocol", text(&self.protocol)),
            ("format", self.format.map(|format| format.as_str().into())),
            ("root", text(&self.prefix)),
            ("ttl", self.ttl.map(|ttl| config::format_duration(ttl).into())),
        ];
        object.extend(more.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        object
    }

    async fn with_agent(&self, client: &Client, definition: Map<String, Value>) -> anyhow::Result<()> {
        let instance = match definition.get("instance").and_then(Value::as_str) {
            Some(instance) => instance.to_owned(),
            None => {
                let status: Status = client.get(&Path::of(&["status"])).await.map_err(told)?;
                let port = definition.get("port").map(Value::to_string).unwrap_or_default();
                format!("{}-{port}", status.node)
            }
        };
        let path = Path::of(&["registrations", &self.service, &instance]);
        let _: Registration = client.change_read(Method::PUT, &path, Some(&definition)).await.map_err(told)?;

        let wait = self.wait.unwrap_or(Duration::from_secs(10));
        let settled = poll(wait, async || {
            let now: Registration = client.get(&path).await.map_err(told)?;
            Ok(if now.state == RegistrationState::Registered && now.health.is_some() { Ok(now) } else { Err(now) })
        });
        match settled.await? {
            Ok(now) => registered(&now, self.json),
            Err(now) => {
                let wait = config::format_duration(wait);
                let cause = now.problem.as_deref().unwrap_or("its check has not decided, or etcd has not confirmed it");
                bail!(
                    "the agent keeps {}/{}, but within {wait} etcd did not have it ({}): {cause}",
                    now.service,
                    now.instance,
                    now.state.as_str()
                )
            }
        }
    }
}

fn registered(now: &Registration, json: bool) -> anyhow::Result<()> {
    if json {
        output::print_json(now)?;
        return Ok(());
    }
    let health = now.health.map_or("undecided", crate::api::types::Health::as_str);
    let address: Option<SocketAddr> = now.address;
    output::print(&format!("{}/{}: registered at {}, {health}\n", now.service, now.instance, at(address)))?;
    Ok(())
}
