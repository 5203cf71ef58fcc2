//! `waypost maintenance`: an instance, a service or the whole host is shown as draining until it is taken back.

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;
use waypost_catalog::ServiceName;

use super::{
    exit::Exit,
    instance,
    output::{self, Align, Paint, Table},
    source::{AgentOptions, told},
    values,
};
use crate::{
    api::types::{Maintenance as Upkeep, MaintenanceRequest, Registration, Status},
    client::{Client, Path},
};

#[derive(Debug, Subcommand)]
pub(super) enum Maintenance {
    /// No new requests for this host, a service of it, or an instance, until it is taken back
    On(On),
    /// Take it back from maintenance
    Off(Off),
    /// List what is in maintenance
    List(List),
}

/// What is put into maintenance.
#[derive(Clone, Debug, Args)]
pub(super) struct Scope {
    /// Only this service of the host [default: all of them]
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    service: Option<ServiceName>,
    /// Only this instance of the service
    #[arg(value_name = "INSTANCE", requires = "service", value_parser = values::segment)]
    instance: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct On {
    #[command(flatten)]
    scope: Scope,
    /// Why, for whoever wonders
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    agent: AgentOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Off {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    agent: AgentOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    agent: AgentOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is in maintenance.
#[derive(Debug, Serialize)]
struct Document {
    host: Option<Upkeep>,
    instances: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    service: String,
    instance: String,
    #[serde(flatten)]
    maintenance: Upkeep,
}

impl Maintenance {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::On(On { scope, reason, agent, json }) => {
                let client = agent.client();
                let targets = scope.targets(&client).await?;
                for target in &targets {
                    target.put(&client, &reason).await?;
                }
                report(&client, &targets, "in maintenance", json).await
            }
            Self::Off(Off { scope, agent, json }) => {
                let client = agent.client();
                let targets = scope.targets(&client).await?;
                for target in &targets {
                    client.delete(&target.path()).await.map_err(told)?;
                }
                report(&client, &targets, "taken back from maintenance", json).await
            }
            Self::List(List { agent, json }) => {
                let document = list(&agent.client()).await?;
                if json {
                    output::print_json(&document)?;
                } else {
                    output::print(&render(&document, Paint::stdout()))?;
                }
                Ok(())
            }
        }
    }
}

/// The host, or an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Host,
    Instance(String, String),
}

impl Item {
    fn path(&self) -> Path {
        match self {
            Self::Host => Path::of(&["maintenance"]),
            Self::Instance(service, instance) => Path::of(&["registrations", service, instance, "maintenance"]),
        }
    }

    /// Puts it into maintenance.
    pub(super) async fn put(&self, client: &Client, reason: &str) -> anyhow::Result<()> {
        let request = MaintenanceRequest { reason: reason.to_owned() };
        client.change(Method::PUT, &self.path(), Some(&request)).await.map_err(told)
    }

    /// It on the command line.
    pub(super) fn arguments(&self) -> String {
        match self {
            Self::Host => String::new(),
            Self::Instance(service, instance) => format!(" {service} {instance}"),
        }
    }

    /// Whether a registration is, or is a part of, what is meant.
    pub(super) fn includes(&self, registration: &Registration) -> bool {
        match self {
            Self::Host => true,
            Self::Instance(service, instance) => registration.service == *service && registration.instance == *instance,
        }
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("this host"),
            Self::Instance(service, instance) => write!(f, "{service}/{instance}"),
        }
    }
}

impl Scope {
    /// What is meant: all of a service's instances on this host, if none is named.
    pub(super) async fn targets(self, client: &Client) -> anyhow::Result<Vec<Item>> {
        match (self.service, self.instance) {
            (None, _) => Ok(vec![Item::Host]),
            (Some(service), Some(instance)) => Ok(vec![Item::Instance(service.to_string(), instance)]),
            (Some(service), None) => {
                let found = instance::of(client, Some(&service)).await?;
                if found.is_empty() {
                    return Err(Exit::not_there(format!("no instance of {service} is on this host")));
                }
                Ok(found.into_iter().map(|found| Item::Instance(found.service, found.instance)).collect())
            }
        }
    }
}

async fn report(client: &Client, items: &[Item], what: &str, json: bool) -> anyhow::Result<()> {
    if json {
        output::print_json(&list(client).await?)?;
        return Ok(());
    }
    let lines: String = items.iter().map(|item| format!("{item}: {what}\n")).collect();
    output::print(&lines)?;
    Ok(())
}

async fn list(client: &Client) -> anyhow::Result<Document> {
    let status: Status = client.get(&Path::of(&["status"])).await.map_err(told)?;
    let found = instance::of(client, None).await?;
    // Under the host's maintenance every instance shows that: nothing of its own can be told apart.
    let own = found.into_iter().filter(|registration| registration.maintenance != status.maintenance);
    let instances = own.filter_map(|Registration { service, instance, maintenance, .. }| {
        Some(Row { service, instance, maintenance: maintenance? })
    });
    Ok(Document { instances: instances.collect(), host: status.maintenance })
}

fn render(document: &Document, paint: Paint) -> String {
    let mut table = Table::headed(["WHAT", "INSTANCE", "SINCE", "REASON"].map(|name| (name, Align::Left)));
    if let Some(Upkeep { since, reason }) = &document.host {
        table.row(["this host".into(), "".into(), since.into(), reason.into()]);
    }
    for Row { service, instance, maintenance: Upkeep { since, reason } } in &document.instances {
        table.row([service.into(), instance.into(), since.into(), reason.into()]);
    }
    if document.host.is_none() && document.instances.is_empty() {
        return "nothing is in maintenance\n".to_owned();
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_comes_before_its_instances() {
        let upkeep = |reason: &str| Upkeep { reason: reason.into(), since: "2026-03-01T12:30:00Z".into() };
        let row = Row { service: "web".into(), instance: "host-a-80".into(), maintenance: upkeep("canary") };
        let document = Document { host: Some(upkeep("new disks")), instances: vec![row] };
        let expected = "\
WHAT       INSTANCE   SINCE                 REASON
this host             2026-03-01T12:30:00Z  new disks
web        host-a-80  2026-03-01T12:30:00Z  canary
";
        assert_eq!(render(&document, Paint::PLAIN), expected);
        let nothing = Document { host: None, instances: Vec::new() };
        assert_eq!(render(&nothing, Paint::PLAIN), "nothing is in maintenance\n");
    }
}
