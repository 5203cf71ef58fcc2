//! The last good catalog in Envoy's shared data, so that a VM which replaces a crashed one picks with its first
//! request; and the one configuration that all VMs of a `vm_id` have.
//!
//! ```text
//! waypost/2/configuration    until when the `vm_id` is its own, in nanoseconds, and the configuration, as JSON
//! waypost/2/head             hash of the catalog, all that has to be read to see that nothing is to be written; and
//!                            how many bytes it took to write it
//! waypost/2/index            the services and their hashes: says which blobs are to be written
//! waypost/2/service/<name>   a service's nodes and policy; empty when it is gone
//! waypost/2/routes           the routes
//! ```
//!
//! Every VM writes the same, so whichever comes first does, and the others find the head in place. Nothing here is
//! atomic over several keys, and nothing has to be: each service proves itself by its own hash, one that does not is
//! left out, and the agent, told the hash of the whole, sends what is missing. What it does not see is how a node was
//! understood: with every further value of a node's health, and every further field, the number in the keys goes up.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use prost::Message;
use waypost_catalog::{
    Health, Replica, Routes,
    replica::{ReplicaNode, ReplicaService},
    wire,
};

use crate::{config::Config, host::SharedData};

const CONFIGURATION: &str = "waypost/2/configuration";
const HEAD: &str = "waypost/2/head";
const INDEX: &str = "waypost/2/index";
const ROUTES: &str = "waypost/2/routes";

/// What is larger is neither written nor read.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// After a change the others get this long to write it, and further changes to come in.
const SHORTEST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_millis(1_000);

/// For each byte that was written last time they get this much more: about a second for each MiB. A large service is
/// written whole, however little of it changed.
const DELAY_PER_BYTE: Duration = Duration::from_micros(1);
const LONGEST_ADDED_DELAY: Duration = Duration::from_secs(30);

/// A time that does not come.
pub const FOR_GOOD: Duration = Duration::from_nanos(u64::MAX);

