//! Both ends of the stream together: whatever changes, the replica ends up with what the sender holds; and whatever
//! bytes arrive, it neither panics nor loses what was good.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use proptest::prelude::*;
use prost::Message;
use waypost_catalog::{
    Catalog, Health, Node, Protocol, Replica, ServiceName,
    replica::{Applied, ReplicaNode},
    sender,
    wire::{self, Delta, ServerMessage, WireError, limits, server_message::Kind},
};

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

fn address(index: u32) -> SocketAddr {
    if index % 7 == 3 {
        SocketAddr::from((Ipv6Addr::from(u128::from(index) + 1), 80))
    } else {
        SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + index), 8080))
    }
}

fn node(index: u32, weight: u32) -> Node {
    Node { weight, ..Node::at(address(index)) }
}

fn nodes(count: u32) -> Vec<Node> {
    (0..count).map(|index| node(index, 1 + index % 5)).collect()
}

fn changed(catalog: &Catalog, changes: Vec<(&str, Vec<Node>)>) -> Catalog {
    let (next, refused) = catalog.updated(changes.into_iter().map(|(service, nodes)| (name(service), nodes)));
    assert_eq!(refused, []);
    next.unwrap_or_else(|| catalog.clone())
}

/// Sends every message over the wire.
fn deliver(replica: &mut Replica, messages: impl IntoIterator<Item = ServerMessage>) -> Result<Applied, WireError> {
    let mut applied = Applied::Pending;
    for message in messages {
        let bytes = message.encode_to_vec();
        assert!(bytes.len() <= limits::MESSAGE_BYTES);
        applied = replica.apply(wire::decode_server_message(&bytes)?)?;
    }
    Ok(applied)
}

fn assert_same(replica: &Replica, catalog: &Catalog) {
    assert_eq!(replica.hash(), catalog.hash());
    assert_eq!(replica.services().len(), catalog.services().len());
    for (name, service) in catalog.services() {
        let mut expected: Vec<_> =
            service.nodes().map(|node| (node.address.to_string(), node.weight, node.health)).collect();
        expected.sort();
        let held = replica.services().get(name.as_str()).unwrap();
        let held: Vec<_> =
            held.nodes().iter().map(|node| (node.address.to_string(), node.weight, node.health)).collect();
        assert_eq!(held, expected);
    }
}

#[test]
fn a_full_catalog_arrives_whole_and_a_delta_changes_one_node() {
    let first = changed(&Catalog::default(), vec![("web", nodes(10)), ("api", nodes(2))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    assert_same(&replica, &first);

    let mut web = nodes(10);
    web[4].weight = 99;
    let second = changed(&first, vec![("web", web)]);
    let messages = sender::delta(&first, &second);
    assert_eq!(messages.len(), 1);
    let Some(Kind::Delta(delta)) = &messages[0].kind else { panic!("{messages:?}") };
    assert_eq!(delta.services.len(), 1);
    assert_eq!((delta.services[0].upsert.len(), delta.services[0].remove.len()), (1, 0));
    let applied = deliver(&mut replica, messages).unwrap();
    assert_eq!(applied, Applied::Changed { version: second.version(), services: vec!["web".into()] });
    assert_same(&replica, &second);
}

#[test]
fn a_large_service_arrives_in_parts_and_is_swapped_in_whole() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3))]);
    let second = changed(&first, vec![("web", nodes(20_000))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let messages = sender::delta(&first, &second);
    assert!(messages.len() > 2, "{}", messages.len());
    let (last_part, parts) = messages[..messages.len() - 1].split_last().unwrap();
    deliver(&mut replica, parts.to_vec()).unwrap();
    assert_same(&replica, &first);
    deliver(&mut replica, [last_part.clone(), messages.last().unwrap().clone()]).unwrap();
    assert_same(&replica, &second);
    let mut fresh = Replica::default();
    deliver(&mut fresh, sender::full(&second)).unwrap();
    assert_same(&fresh, &second);
}

#[test]
fn what_a_full_catalog_does_not_name_is_gone() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3)), ("api", nodes(1))]);
    let second = changed(&first, vec![("api", vec![])]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let Applied::Changed { services, .. } = deliver(&mut replica, sender::full(&second)).unwrap() else { panic!() };
    assert_eq!(services, vec!["api".into()]);
    assert_same(&replica, &second);
}

