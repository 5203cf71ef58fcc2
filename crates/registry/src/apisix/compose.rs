//! An upstream's value with our nodes in it. Pure.
//!
//! All that is not ours stays, to the letter: other fields, nodes that somebody else put in, and of our own nodes what
//! was set beside their weight. Ours are the nodes that we once put in (`written`, which is kept in etcd beside it): a
//! node that was there by somebody else's hand when we first wanted it stays theirs, also when ours goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use waypost_catalog::{Protocol, ServiceName};

use crate::host::Host;

type Fields = BTreeMap<String, Box<RawValue>>;

const NODES: &str = "nodes";
const WEIGHT: &str = "weight";
const UPDATED: &str = "update_time";

/// Why a value is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ComposeError {
    #[error("the value there is not the JSON of an upstream: {0}")]
    Json(String),
    #[error("the upstream there has no nodes of its own: they come from another registry")]
    NoNodes,
}

impl From<serde_json::Error> for ComposeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// What should be in the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The nodes' weights by address.
    pub(super) nodes: BTreeMap<SocketAddr, u32>,
    /// What they speak: said in an upstream that is not there yet.
    pub(super) protocol: Protocol,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Composed {
    /// The upstream's value, unless it may stay as it is.
    pub(super) value: Option<Vec<u8>>,
    /// The nodes in it that are ours.
    pub(super) written: BTreeSet<SocketAddr>,
}

/// A node as an object of a list.
#[derive(Serialize)]
struct NewNode {
    host: String,
    port: u16,
    weight: u32,
    priority: i64,
}

#[derive(Deserialize)]
struct Place {
    host: String,
    port: Option<u16>,
    weight: Option<serde_json::Number>,
}

/// The value with the wanted nodes in it, and without those of `written` that are not wanted. `now` is in Unix seconds.
pub(super) fn compose(
    id: &ServiceName,
    existing: Option<&[u8]>,
    written: &BTreeSet<SocketAddr>,
    wanted: &Wanted,
    now: u64,
) -> Result<Composed, ComposeError> {
    let Some(existing) = existing else { return new(id, wanted) };
    let mut fields: Fields = serde_json::from_slice(existing)?;
    let nodes = fields.get(NODES).ok_or(ComposeError::NoNodes)?.get();
    let mut merge = Merge { written, wanted, ours: BTreeSet::new(), changed: false };
    let nodes = if nodes.starts_with('[') { merge.list(nodes)? } else { merge.map(nodes)? };
    let Merge { ours, changed, .. } = merge;
    if !changed {
        return Ok(Composed { value: None, written: ours });
    }
    fields.insert(NODES.to_owned(), nodes);
    if fields.contains_key(UPDATED) {
        fields.insert(UPDATED.to_owned(), to_raw_value(&now)?);
    }
    Ok(Composed { value: Some(serde_json::to_vec(&fields)?), written: ours })
}

/// An upstream of which nobody has said anything yet: only what has to be there, so that every version takes it.
fn new(id: &ServiceName, wanted: &Wanted) -> Result<Composed, ComposeError> {
    if wanted.nodes.is_empty() {
        return Ok(Composed { value: None, written: BTreeSet::new() });
    }
    let nodes: Vec<NewNode> = wanted.nodes.iter().map(|(address, weight)| new_node(*address, *weight)).collect();
    let mut fields = Fields::from([
        ("id".to_owned(), to_raw_value(id.as_str())?),
        ("type".to_owned(), to_raw_value("roundrobin")?),
        (NODES.to_owned(), to_raw_value(&nodes)?),
    ]);
    if wanted.protocol == Protocol::Http2 {
        fields.insert("scheme".to_owned(), to_raw_value("grpc")?);
    }
    Ok(Composed { value: Some(serde_json::to_vec(&fields)?), written: wanted.nodes.keys().copied().collect() })
}

fn new_node(address: SocketAddr, weight: u32) -> NewNode {
    let host = match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    NewNode { host, port: address.port(), weight, priority: 0 }
}

/// What becomes of a node that is there.
enum Fate {
    Stays,
    Goes,
    Weighs(u32),
}