#[derive(Clone, PartialEq, Message)]
struct Index {
    #[prost(message, repeated, tag = "1")]
    services: Vec<IndexEntry>,
    #[prost(fixed64, tag = "2")]
    routes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct IndexEntry {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(fixed64, tag = "2")]
    hash: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredService {
    #[prost(fixed64, tag = "1")]
    hash: u64,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<StoredNode>,
    #[prost(bytes = "vec", tag = "3")]
    policy: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredNode {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(uint32, tag = "2")]
    weight: u32,
    #[prost(uint32, tag = "3")]
    health: u32,
    #[prost(fixed64, tag = "4")]
    hash: u64,
    #[prost(string, tag = "5")]
    zone: String,
    #[prost(uint32, tag = "6")]
    priority: u32,
    #[prost(uint32, tag = "7")]
    warmup: u32,
    #[prost(uint64, tag = "8")]
    subsets: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Restored {
    /// The catalog, as far as it is whole.
    pub replica: Replica,
    /// What was left out, for the log.
    pub damaged: Vec<String>,
}

/// Claims the `vm_id` for a configuration up to some time; the other configuration if it is taken.
///
/// A VM has one catalog and, to spare each request a look-up, one configuration. Envoy tries a configuration in a VM of
/// its own before it uses it, so one that does not fit is refused there and the old one stays in use. It is not yet
/// known there whether this one will be used, so such a claim lapses; [`FOR_GOOD`] wins over it.
///
/// # Errors
/// The configuration that holds the `vm_id`.
pub fn claim(data: &mut impl SharedData, config: &Config, now: Duration, until: Duration) -> Result<(), String> {
    if let Some(kept) = data.get(CONFIGURATION)
        && let Some((held_until, json)) = split_number(&kept)
    {
        let held_until = Duration::from_nanos(held_until);
        // Compared as they are understood: another version of the filter may write the same one in another way.
        let same = Config::parse(json).is_ok_and(|other| other == *config);
        if same && held_until >= until {
            return Ok(());
        }
        if !same && now < held_until && (held_until == FOR_GOOD || until < FOR_GOOD) {
            return Err(String::from_utf8_lossy(json).into_owned());
        }
    }
    let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
    data.set(CONFIGURATION, &[&until.to_le_bytes(), config.to_string().as_bytes()].concat());
    Ok(())
}

/// Reads what the VMs before this one have kept.
pub fn restore(data: &mut impl SharedData) -> Restored {
    let mut restored = Restored::default();
    let Some(bytes) = data.get(INDEX) else { return restored };
    let Some(index) = decode::<Index>(&bytes) else {
        restored.damaged.push("the index".into());
        return restored;
    };
    let mut services = Vec::with_capacity(index.services.len());
    for IndexEntry { name, .. } in index.services {
        match data.get(&service_key(&name)) {
            Some(bytes) if bytes.is_empty() => {}
            Some(bytes) => match read_service(&bytes) {
                Some(service) => services.push((name.into_boxed_str(), service)),
                None => restored.damaged.push(name),
            },
            None => restored.damaged.push(name),
        }
    }
    let routes = match index.routes {
        0 => Some(Routes::default()),
        hash => data.get(ROUTES).and_then(|bytes| read_routes(&bytes)).filter(|routes| routes.hash() == hash),
    };
    if routes.is_none() {
        restored.damaged.push("the table of routes".into());
    }
    restored.replica = Replica::restored(services, routes.unwrap_or_default());
    restored
}

/// Keeps the catalog, as far as it differs from what is kept. How many bytes that took, by whichever VM it was done.
pub fn save(data: &mut impl SharedData, replica: &Replica) -> u64 {
    if let Some(head) = data.get(HEAD)
        && let Some((hash, rest)) = split_number(&head)
        && hash == replica.hash()
    {
        return split_number(rest).map_or(0, |(written, _)| written);
    }
    let kept = data.get(INDEX).and_then(|bytes| decode::<Index>(&bytes)).unwrap_or_default();
    let kept_routes = kept.routes;
    let kept: HashMap<_, _> = kept.services.into_iter().map(|entry| (entry.name, entry.hash)).collect();
    let mut index = Index::default();
    let mut written = 0;
    for (name, service) in replica.services() {
        if kept.get(&**name) != Some(&service.hash()) {
            let bytes = write_service(service);
            if bytes.len() > MAX_BYTES {
                continue;
            }
            data.set(&service_key(name), &bytes);
            written += bytes.len() as u64;
        }
        index.services.push(IndexEntry { name: name.to_string(), hash: service.hash() });
    }
    for name in kept.keys().filter(|name| !replica.services().contains_key(name.as_str())) {
        data.set(&service_key(name), &[]);
    }
    index.routes = replica.routes().hash();
    if index.routes != kept_routes && index.routes != 0 {
        let bytes = write_routes(replica.routes());
        data.set(ROUTES, &bytes);
        written += bytes.len() as u64;
    }
    let index = index.encode_to_vec();
    written += index.len() as u64;
    data.set(INDEX, &index);
    data.set(HEAD, &[replica.hash().to_le_bytes(), written.to_le_bytes()].concat());
    written
}

/// Says when to [`save`]: some time after a change, and not once per change.
#[derive(Debug, Default)]
pub struct SaveTimer {
    due: Option<Duration>,
    added: Duration,
}

impl SaveTimer {
    /// The catalog changed. The random part lets one VM come first and spares the others the work.
    pub fn changed(&mut self, now: Duration, random: u64) {
        let part = f64::from(random as u32) / f64::from(u32::MAX);
        let delay = SHORTEST_DELAY + (LONGEST_DELAY - SHORTEST_DELAY).mul_f64(part);
        self.due.get_or_insert(now + delay + self.added);
    }

    /// Whether to save now; asked again, no.
    pub fn take_due(&mut self, now: Duration) -> bool {
        self.due.take_if(|due| now >= *due).is_some()
    }

    /// It took this many bytes.
    pub fn saved(&mut self, bytes: u64) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.added = LONGEST_ADDED_DELAY.min(DELAY_PER_BYTE.saturating_mul(bytes));
    }
}

fn split_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn service_key(name: &str) -> String {
    format!("waypost/2/service/{name}")
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    if bytes.len() > MAX_BYTES { None } else { M::decode(bytes).ok() }
}

fn write_service(service: &ReplicaService) -> Vec<u8> {
    let nodes = service.nodes().iter().map(|node| StoredNode {
        address: node.address.to_string(),
        weight: node.weight,
        health: match node.health {
            Health::Passing => 0,
            Health::Critical => 1,
            Health::Draining => 2,
        },
        hash: node.hash,
        zone: node.zone.to_string(),
        priority: node.priority.into(),
        warmup: node.warmup.into(),
        subsets: node.subsets,
    });
    let policy = service.policy().to_vec();
    StoredService { hash: service.hash(), nodes: nodes.collect(), policy }.encode_to_vec()
}

fn write_routes(routes: &Routes) -> Vec<u8> {
    let documents = routes.documents().iter();
    let documents = documents.map(|(id, document)| wire::Route { id: id.clone(), document: document.clone() });
    wire::Routes { hash: routes.hash(), routes: documents.collect() }.encode_to_vec()
}

fn read_routes(bytes: &[u8]) -> Option<Routes> {
    let stored: wire::Routes = decode(bytes)?;
    Routes::new(stored.routes.into_iter().map(|route| (route.id, route.document))).ok()
}

fn read_service(bytes: &[u8]) -> Option<ReplicaService> {
    let stored: StoredService = decode(bytes)?;
    let mut nodes = Vec::with_capacity(stored.nodes.len());
    for node in stored.nodes {
        node.address.parse::<SocketAddr>().ok()?;
        nodes.push(ReplicaNode {
            address: node.address.into(),
            weight: node.weight,
            health: match node.health {
                0 => Health::Passing,
                1 => Health::Critical,
                2 => Health::Draining,
                _ => return None,
            },
            hash: node.hash,
            zone: node.zone.into(),
            priority: u8::try_from(node.priority).ok()?,
            warmup: u16::try_from(node.warmup).ok()?,
            subsets: node.subsets,
        });
    }
    let service = ReplicaService::new(nodes, stored.policy.into());
    (service.hash() == stored.hash).then_some(service)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::sync::Arc;

    use waypost_catalog::{Catalog, Change, Node, Placement, ServiceName, sender};

    use super::*;

    #[derive(Default)]
    struct Data {
        values: HashMap<String, Vec<u8>>,
        written: Vec<String>,
    }

    impl SharedData for Data {
        fn get(&mut self, key: &str) -> Option<Vec<u8>> {
            self.values.get(key).cloned()
        }
        fn set(&mut self, key: &str, value: &[u8]) {
            self.written.push(key.into());
            self.values.insert(key.into(), value.into());
        }
    }

    fn replica(services: &[(&str, u8)]) -> Replica {
        with_routes(services, &[])
    }

    fn with_routes(services: &[(&str, u8)], routes: &[(&str, &'static str)]) -> Replica {
        let services = services.iter().map(|(name, nodes)| {
            let nodes = (1..=*nodes).map(|n| Node {
                weight: n.into(),
                health: [Health::Passing, Health::Critical, Health::Draining][n as usize % 3],
                zone: "z".repeat(n as usize % 2),
                placement: Placement { weight: None, priority: n, warmup: 1_000 - u16::from(n), subsets: n.into() },
                ..Node::at(SocketAddr::from(([10, 0, 0, n], 80)))
            });
            (ServiceName::new(name).unwrap(), nodes.collect::<Vec<_>>())
        });
        let services = services.map(|(service, nodes)| Change { service, nodes, policy: "{}".into() });
        let routes = Routes::new(routes.iter().map(|(id, document)| ((*id).to_owned(), (*document).into()))).unwrap();
        let catalog = Catalog::default().changed(services, Some(Arc::new(routes))).0.unwrap_or_default();
        let mut replica = Replica::default();
        for message in sender::full(&catalog) {
            replica.apply(message.kind.unwrap()).unwrap();
        }
        replica
    }

    #[test]
    fn what_was_saved_comes_back() {
        let mut data = Data::default();
        assert_eq!(restore(&mut data).replica.hash(), 0);
        let replica = replica(&[("web", 5), ("api", 1)]);
        save(&mut data, &replica);
        let restored = restore(&mut data);
        assert_eq!(restored.replica.services(), replica.services());
        assert_eq!(restored.replica.hash(), replica.hash());
        assert!(restored.damaged.is_empty());
    }

    #[test]
    fn routes_come_back_and_are_written_when_they_change() {
        let mut data = Data::default();
        let first = with_routes(&[("web", 1)], &[("a", "1")]);
        save(&mut data, &first);
        assert_eq!(restore(&mut data).replica.routes(), first.routes());
        data.written.clear();
        save(&mut data, &with_routes(&[("web", 2)], &[("a", "1")]));
        assert!(!data.written.contains(&ROUTES.to_owned()));
        let next = with_routes(&[("web", 2)], &[("a", "2")]);
        save(&mut data, &next);
        assert!(data.written.contains(&ROUTES.to_owned()));
        let restored = restore(&mut data);
        assert_eq!((restored.replica.routes(), restored.replica.hash()), (next.routes(), next.hash()));
        data.values.insert(ROUTES.into(), vec![0xff]);
        let restored = restore(&mut data);
        assert_eq!((restored.damaged.len(), restored.replica.routes().hash()), (1, 0));
        let none = with_routes(&[("web", 2)], &[]);
        save(&mut data, &none);
        assert_eq!(restore(&mut data).replica.hash(), none.hash());
    }

    #[test]
    fn only_what_changed_is_written_and_nothing_twice() {
        let mut data = Data::default();
        save(&mut data, &replica(&[("web", 5), ("api", 1), ("old", 2)]));
        data.written.clear();
        save(&mut data, &replica(&[("web", 5), ("api", 1), ("old", 2)]));
        assert!(data.written.is_empty());
        let next = replica(&[("web", 6), ("api", 1)]);
        save(&mut data, &next);
        data.written.sort_unstable();
        assert_eq!(data.written, [HEAD, INDEX, "waypost/2/service/old", "waypost/2/service/web"]);
        assert!(data.values["waypost/2/service/old"].is_empty());
        assert_eq!(restore(&mut data).replica.services(), next.services());
    }

    #[test]
    fn a_damaged_service_is_left_out_and_named_and_the_others_come_back() {
        let mut data = Data::default();
        save(&mut data, &replica(&[("web", 5), ("api", 1), ("gone", 1)]));
        let web = data.values.get_mut("waypost/2/service/web").unwrap();
        let place = web.len() - 1;
        web[place] ^= 1;
        data.values.remove("waypost/2/service/gone");
        let mut restored = restore(&mut data);
        restored.damaged.sort_unstable();
        assert_eq!(restored.damaged, ["gone", "web"]);
        assert_eq!(restored.replica.services().len(), 1);
        data.values.insert(INDEX.into(), vec![0xff]);
        let restored = restore(&mut data);
        assert_eq!((restored.damaged.len(), restored.replica.services().len()), (1, 0));
        // And it heals.
        let whole = replica(&[("web", 5), ("api", 2)]);
        save(&mut data, &whole);
        assert_eq!(restore(&mut data).replica.services(), whole.services());
    }

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_second_configuration_is_refused_while_the_first_is_tried_and_once_it_is_used() {
        let mut data = Data::default();
        let (first, second) = (config("{}"), config(r#"{"mode":"original_dst"}"#));
        let seconds = Duration::from_secs;
        assert_eq!(claim(&mut data, &first, seconds(1), seconds(3)), Ok(()));
        assert_eq!(claim(&mut data, &first, seconds(1), seconds(3)), Ok(()));
        assert_eq!(claim(&mut data, &second, seconds(2), seconds(4)), Err(first.to_string()));
        // Never used: it does not stand in the way for long.
        assert_eq!(claim(&mut data, &second, seconds(3), seconds(5)), Ok(()));
        // A VM that runs wins over one that is tried.
        assert_eq!(claim(&mut data, &first, seconds(4), FOR_GOOD), Ok(()));
        assert_eq!(claim(&mut data, &second, seconds(9_999), seconds(10_001)), Err(first.to_string()));
        assert_eq!(claim(&mut data, &second, seconds(9_999), FOR_GOOD), Err(first.to_string()));
        assert_eq!(claim(&mut data, &first, seconds(9_999), seconds(10_001)), Ok(()));
        assert_eq!(claim(&mut data, &second, seconds(20_000), FOR_GOOD), Err(first.to_string()));
    }

    #[test]
    fn a_configuration_written_in_another_way_is_the_same() {
        let mut data = Data::default();
        let text = br#"{ "agent_cluster": "waypost_agent" }"#;
        data.set(CONFIGURATION, &[&u64::MAX.to_le_bytes(), &text[..]].concat());
        assert_eq!(claim(&mut data, &config("{}"), Duration::ZERO, FOR_GOOD), Ok(()));
    }

    #[test]
    fn a_save_is_due_some_time_after_the_first_change_and_only_once() {
        let mut timer = SaveTimer::default();
        assert!(!timer.take_due(Duration::from_secs(9)));
        timer.changed(Duration::from_secs(10), 0);
        timer.changed(Duration::from_secs(11), u64::MAX);
        assert!(!timer.take_due(Duration::from_millis(10_199)));
        assert!(timer.take_due(Duration::from_millis(10_200)));
        assert!(!timer.take_due(Duration::from_secs(99)));
    }

    #[test]
    fn what_takes_long_to_write_is_written_more_rarely() {
        for (megabytes, seconds) in [(0, 0), (1, 1), (10, 10), (30, 30), (1_000_000, 30)] {
            let mut timer = SaveTimer::default();
            timer.saved(megabytes * 1_000_000);
            timer.changed(Duration::ZERO, 0);
            assert!(!timer.take_due(Duration::from_secs(seconds) + Duration::from_millis(190)), "{megabytes} MB");
            assert!(timer.take_due(Duration::from_secs(seconds) + Duration::from_millis(200)), "{megabytes} MB");
        }
    }

    #[test]
    fn every_vm_knows_what_the_writing_took() {
        let mut data = Data::default();
        let written = save(&mut data, &replica(&[("web", 200)]));
        assert!(written > 5_000, "{written}");
        assert_eq!(save(&mut data, &replica(&[("web", 200)])), written);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_service(&bytes);
            let mut data = Data::default();
            data.values.insert(INDEX.into(), bytes);
            restore(&mut data);
        }
    }
}