#[test]
fn a_missed_delta_is_noticed_and_a_full_catalog_heals_it() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3))]);
    let second = changed(&first, vec![("web", nodes(4))]);
    let third = changed(&second, vec![("web", nodes(5))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let error = deliver(&mut replica, sender::delta(&second, &third)).unwrap_err();
    assert!(matches!(error, WireError::OutOfOrder(_)), "{error}");
    assert_same(&replica, &first);
    deliver(&mut replica, sender::full(&third)).unwrap();
    assert_same(&replica, &third);
}

#[test]
fn a_delta_whose_content_is_wrong_is_noticed_by_its_hash() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3))]);
    let second = changed(&first, vec![("web", nodes(4))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let mut messages = sender::delta(&first, &second);
    let Some(Kind::Delta(Delta { services, .. })) = &mut messages[0].kind else { panic!() };
    services[0].upsert.clear();
    assert!(matches!(deliver(&mut replica, messages), Err(WireError::HashMismatch { .. })));
    assert!(!replica.is_synced());
    deliver(&mut replica, sender::full(&second)).unwrap();
    assert_same(&replica, &second);
}

#[test]
fn whatever_does_not_add_up_is_not_taken_for_the_agents_until_everything_came_again() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3))]);
    let second = changed(&first, vec![("web", nodes(4))]);
    let third = changed(&second, vec![("web", nodes(5))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    assert!(deliver(&mut replica, sender::delta(&second, &third)).is_err());
    assert!(!replica.is_synced());
    deliver(&mut replica, sender::full(&third)).unwrap();
    assert!(replica.is_synced());
    replica.message_lost();
    assert!(!replica.is_synced());
    assert_same(&replica, &third);
}

#[test]
fn a_health_that_only_a_newer_agent_knows_is_not_picked_and_the_others_are() {
    let encoded = |health: i32, port: u16| {
        wire::Node { address: format!("10.0.0.1:{port}"), weight: 1, health, ..wire::Node::default() }.encode_to_vec()
    };
    let newer = ReplicaNode::decode(&encoded(99, 80)).unwrap();
    assert_eq!((newer.health, newer.is_pickable()), (Health::Critical, false));
    assert!(ReplicaNode::decode(&encoded(wire::Health::Passing.into(), 81)).unwrap().is_pickable());
}

#[test]
fn a_full_catalog_that_breaks_off_leaves_the_old_one_in_use() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3))]);
    let second = changed(&first, vec![("web", nodes(9)), ("api", nodes(1))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let messages: Vec<_> = sender::full(&second).collect();
    deliver(&mut replica, messages[..messages.len() - 1].to_vec()).unwrap();
    assert_same(&replica, &first);
    replica.stream_restarted();
    deliver(&mut replica, messages).unwrap();
    assert_same(&replica, &second);
}

#[test]
fn a_catalog_survives_the_disk_and_a_damaged_one_is_refused() {
    let catalog = changed(&Catalog::default(), vec![("web", nodes(30)), ("api", nodes(2))]);
    let mut stored = catalog.to_stored();
    let restored = Catalog::from_stored(stored.clone()).unwrap();
    assert_eq!((restored.hash(), restored.version()), (catalog.hash(), catalog.version()));
    stored.services[0].nodes.pop();
    assert_eq!(Catalog::from_stored(stored).unwrap_err(), WireError::HashMismatch { what: "api".into() });
}

#[test]
fn the_same_content_is_no_new_version_and_has_the_same_hash_whatever_its_history() {
    let first = changed(&Catalog::default(), vec![("web", nodes(5))]);
    assert!(first.updated([(name("web"), nodes(5))]).0.is_none());
    assert!(first.updated([(name("none"), Vec::<Node>::new())]).0.is_none());
    let detour = changed(
        &changed(&Catalog::default(), vec![("web", nodes(9)), ("api", nodes(1))]),
        vec![("api", vec![]), ("web", nodes(5))],
    );
    assert_eq!(detour.hash(), first.hash());
}

#[test]
fn a_node_too_large_for_the_wire_is_refused_and_its_service_keeps_the_others() {
    let mut big = node(1, 1);
    big.metadata.insert("blob".into(), "x".repeat(limits::NODE_BYTES));
    let (catalog, refused) = Catalog::default().updated([(name("web"), vec![node(0, 1), big])]);
    assert!(matches!(&refused[..], [(_, WireError::NodeTooLarge { .. })]));
    assert_eq!(catalog.unwrap().node_count(), 1);
}

fn any_node() -> impl Strategy<Value = Node> {
    let health = prop_oneof![Just(Health::Passing), Just(Health::Critical), Just(Health::Draining)];
    let protocol = prop_oneof![Just(Protocol::Http1), Just(Protocol::Http2)];
    let metadata = prop::collection::btree_map("[a-z]{0,3}", ".{0,5}", 0..3);
    (0u32..40, any::<u32>(), health, protocol, ".{0,8}", prop::collection::vec("[a-z]{1,3}", 0..3), metadata).prop_map(
        |(index, weight, health, protocol, id, tags, metadata)| Node {
            address: address(index),
            weight,
            health,
            protocol,
            id,
            zone: "z".repeat(index as usize % 3),
            version: String::new(),
            tags,
            metadata,
        },
    )
}

fn any_change() -> impl Strategy<Value = (String, Vec<Node>)> {
    ("[ab]", prop::collection::vec(any_node(), 0..25))
}

proptest! {
    #[test]
    fn a_node_survives_the_wire(node in any_node()) {
        prop_assert_eq!(Node::decode(&node.encode().unwrap()).unwrap(), node);
    }

    #[test]
    fn a_replica_follows_any_sequence_of_changes(
        changes in prop::collection::vec((any_change(), 0u8..10), 1..12),
    ) {
        let mut sent = Catalog::default();
        let mut current = Catalog::default();
        let mut replica = Replica::default();
        deliver(&mut replica, sender::full(&sent)).unwrap();
        for ((service, nodes), dice) in changes {
            current = changed(&current, vec![(&service, nodes)]);
            match dice {
                // A slow client skips versions,
                0..3 => continue,
                // or its stream starts anew.
                3 => {
                    replica.stream_restarted();
                    deliver(&mut replica, sender::full(&current)).unwrap();
                }
                _ => {
                    deliver(&mut replica, sender::delta(&sent, &current)).unwrap();
                }
            }
            sent = current.clone();
            assert_same(&replica, &current);
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Node::decode(&bytes);
        let mut replica = Replica::default();
        if let Ok(kind) = wire::decode_server_message(&bytes) {
            let _ = replica.apply(kind);
        }
    }

    #[test]
    fn no_damaged_message_makes_the_replica_panic_or_differ_unnoticed(
        place: prop::sample::Index,
        bit in 0u8..8,
        pick: prop::sample::Index,
    ) {
        let first = changed(&Catalog::default(), vec![("web", nodes(12)), ("api", nodes(3))]);
        let second = changed(&first, vec![("web", nodes(9))]);
        let mut replica = Replica::default();
        deliver(&mut replica, sender::full(&first)).unwrap();
        let mut messages: Vec<_> = sender::full(&second).chain(sender::delta(&first, &second)).collect();
        let message = messages.swap_remove(pick.index(messages.len()));
        let mut bytes = message.encode_to_vec();
        let at = place.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(kind) = wire::decode_server_message(&bytes) {
            let _ = replica.apply(kind);
        }
        // Whatever it took in, the next full catalog puts it right.
        replica.stream_restarted();
        deliver(&mut replica, sender::full(&second)).unwrap();
        assert_same(&replica, &second);
    }
}

#[test]
fn a_map_has_one_encoding() {
    let mut one = node(1, 1);
    one.metadata = BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]);
    let mut other = node(1, 1);
    other.metadata = BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(one.encode().unwrap(), other.encode().unwrap());
}
