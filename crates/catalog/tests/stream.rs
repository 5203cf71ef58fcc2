//! Both ends of the stream together: whatever changes, the replica ends up with what the sender holds; and whatever
//! bytes arrive, it neither panics nor loses what was good.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use waypost_catalog::{
    Catalog, Change, Health, Node, Placement, Protocol, Replica, Routes, ServiceName,
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
    assert_eq!(replica.routes(), &**catalog.routes());
    assert_eq!(replica.services().len(), catalog.services().len());
    for (name, service) in catalog.services() {
        let mut expected: Vec<_> =
            service.nodes().map(|node| (node.address.to_string(), node.effective_weight(), node.health)).collect();
        expected.sort();
        let held = replica.services().get(name.as_str()).unwrap();
        assert_eq!(held.policy(), service.policy());
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
    assert_eq!(applied, Applied::Changed { version: second.version(), services: vec!["web".into()], routes: false });
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

fn with_policy(catalog: &Catalog, service: &str, nodes: Vec<Node>, policy: &'static str) -> Catalog {
    let change = Change { service: name(service), nodes, policy: Bytes::from_static(policy.as_bytes()) };
    catalog.changed([change], None).0.unwrap()
}

fn with_routes(catalog: &Catalog, routes: &[(&str, &'static str)]) -> Catalog {
    let routes = routes.iter().map(|(id, json)| ((*id).to_owned(), Bytes::from_static(json.as_bytes())));
    catalog.changed(Vec::<Change<Node>>::new(), Some(Arc::new(Routes::new(routes).unwrap()))).0.unwrap()
}

#[test]
fn a_policy_arrives_and_goes_with_the_nodes_that_it_is_for() {
    let first = changed(&Catalog::default(), vec![("web", nodes(3)), ("api", nodes(1))]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let mut placed = nodes(3);
    placed[1].placement = Placement { weight: Some(7), priority: 2, warmup: 250, subsets: 0b101 };
    placed[1].zone = "eu-1".into();
    let second = with_policy(&first, "web", placed, r#"{"strategy":"random"}"#);
    let messages = sender::delta(&first, &second);
    assert_eq!(messages.len(), 1, "nodes and policy change in one step");
    let applied = deliver(&mut replica, messages).unwrap();
    assert_eq!(applied, Applied::Changed { version: second.version(), services: vec!["web".into()], routes: false });
    assert_same(&replica, &second);
    let web = &replica.services()["web"];
    assert_eq!(&web.policy()[..], br#"{"strategy":"random"}"#);
    let node = &web.nodes()[1];
    assert_eq!((node.weight, node.priority, node.warmup, node.subsets, &*node.zone), (7, 2, 250, 0b101, "eu-1"));
    // Nodes alone change: the policy stays and is not sent again.
    let third = changed(&second, vec![("web", nodes(4))]);
    let messages = sender::delta(&second, &third);
    let Some(Kind::Delta(delta)) = &messages[0].kind else { panic!("{messages:?}") };
    assert_eq!(delta.services[0].policy, None);
    deliver(&mut replica, messages).unwrap();
    assert!(!replica.services()["web"].policy().is_empty());
    // And another one, which came by the full catalog, ends with a delta.
    let mut fresh = Replica::default();
    deliver(&mut fresh, sender::full(&third)).unwrap();
    let fourth = with_policy(&third, "web", nodes(4), "");
    for replica in [&mut replica, &mut fresh] {
        deliver(replica, sender::delta(&third, &fourth)).unwrap();
        assert!(replica.services()["web"].policy().is_empty());
        assert_same(replica, &fourth);
    }
}

#[test]
fn a_large_service_in_parts_brings_its_policy() {
    let first = with_policy(&Catalog::default(), "web", nodes(20_000), "{}");
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    assert_eq!(&replica.services()["web"].policy()[..], b"{}");
    assert_same(&replica, &first);
}

#[test]
fn routes_arrive_change_and_go() {
    let first = with_routes(&changed(&Catalog::default(), vec![("web", nodes(3))]), &[("a", "1"), ("b", "2")]);
    let mut replica = Replica::default();
    let applied = deliver(&mut replica, sender::full(&first)).unwrap();
    assert_eq!(applied, Applied::Changed { version: first.version(), services: vec!["web".into()], routes: true });
    assert_same(&replica, &first);
    let second = with_routes(&first, &[("b", "2"), ("c", "3")]);
    let applied = deliver(&mut replica, sender::delta(&first, &second)).unwrap();
    assert_eq!(applied, Applied::Changed { version: second.version(), services: vec![], routes: true });
    assert_same(&replica, &second);
    let third = with_routes(&second, &[]);
    deliver(&mut replica, sender::delta(&second, &third)).unwrap();
    assert_same(&replica, &third);
    // A full catalog without any ends them too.
    deliver(&mut replica, sender::full(&second)).unwrap();
    assert_same(&replica, &second);
    deliver(&mut replica, sender::full(&third)).unwrap();
    assert_same(&replica, &third);
}

#[test]
fn routes_that_do_not_match_their_hash_change_nothing() {
    let first = with_routes(&changed(&Catalog::default(), vec![("web", nodes(1))]), &[("a", "1")]);
    let second = with_routes(&first, &[("a", "2")]);
    let mut replica = Replica::default();
    deliver(&mut replica, sender::full(&first)).unwrap();
    let mut messages = sender::delta(&first, &second);
    let Some(Kind::Routes(routes)) = &mut messages[0].kind else { panic!("{messages:?}") };
    routes.routes[0].document = Bytes::from_static(b"3");
    assert_eq!(deliver(&mut replica, messages), Err(WireError::HashMismatch { what: "routes".into() }));
    assert_same(&replica, &first);
}

#[test]
fn more_routes_than_fit_a_message_are_refused() {
    let large = (0..100).map(|id| (id.to_string(), Bytes::from(vec![b'x'; 10_000])));
    let error = Routes::new(large).unwrap_err();
    assert_eq!((error.routes, error.bytes > limits::ROUTES_BYTES), (100, true));
}

#[test]
fn a_stored_catalog_keeps_policies_and_routes() {
    let catalog = with_routes(&with_policy(&Catalog::default(), "web", nodes(2), "{}"), &[("a", "1")]);
    let stored = wire::StoredCatalog::decode(&*catalog.to_stored().encode_to_vec()).unwrap();
    let back = Catalog::from_stored(stored.clone()).unwrap();
    assert_eq!(back.hash(), catalog.hash());
    assert_eq!((&back.services()["web"].policy()[..], back.routes()), (&b"{}"[..], catalog.routes()));
    let mut damaged = stored;
    damaged.services[0].policy = Bytes::from_static(b"[]");
    assert!(Catalog::from_stored(damaged).is_err());
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
    let placement = (any::<Option<u32>>(), any::<u8>(), 0u16..=1_000, any::<u64>());
    let tags = prop::collection::vec("[a-z]{1,3}", 0..3);
    (0u32..40, any::<u32>(), health, protocol, ".{0,8}", tags, metadata, placement).prop_map(
        |(index, weight, health, protocol, id, tags, metadata, (placed, priority, warmup, subsets))| Node {
            address: address(index),
            weight,
            health,
            protocol,
            id,
            zone: "z".repeat(index as usize % 3),
            version: String::new(),
            tags,
            metadata,
            placement: Placement { weight: placed, priority, warmup, subsets },
        },
    )
}

fn any_change() -> impl Strategy<Value = (String, Vec<Node>, String, u8)> {
    ("[ab]", prop::collection::vec(any_node(), 0..25), "[xy]{0,2}", 0u8..4)
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
        for ((service, nodes, policy, routes), dice) in changes {
            let change = Change { service: name(&service), nodes, policy: policy.into() };
            let routes = (0..routes).map(|id| (id.to_string(), Bytes::from(vec![dice])));
            let routes = Arc::new(Routes::new(routes).unwrap());
            current = current.changed([change], Some(routes)).0.unwrap_or(current);
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
