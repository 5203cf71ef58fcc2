//! `waypost drain`: maintenance, and a wait until the process may be stopped.

use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use serde::Serialize;
use tokio::time::sleep;

use super::{
    instance,
    maintenance::{Item, Scope},
    output,
    poll::poll,
    signals::Signals,
    source::{AgentOptions, told},
    values,
};
use crate::{
    api::types::{AllNodes, Health, Node, Registration, RegistrationState},
    client::{Client, Path},
    config,
};

#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    scope: Scope,
    /// How long requests in flight get to end, from when etcd has it
    #[arg(long = "for", value_name = "DURATION", default_value = "5s", value_parser = values::duration)]
    linger: Duration,
    /// How long to wait for etcd to have it
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// Why, for whoever wonders
    #[arg(long, value_name = "TEXT", default_value = "drained before a stop")]
    reason: String,
    #[command(flatten)]
    agent: AgentOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    drained: Vec<Drained>,
    /// The processes may be stopped.
    may_be_stopped: bool,
}

#[derive(Debug, Serialize)]
struct Drained {
    service: String,
    instance: String,
}

impl Drain {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { scope, linger, timeout, reason, agent, json } = self;
        let mut signals = Signals::listen()?;
        let work = async {
            let client = agent.client();
            let items = scope.targets(&client).await?;
            for item in &items {
                item.put(&client, &reason).await?;
            }
            let drained = in_etcd(&client, &items, timeout).await?;
            if !json {
                let all: Vec<String> = drained.iter().map(|d| format!("{}/{}", d.service, d.instance)).collect();
                let (all, wait) = (all.join(", "), config::format_duration(linger));
                output::print(&format!("draining in etcd: {all}\nrequests in flight get {wait} to end\n"))?;
            }
            sleep(linger).await;
            if json {
                output::print_json(&Document { drained, may_be_stopped: true })?;
            } else {
                let line = |item: &Item| {
                    let name = item.arguments();
                    format!("{item} may be stopped now; take it back with: waypost maintenance off{name}\n")
                };
                output::print(&items.iter().map(line).collect::<String>())?;
            }
            Ok(())
        };
        tokio::select! {
            outcome = work => outcome,
            _ = signals.next() => bail!("stopped waiting; what was put into maintenance stays so"),
        }
    }
}

/// Waits until etcd shows everything that is meant as draining, or not at all.
async fn in_etcd(client: &Client, items: &[Item], timeout: Duration) -> anyhow::Result<Vec<Drained>> {
    let drained = poll(timeout, async || {
        let mut meant = instance::of(client, None).await?;
        meant.retain(|registration| items.iter().any(|item| item.includes(registration)));
        let mut waiting = Vec::new();
        for registration in &meant {
            if !is_out(registration, &mirrored(client, registration).await?) {
                waiting.push(waiting_for(registration));
            }
        }
        let drained = |r: Registration| Drained { service: r.service, instance: r.instance };
        Ok(if waiting.is_empty() { Ok(meant.into_iter().map(drained).collect()) } else { Err(waiting) })
    });
    drained.await?.map_err(|waiting: Vec<String>| {
        let (after, waiting) = (config::format_duration(timeout), waiting.join("; "));
        anyhow!("within {after} etcd did not show as draining: {waiting}. It stays in maintenance")
    })
}

/// The service's nodes, as the agent has read them back from etcd.
async fn mirrored(client: &Client, registration: &Registration) -> anyhow::Result<Vec<Node>> {
    let path = Path::of(&["nodes"]).with("service", Some(&registration.service));
    let nodes: AllNodes = client.get(&path).await.map_err(told)?;
    Ok(nodes.nodes.into_iter().map(|found| found.node).collect())
}

/// Whether nobody sends new requests there by what etcd says.
fn is_out(registration: &Registration, mirrored: &[Node]) -> bool {
    // Read back from etcd it counts more than what the agent means to write.
    let seen = mirrored.iter().find(|node| Some(node.address) == registration.address);
    let shown = registration.maintenance.is_some() && registration.health != Some(Health::Passing);
    match registration.state {
        RegistrationState::Registered => shown && seen.is_none_or(|node| node.health != Health::Passing),
        // Its format has no word for draining: its key is deleted.
        RegistrationState::Withdrawn | RegistrationState::Closed => true,
        // Its check has never decided: it has no key yet.
        RegistrationState::Pending => registration.address.is_none() || registration.health.is_none(),
        RegistrationState::Retrying | RegistrationState::Lost => false,
    }
}

fn waiting_for(registration: &Registration) -> String {
    let cause = registration.problem.as_deref().unwrap_or("not confirmed yet");
    format!("{}/{} ({}, {cause})", registration.service, registration.instance, registration.state.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Maintenance, Source};

    #[test]
    fn only_what_etcd_shows_as_draining_or_not_at_all_is_out() {
        let registration = |state, health, maintained: bool| Registration {
            service: "web".into(),
            instance: "a".into(),
            root: "/s/".into(),
            source: Source::Api,
            address: Some(([10, 0, 0, 1], 80).into()),
            health,
            state,
            problem: None,
            lease: None,
            check: None,
            maintenance: maintained.then(|| Maintenance { reason: String::new(), since: String::new() }),
            definition: None,
        };
        let (draining, passing) = (Some(Health::Draining), Some(Health::Passing));
        let out = |state, health, maintained| is_out(&registration(state, health, maintained), &[]);
        assert!(out(RegistrationState::Registered, draining, true));
        assert!(out(RegistrationState::Registered, Some(Health::Critical), true));
        assert!(out(RegistrationState::Withdrawn, draining, true));
        assert!(out(RegistrationState::Pending, None, true));
        assert!(!out(RegistrationState::Pending, draining, true), "on its way to etcd");
        assert!(!out(RegistrationState::Registered, passing, true));
        assert!(!out(RegistrationState::Registered, draining, false));
        assert!(!out(RegistrationState::Retrying, draining, true));

        let meant = registration(RegistrationState::Registered, draining, true);
        let old = Node::from(&waypost_catalog::Node::at(([10, 0, 0, 1], 80).into()));
        let new = Node { health: Health::Draining, ..old.clone() };
        assert!(!is_out(&meant, &[old]), "etcd still has the value before");
        assert!(is_out(&meant, &[new]));
    }
}
