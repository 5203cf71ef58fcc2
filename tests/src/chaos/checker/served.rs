//! The rule about catalogs: after quiet an agent serves the nodes that etcd holds, the last good value of each.
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::{Rule, Verdict};
use crate::chaos::history::{Change, History, Key, Node, SERVICES, What};

type Services = BTreeMap<String, BTreeSet<SocketAddr>>;

pub(super) fn check(history: &History, verdict: &mut Verdict) {
    let end = history.records.last().map_or(Duration::ZERO, |record| record.at);
    let expected = expected(history);
    for agent in history.agents.iter().filter(|agent| is_alive(history, agent)) {
        let last = history.records.iter().rev().find_map(|record| match &record.what {
            What::Catalog { agent: of, services } if of == agent => Some(services),
            _ => None,
        });
        let Some(last) = last else {
            verdict.violation(Rule::Served, end, format!("{agent} never had a catalog"));
            continue;
        };
        let served = last.iter().filter(|(_, nodes)| !nodes.is_empty());
        let served: Services = served.map(|(name, nodes)| (name.clone(), nodes.iter().copied().collect())).collect();
        let names: BTreeSet<&String> = expected.keys().chain(served.keys()).collect();
        for name in names.into_iter().filter(|name| expected.get(*name) != served.get(*name)) {
            let (held, serves) = (expected.get(name), served.get(name));
            let what = format!("{agent} serves {serves:?} as {name} at the end, and etcd holds {held:?}");
            verdict.violation(Rule::Served, end, what);
        }
    }
}

fn is_alive(history: &History, name: &str) -> bool {
    let last = history.records.iter().rev().find_map(|record| match &record.what {
        What::Alive { owner, alive } if owner == name => Some(*alive),
        _ => None,
    });
    last.unwrap_or(true)
}

fn expected(history: &History) -> Services {
    let mut nodes: BTreeMap<&Key, (String, SocketAddr)> = BTreeMap::new();
    for record in &history.records {
        match &record.what {
            What::Epoch { entries, .. } => {
                let before = std::mem::take(&mut nodes);
                for entry in entries {
                    let node = node(&entry.key, &entry.value).or_else(|| before.get(&entry.key).cloned());
                    nodes.extend(node.map(|node| (&entry.key, node)));
                }
            }
            What::Said { change: Change::Put(entry) } => {
                nodes.extend(node(&entry.key, &entry.value).map(|node| (&entry.key, node)))
            }
            What::Said { change: Change::Deleted { key, .. } } => _ = nodes.remove(key),
            _ => {}
        }
    }
    let mut services = Services::new();
    for (service, address) in nodes.into_values() {
        services.entry(service).or_default().insert(address);
    }
    services
}

fn node(key: &str, value: &str) -> Option<(String, SocketAddr)> {
    let (service, instance) = key.strip_prefix(SERVICES)?.split_once('/')?;
    let node = Node::read(value).filter(|_| !instance.contains('/'))?;
    Some((service.to_owned(), node.address))
}
