//! `waypost watch`: what changes, as it changes.

mod difference;
mod lines;

use std::{collections::BTreeMap, time::SystemTime};

use clap::Args;
use serde::Serialize;
use waypost_catalog::ServiceName;
use waypost_registry::{NodeEvent, Nodes, format::rfc3339};

use self::lines::Lines;
use super::{
    follow::{Following, News, tell_all},
    output::{self, Paint, Reader},
    source::{Source, SourceOptions},
    values,
};
use crate::{
    api::types::{CatalogEvent, Node, NodeAdded, NodeChanged, NodeRemoved, Resynchronised},
    client::Path,
};

/// The events of `GET /v1/events`.
const NAMES: &[&str] = &["added", "changed", "removed", "resynchronised"];

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Only this service
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    service: Option<ServiceName>,
    #[command(flatten)]
    source: SourceOptions,
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { service, source, json } = self;
        let mut lines = Lines::new(Paint::stdout());
        let tell = |news: News<CatalogEvent>| match (news, json) {
            (News::Event(event), true) => output::print_json(&Line::new(SystemTime::now(), &event)),
            (News::Event(event), false) => output::print(&lines.tell(SystemTime::now(), event)),
            (News::Interrupted(cause), true) => Ok(interrupted(&cause)),
            (News::Interrupted(cause), false) => output::print(&lines.interrupted(SystemTime::now(), &cause)),
        };
        match source.source()? {
            Source::Agent(client) => {
                let path = Path::of(&["events"]).with("service", service.as_deref());
                tell_all(client.events(path, NAMES), tell).await
            }
            Source::Etcd(straight) => {
                let discovery = straight.discovery().await?;
                let read = move |event| read(event, service.as_ref()).into_iter().collect();
                tell_all(Following::new(discovery.subscribe(), discovery.status(), read), tell).await
            }
        }
    }
}

/// Says on stderr what is no event.
pub(super) fn interrupted(cause: &str) -> Reader {
    eprintln!("waypost: interrupted: {cause}");
    Reader::Listens
}

/// A line of JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: Flat<'a>,
}

/// An event with its parts beside its name.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Flat<'a> {
    Added(&'a NodeAdded),
    Changed(&'a NodeChanged),
    Removed(&'a NodeRemoved),
    Resynchronised { services: &'a BTreeMap<String, Vec<Node>> },
}

impl<'a> Line<'a> {
    fn new(time: SystemTime, event: &'a CatalogEvent) -> Self {
        let event = match event {
            CatalogEvent::Added(added) => Flat::Added(added),
            CatalogEvent::Changed(changed) => Flat::Changed(changed),
            CatalogEvent::Removed(removed) => Flat::Removed(removed),
            CatalogEvent::Resynchronised(all) => Flat::Resynchronised { services: &all.services },
        };
        Self { time: rfc3339(time), event }
    }
}

/// What happened in etcd, as the agent would tell it; nothing if it is about another service than the one wanted.
fn read(event: NodeEvent, wanted: Option<&ServiceName>) -> Option<CatalogEvent> {
    let is_wanted = |name: &ServiceName| wanted.is_none_or(|wanted| wanted == name);
    let event = match event {
        NodeEvent::Added { service, node } if is_wanted(&service) => {
            CatalogEvent::Added(NodeAdded { service: service.to_string(), node: (&*node).into() })
        }
        NodeEvent::Changed { service, old, new } if is_wanted(&service) => {
            let (old, new) = ((&*old).into(), (&*new).into());
            CatalogEvent::Changed(NodeChanged { service: service.to_string(), old, new })
        }
        NodeEvent::Removed { service, node } if is_wanted(&service) => {
            CatalogEvent::Removed(NodeRemoved { service: service.to_string(), node: (&*node).into() })
        }
        NodeEvent::Resynchronised { services, .. } => {
            let services = services.iter().filter(|(name, _)| is_wanted(name));
            let nodes = |nodes: &Nodes| nodes.iter().map(|node| Node::from(&**node)).collect();
            let services = services.map(|(name, of_it)| (name.to_string(), nodes(of_it))).collect();
            CatalogEvent::Resynchronised(Resynchronised { version: 0, services })
        }
        NodeEvent::Added { .. } | NodeEvent::Changed { .. } | NodeEvent::Removed { .. } => return None,
    };
    Some(event)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::UNIX_EPOCH};

    use super::*;

    #[test]
    fn events_of_another_service_are_not_told() {
        let name = |name: &str| ServiceName::new(name).unwrap();
        let node = || Arc::new(waypost_catalog::Node::at(([10, 0, 0, 1], 80).into()));
        let wanted = name("web");
        let told = |event| {
            let event = read(event, Some(&wanted))?;
            Some(serde_json::to_value(Line::new(UNIX_EPOCH, &event)).unwrap())
        };
        assert_eq!(told(NodeEvent::Added { service: name("db"), node: node() }), None);
        assert_eq!(told(NodeEvent::Removed { service: name("db"), node: node() }), None);
        assert_eq!(told(NodeEvent::Changed { service: name("db"), old: node(), new: node() }), None);
        let added = told(NodeEvent::Added { service: name("web"), node: node() }).unwrap();
        assert_eq!((&added["event"], &added["service"]), (&"added".into(), &"web".into()));
        assert_eq!(
            (&added["node"]["address"], &added["time"]),
            (&"10.0.0.1:80".into(), &"1970-01-01T00:00:00Z".into())
        );
    }
}