struct Merge<'a> {
    written: &'a BTreeSet<SocketAddr>,
    wanted: &'a Wanted,
    ours: BTreeSet<SocketAddr>,
    changed: bool,
}

impl Merge<'_> {
    fn list(&mut self, nodes: &str) -> Result<Box<RawValue>, ComposeError> {
        let mut kept: Vec<Box<RawValue>> = Vec::new();
        let mut there = BTreeSet::new();
        for raw in serde_json::from_str::<Vec<Box<RawValue>>>(nodes)? {
            let place: Place = serde_json::from_str(raw.get())?;
            let address = address(&place.host, place.port);
            there.extend(address);
            match self.fate(address, place.weight.as_ref()) {
                Fate::Stays => kept.push(raw),
                Fate::Goes => {}
                Fate::Weighs(weight) => {
                    let mut fields: Fields = serde_json::from_str(raw.get())?;
                    fields.insert(WEIGHT.to_owned(), to_raw_value(&weight)?);
                    kept.push(to_raw_value(&fields)?);
                }
            }
        }
        for (address, weight) in self.missing(&there) {
            kept.push(to_raw_value(&new_node(address, weight))?);
        }
        Ok(to_raw_value(&kept)?)
    }

    fn map(&mut self, nodes: &str) -> Result<Box<RawValue>, ComposeError> {
        let mut kept = Fields::new();
        let mut there = BTreeSet::new();
        for (text, raw) in serde_json::from_str::<Fields>(nodes)? {
            let address = text.parse().ok().or_else(|| address(&text, None));
            there.extend(address);
            match self.fate(address, serde_json::from_str(raw.get()).ok().as_ref()) {
                Fate::Stays => _ = kept.insert(text, raw),
                Fate::Goes => {}
                Fate::Weighs(weight) => _ = kept.insert(text, to_raw_value(&weight)?),
            }
        }
        for (address, weight) in self.missing(&there) {
            kept.insert(address.to_string(), to_raw_value(&weight)?);
        }
        Ok(to_raw_value(&kept)?)
    }

    fn fate(&mut self, address: Option<SocketAddr>, weight: Option<&serde_json::Number>) -> Fate {
        let Some(address) = address.filter(|address| self.written.contains(address)) else { return Fate::Stays };
        let Some(wanted) = self.wanted.nodes.get(&address) else {
            self.changed = true;
            return Fate::Goes;
        };
        self.ours.insert(address);
        if weight.and_then(serde_json::Number::as_u64) == Some(u64::from(*wanted)) {
            return Fate::Stays;
        }
        self.changed = true;
        Fate::Weighs(*wanted)
    }

    /// The wanted nodes that are not there: they become ours.
    fn missing(&mut self, there: &BTreeSet<SocketAddr>) -> Vec<(SocketAddr, u32)> {
        let missing = self.wanted.nodes.iter().filter(|(address, _)| !there.contains(address));
        let missing: Vec<(SocketAddr, u32)> = missing.map(|(address, weight)| (*address, *weight)).collect();
        self.changed |= !missing.is_empty();
        self.ours.extend(missing.iter().map(|(address, _)| *address));
        missing
    }
}

