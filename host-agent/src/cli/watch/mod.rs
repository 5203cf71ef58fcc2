//! `waypost watch`: what changes, as it changes.

mod difference;
mod lines;

use std::{collections::BTreeMap, time::SystemTime};

use clap::Args;
use serde::Serialize;
use waypost_catalog::ServiceName;
use waypost_registry::{Addresses, MirrorEvent, MirrorOptions, View, format::rfc3339};

use self::{difference::difference, lines::Lines};
use super::{
    follow::{Keys, News, tell_all},
    output::{self, Paint, Reader},
    source::{Layout, Source, SourceOptions},
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
                let mut reading = Reading::new(&straight.layout, service);
                let options = MirrorOptions::new(&straight.layout.prefix);
                tell_all(Keys::follow(straight.connector, options, |event| reading.read(event)), tell).await
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

/// Makes events of what happens to the keys of a prefix.
struct Reading {
    view: View,
    service: Option<ServiceName>,
    /// The nodes of each service, as told.
    told: BTreeMap<ServiceName, Vec<Node>>,
}

impl Reading {
    fn new(layout: &Layout, service: Option<ServiceName>) -> Self {
        let view = View::new(layout.prefix.clone(), layout.format, layout.protocol);
        Self { view, service, told: BTreeMap::new() }
    }

    fn read(&mut self, event: MirrorEvent) -> Vec<CatalogEvent> {
        match event {
            MirrorEvent::Synced { .. } => {
                self.view.apply(&event);
                self.told.clear();
                let names: Vec<ServiceName> =
                    self.view.services().filter(|name| self.is_wanted(name)).cloned().collect();
                self.told.extend(names.into_iter().map(|name| {
                    let nodes = nodes(&self.view, &name);
                    (name, nodes)
                }));
                let services = self.told.iter().map(|(name, nodes)| (name.to_string(), nodes.clone())).collect();
                vec![CatalogEvent::Resynchronised(Resynchronised { version: 0, services })]
            }
            // One by one: a node that came and went in one answer of etcd came and went.
            MirrorEvent::Changed { changes, revision } => changes
                .into_iter()
                .flat_map(|change| self.change(&MirrorEvent::Changed { changes: vec![change], revision }))
                .collect(),
        }
    }

    fn change(&mut self, event: &MirrorEvent) -> Vec<CatalogEvent> {
        let touched = self.view.apply(event);
        let mut events = Vec::new();
        let touched: Vec<ServiceName> = touched.into_iter().filter(|name| self.is_wanted(name)).collect();
        for name in touched {
            let new = nodes(&self.view, &name);
            let old = self.told.remove(&name).unwrap_or_default();
            events.extend(difference(&name, &old, &new));
            if !new.is_empty() {
                self.told.insert(name, new);
            }
        }
        events
    }

    fn is_wanted(&self, name: &ServiceName) -> bool {
        self.service.as_ref().is_none_or(|service| service == name)
    }
}

fn nodes(view: &View, service: &ServiceName) -> Vec<Node> {
    let mut nodes = view.nodes(service, &Addresses::default());
    nodes.sort_by_key(|node| node.address);
    nodes.iter().map(|node| Node::from(&**node)).collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::UNIX_EPOCH};

    use waypost_registry::{Format, KeyChange, KeyValue, ResyncReason};

    use super::*;

    fn put(key: &str, value: &str, mod_revision: i64) -> Arc<KeyValue> {
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        Arc::new(KeyValue { key, value, mod_revision, create_revision: 1, lease: 0 })
    }

    #[test]
    fn each_change_of_a_key_is_an_event_and_one_of_another_service_is_none() {
        let layout =
            Layout { format: Format::EndpointValue, prefix: "/s/".into(), protocol: waypost_catalog::Protocol::Http1 };
        let mut reading = Reading::new(&layout, Some(ServiceName::new("web").unwrap()));
        let entries = vec![put("/s/db/1", "10.0.0.9:1", 2), put("/s/web/1", "10.0.0.1:80", 3)];
        let mut events = reading.read(MirrorEvent::Synced { entries, revision: 3, reason: ResyncReason::First });
        let changes = vec![
            KeyChange::Put(put("/s/web/2", "10.0.0.2:80", 4)),
            KeyChange::Delete { key: "/s/web/2".into(), revision: 5 },
            KeyChange::Put(put("/s/db/2", "10.0.0.9:2", 6)),
        ];
        events.extend(reading.read(MirrorEvent::Changed { changes, revision: 6 }));
        let lines: Vec<serde_json::Value> =
            events.iter().map(|event| serde_json::to_value(Line::new(UNIX_EPOCH, event)).unwrap()).collect();
        let names: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["resynchronised", "added", "removed"]);
        assert_eq!(lines[0]["services"]["web"][0]["address"], "10.0.0.1:80");
        assert_eq!(lines[0]["services"].as_object().unwrap().len(), 1);
        assert_eq!((&lines[1]["service"], &lines[1]["node"]["address"]), (&"web".into(), &"10.0.0.2:80".into()));
        assert_eq!(lines[2]["time"], "1970-01-01T00:00:00Z");
    }
}
