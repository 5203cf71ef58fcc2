//! `waypost update` and `waypost deregister`: with the agent, or a key straight in etcd.

mod key;

use std::time::{Duration, SystemTime};

use clap::Args;
use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use waypost_registry::format::Timestamps;

use super::{
    definition::{Checked, Fields, nothing_given},
    exit::Exit,
    instance::InstanceOptions,
    output,
    source::{Source, SourceOptions, told},
    values,
};
use crate::{
    api::types::Registration,
    client::{Client, Path},
    config,
};

#[derive(Debug, Args)]
pub(super) struct Update {
    #[command(flatten)]
    which: InstanceOptions,
    #[command(flatten)]
    fields: Fields,
    #[command(flatten)]
    checked: Checked,
    /// Also if the key lives by a lease: its owner may write its own value again
    #[arg(long, help_heading = "Straight at etcd")]
    force: bool,
    #[command(flatten)]
    source: SourceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Deregister {
    #[command(flatten)]
    which: InstanceOptions,
    /// How long it is shown as draining first [default: as the agent is configured]
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = "With an agent")]
    drain: Option<Duration>,
    /// Also if the key lives by a lease: its owner may write it again
    #[arg(long, help_heading = "Straight at etcd")]
    force: bool,
    #[command(flatten)]
    source: SourceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was done to a key.
#[derive(Debug, Serialize)]
struct Done<'a> {
    service: &'a str,
    instance: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    state: &'a str,
}

fn tell(done: &Done<'_>, json: bool) -> anyhow::Result<()> {
    if json {
        output::print_json(done)?;
    } else {
        output::print(&format!("{}/{}: {}\n", done.service, done.instance, done.state))?;
    }
    Ok(())
}

const AGENT_ALONE: &str = "--force is for --etcd: the agent owns what is registered with it";

impl Update {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.source.source()? {
            Source::Agent(_) if self.force => Err(Exit::usage(AGENT_ALONE)),
            Source::Agent(client) => self.with_agent(&client).await,
            Source::Etcd(straight) => {
                if !self.checked.under(Default::default())?.is_empty() {
                    return Err(Exit::usage("--check and --from need an agent"));
                }
                if self.fields.is_empty() {
                    return Err(nothing_given());
                }
                let found = key::find(&straight, &self.which).await?;
                found.may_be_touched(self.force)?;
                let now = SystemTime::now();
                let times = Timestamps { registered_at: now, updated_at: now };
                let value = found.rewritten(&straight.layout, &self.fields, times)?;
                found.put(&straight, value).await?;
                let (service, instance) = (found.service.as_str(), found.node.id.as_str());
                tell(&Done { service, instance, key: Some(&found.entry.key), state: "updated" }, self.json)
            }
        }
    }

    async fn with_agent(self, client: &Client) -> anyhow::Result<()> {
        let patch = self.checked.under(self.fields.to_json())?;
        if patch.is_empty() {
            return Err(nothing_given());
        }
        let (service, instance) = self.which.resolve(client).await?;
        let path = Path::of(&["registrations", &service, &instance]);
        let now: Registration =
            client.change_read(Method::PATCH, &path, Some(&Value::from(patch))).await.map_err(told)?;
        if self.json {
            output::print_json(&now)?;
            return Ok(());
        }
        tell(&Done { service: &service, instance: &instance, key: None, state: "updated" }, false)
    }
}

impl Deregister {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.source.source()? {
            Source::Agent(_) if self.force => Err(Exit::usage(AGENT_ALONE)),
            Source::Agent(client) => {
                let (service, instance) = self.which.resolve(&client).await?;
                let drain = self.drain.map(config::format_duration);
                let path = Path::of(&["registrations", &service, &instance]).with("drain", drain.as_deref());
                let gone = client.delete(&path).await.map_err(told)?;
                let state = if gone { "deregistered" } else { "draining, and then deregistered" };
                tell(&Done { service: &service, instance: &instance, key: None, state }, self.json)
            }
            Source::Etcd(_) if self.drain.is_some() => {
                Err(Exit::usage("--drain needs an agent, which shows the service as draining"))
            }
            Source::Etcd(straight) => {
                let found = key::find(&straight, &self.which).await?;
                found.may_be_touched(self.force)?;
                found.delete(&straight).await?;
                let (service, instance) = (found.service.as_str(), found.node.id.as_str());
                tell(&Done { service, instance, key: Some(&found.entry.key), state: "deregistered" }, self.json)
            }
        }
    }
}