/// The address of a node; none if its host has a name, which no node of ours has.
fn address(host: &str, port: Option<u16>) -> Option<SocketAddr> {
    match Host::parse(host)? {
        Host::Address(ip) => Some(SocketAddr::new(ip, port.unwrap_or(crate::format::APISIX_PORT))),
        Host::Name(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Format;

    fn id() -> ServiceName {
        ServiceName::new("orders").unwrap()
    }

    fn wanted(nodes: &[(&str, u32)]) -> Wanted {
        let nodes = nodes.iter().map(|(address, weight)| (address.parse().unwrap(), *weight)).collect();
        Wanted { nodes, protocol: Protocol::Http1 }
    }

    fn addresses(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    fn composed(existing: &str, written: &[&str], nodes: &[(&str, u32)]) -> (Option<String>, BTreeSet<SocketAddr>) {
        let existing = Some(existing.as_bytes()).filter(|value| !value.is_empty());
        let Composed { value, written } =
            compose(&id(), existing, &addresses(written), &wanted(nodes), 1_700_000_000).unwrap();
        (value.map(|value| String::from_utf8(value).unwrap()), written)
    }

    #[test]
    fn an_upstream_that_is_not_there_is_made_of_what_it_needs() {
        let (value, written) = composed("", &[], &[("10.0.0.5:8080", 10), ("[::1]:80", 1)]);
        assert_eq!(
            value.as_deref(),
            Some(
                r#"{"id":"orders","nodes":[{"host":"10.0.0.5","port":8080,"weight":10,"priority":0},{"host":"[::1]","port":80,"weight":1,"priority":0}],"type":"roundrobin"}"#
            )
        );
        assert_eq!(written, addresses(&["10.0.0.5:8080", "[::1]:80"]));
        let grpc = Wanted { protocol: Protocol::Http2, ..wanted(&[("10.0.0.5:8080", 1)]) };
        let value = compose(&id(), None, &BTreeSet::new(), &grpc, 0).unwrap().value.unwrap();
        assert!(String::from_utf8(value).unwrap().contains(r#""scheme":"grpc""#));
        assert_eq!(composed("", &["10.0.0.5:8080"], &[]), (None, BTreeSet::new()), "no node makes no upstream");
    }

    #[test]
    fn every_other_field_and_every_other_node_stays_to_the_letter() {
        let existing = r#"{"create_time":1602883670,"desc":"a \u00e4","id":"orders","key":"uri","nodes":[{"host":"10.9.9.9","port":1,"weight":5,"metadata":{"x":1.50}},{"weight":1, "host":"db.shop"}],"timeout":{"connect":0.50},"type":"chash","update_time":1602893670}"#;
        let (value, written) = composed(existing, &[], &[("10.0.0.5:8080", 10)]);
        let expected = existing
            .replace(
                r#""host":"db.shop"}"#,
                r#""host":"db.shop"},{"host":"10.0.0.5","port":8080,"weight":10,"priority":0}"#,
            )
            .replace("1602893670", "1700000000");
        assert_eq!(value, Some(expected.clone()));
        assert_eq!(composed(&expected, &["10.0.0.5:8080"], &[("10.0.0.5:8080", 10)]), (None, written), "in step");
        let (value, written) = composed(&expected, &["10.0.0.5:8080"], &[]);
        assert_eq!(value, Some(existing.replace("1602893670", "1700000000")));
        assert!(written.is_empty());
    }

    #[test]
    fn a_map_of_weights_stays_one() {
        let (value, written) =
            composed(r#"{"nodes":{"10.9.9.9:1":5,"db.shop:80":1},"type":"roundrobin"}"#, &[], &[("10.0.0.5:8080", 10)]);
        let both = r#"{"nodes":{"10.0.0.5:8080":10,"10.9.9.9:1":5,"db.shop:80":1},"type":"roundrobin"}"#;
        assert_eq!((value.as_deref(), written), (Some(both), addresses(&["10.0.0.5:8080"])));
        let (value, _) = composed(both, &["10.0.0.5:8080"], &[("10.0.0.5:8080", 3)]);
        assert_eq!(value, Some(both.replace(":10,", ":3,")));
        let (value, _) = composed(r#"{"nodes":{"10.0.0.5":1}}"#, &["10.0.0.5:80"], &[("10.0.0.5:80", 2)]);
        assert_eq!(value.as_deref(), Some(r#"{"nodes":{"10.0.0.5":2}}"#), "a port that is not named is 80");
        let (value, _) = composed(r#"{"nodes":{"10.0.0.5:8080":1}}"#, &["10.0.0.5:8080"], &[]);
        assert_eq!(value.as_deref(), Some(r#"{"nodes":{}}"#));
    }

    #[test]
    fn of_our_own_node_only_the_weight_is_ours() {
        let edited = r#"{"nodes":[{"host":"10.0.0.5","metadata":{"a":1},"port":8080,"priority":-1,"weight":1}]}"#;
        let (value, _) = composed(edited, &["10.0.0.5:8080"], &[("10.0.0.5:8080", 7)]);
        assert_eq!(value, Some(edited.replace(r#""weight":1"#, r#""weight":7"#)));
    }

    #[test]
    fn a_node_that_somebody_else_put_in_stays_theirs() {
        let theirs = r#"{"nodes":{"10.0.0.5:8080":100}}"#;
        assert_eq!(composed(theirs, &[], &[("10.0.0.5:8080", 1)]), (None, BTreeSet::new()));
        assert_eq!(composed(theirs, &[], &[]), (None, BTreeSet::new()));
    }

    #[test]
    fn a_node_that_somebody_took_out_is_put_in_again_while_it_is_wanted_and_forgotten_otherwise() {
        let (value, written) = composed(r#"{"nodes":{}}"#, &["10.0.0.5:8080"], &[("10.0.0.5:8080", 1)]);
        assert_eq!(
            (value.as_deref(), written),
            (Some(r#"{"nodes":{"10.0.0.5:8080":1}}"#), addresses(&["10.0.0.5:8080"]))
        );
        assert_eq!(composed(r#"{"nodes":{}}"#, &["10.0.0.5:8080"], &[]), (None, BTreeSet::new()));
    }

    #[test]
    fn a_value_that_is_no_upstream_with_nodes_is_left_alone() {
        for existing in [
            "{",
            "[]",
            r#"{"nodes":7}"#,
            r#"{"nodes":[7]}"#,
            r#"{"type":"roundrobin","service_name":"o"}"#,
            r#"{"nodes":null}"#,
        ] {
            let outcome =
                compose(&id(), Some(existing.as_bytes()), &BTreeSet::new(), &wanted(&[("10.0.0.5:80", 1)]), 0);
            assert!(outcome.is_err(), "{existing}: {outcome:?}");
        }
    }

    fn some_nodes() -> impl Strategy<Value = BTreeMap<SocketAddr, u32>> {
        let node = (1u8..6, 0u32..4).prop_map(|(last, weight)| (SocketAddr::from(([10, 0, 0, last], 80)), weight));
        prop::collection::vec(node, 0..5).prop_map(|nodes| nodes.into_iter().collect())
    }

    proptest! {
        #[test]
        fn what_is_composed_is_read_back_is_in_step_and_is_undone_to_what_others_put_in(
            theirs in some_nodes(),
            ours in some_nodes(),
            as_list in any::<bool>(),
        ) {
            let existing = if as_list {
                let nodes: Vec<NewNode> = theirs.iter().map(|(address, weight)| new_node(*address, *weight)).collect();
                serde_json::json!({"nodes": nodes})
            } else {
                let nodes: BTreeMap<String, u32> = theirs.iter().map(|(address, weight)| (address.to_string(), *weight)).collect();
                serde_json::json!({"nodes": nodes})
            };
            let existing = existing.to_string().into_bytes();
            let wanted = Wanted { nodes: ours.clone(), protocol: Protocol::Http1 };
            let first = compose(&id(), Some(&existing), &BTreeSet::new(), &wanted, 0).unwrap();
            let value = first.value.clone().unwrap_or(existing.clone());
            let (_, found) = Format::Apisix.decode("/u/", "/u/orders", &value, Protocol::Http1).unwrap();
            let read: BTreeMap<SocketAddr, u32> =
                found.iter().filter_map(|found| found.node()).map(|node| (node.address, node.weight)).collect();
            let mut all = ours;
            all.extend(theirs);
            prop_assert_eq!(read, all);
            let again = compose(&id(), Some(&value), &first.written, &wanted, 0).unwrap();
            prop_assert_eq!(&again, &Composed { value: None, written: first.written.clone() });
            let undone = compose(&id(), Some(&value), &first.written, &Wanted::default(), 0).unwrap();
            prop_assert_eq!(undone.value.unwrap_or(value), existing);
            prop_assert!(undone.written.is_empty());
        }

        #[test]
        fn no_value_makes_it_panic(value in prop::collection::vec(any::<u8>(), 0..100), text in r#"\{"nodes":[\[\]{}":0-9a-z,.]{0,30}\}"#) {
            let wanted = wanted(&[("10.0.0.5:80", 1)]);
            let _ = compose(&id(), Some(&value), &BTreeSet::new(), &wanted, 0);
            let _ = compose(&id(), Some(text.as_bytes()), &BTreeSet::new(), &wanted, 0);
        }
    }
}
