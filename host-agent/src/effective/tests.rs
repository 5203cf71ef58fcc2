//! What is served of several watches, a disk copy and a guard.

use waypost_catalog::{Health, Protocol};
use waypost_registry::{Format, KeyChange, KeyValue, ResyncReason};

use super::*;

fn watch(prefix: &str) -> Watch {
    Watch { prefix: prefix.into(), format: Format::Waypost, protocol: Protocol::Http1 }
}

fn key(key: &str, address: &str, health: &str) -> Arc<KeyValue> {
    let (address, port) = address.split_once(':').unwrap();
    let value = format!(r#"{{"address":"{address}","port":{port},"health":"{health}"}}"#).into_bytes();
    Arc::new(KeyValue { key: key.into(), value, mod_revision: 1, create_revision: 1, lease: 0 })
}

fn synced(entries: &[(&str, &str)]) -> MirrorEvent {
    let entries = entries.iter().map(|(name, address)| key(name, address, "passing")).collect();
    MirrorEvent::Synced { entries, revision: 1, reason: ResyncReason::First }
}

fn put(name: &str, address: &str, health: &str) -> MirrorEvent {
    MirrorEvent::Changed { changes: vec![KeyChange::Put(key(name, address, health))], revision: 2 }
}

fn deleted(names: &[&str]) -> MirrorEvent {
    let delete = |name: &&str| KeyChange::Delete { key: (*name).to_owned(), revision: 3 };
    MirrorEvent::Changed { changes: names.iter().map(delete).collect(), revision: 3 }
}

fn shown(catalog: &Catalog) -> Vec<String> {
    let services = catalog.services().iter();
    services.flat_map(|(name, service)| service.nodes().map(move |node| format!("{name} {}", node.address))).collect()
}

fn disk(nodes: &[(&str, &str)]) -> Catalog {
    let mut services: BTreeMap<ServiceName, Vec<Node>> = BTreeMap::new();
    for (name, address) in nodes {
        services.entry(ServiceName::new(name).unwrap()).or_default().push(Node::at(address.parse().unwrap()));
    }
    Catalog::default().updated(services).0.unwrap()
}

fn effective(watches: &[&str], disk: Option<Catalog>) -> (Effective, Instant) {
    let now = Instant::now();
    let watches = watches.iter().map(|prefix| watch(prefix)).collect();
    let mut effective = Effective::new(watches, config::Guard::default(), String::new(), disk, now);
    for kind in RuleKind::ALL {
        effective.apply_rules(kind, &synced(&[]));
    }
    (effective, now)
}

fn off() -> config::Guard {
    config::Guard { enabled: false, ..config::Guard::default() }
}

#[test]
fn nothing_is_served_before_the_first_full_state_and_an_empty_one_counts() {
    let (mut effective, now) = effective(&["/a/"], None);
    assert!(effective.current().is_none() && effective.publish(now).is_none());
    effective.apply(&watch("/a/"), &synced(&[]), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), [""; 0]);
    assert!(effective.publish(now).is_none(), "nothing changed since");
}

#[test]
fn puts_and_deletes_make_versions() {
    let (mut effective, now) = effective(&["/a/"], None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    let first = effective.publish(now).unwrap();
    effective.apply(&watch("/a/"), &put("/a/web/2", "10.0.0.2:80", "passing"), now);
    effective.apply(&watch("/a/"), &put("/a/web/3", "10.0.0.3:80", "passing"), now);
    let second = effective.publish(now).unwrap();
    assert_eq!(second.version(), first.version() + 1, "one version for all that was taken in");
    assert_eq!(shown(&second), ["web 10.0.0.1:80", "web 10.0.0.2:80", "web 10.0.0.3:80"]);
    effective.apply(&watch("/a/"), &deleted(&["/a/web/2"]), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.1:80", "web 10.0.0.3:80"]);
}

#[test]
fn nothing_is_served_until_all_watches_are_synced_or_one_was_waited_for_long_enough() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    assert!(effective.publish(now).is_none());
    assert_eq!(effective.next_deadline(), Some(now + FIRST_WAIT));
    let published = effective.publish(now + FIRST_WAIT).unwrap();
    assert_eq!(shown(&published), ["web 10.0.0.1:80"]);
    assert_eq!(effective.next_deadline(), None);
}

#[test]
fn a_service_of_several_watches_has_one_node_per_address_and_a_passing_one_first() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    effective.apply(&watch("/a/"), &synced(&[]), now);
    effective.apply(&watch("/b/"), &synced(&[("/b/web/1", "10.0.0.1:80"), ("/b/web/2", "10.0.0.2:80")]), now);
    effective.apply(&watch("/a/"), &put("/a/web/x", "10.0.0.1:80", "critical"), now);
    let catalog = effective.publish(now).unwrap();
    let nodes: Vec<_> = catalog.services()["web"].nodes().map(|node| (&*node.id, node.health)).collect();
    assert_eq!(nodes, [("1", Health::Passing), ("2", Health::Passing)]);
    effective.apply(&watch("/a/"), &put("/a/web/x", "10.0.0.1:80", "passing"), now);
    let catalog = effective.publish(now).unwrap();
    assert_eq!(catalog.services()["web"].nodes().next().unwrap().id, "x", "the earlier watch of two that pass");
}

#[test]
fn the_disk_copy_is_served_at_once_and_replaced_by_the_first_full_state() {
    let copy = disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("web", "10.0.0.3:80")]);
    let (mut effective, now) = effective(&["/a/"], Some(copy.clone()));
    assert_eq!(shown(&effective.current().unwrap()), shown(&copy));
    assert!(!effective.figures().complete);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80"), ("/a/web/2", "10.0.0.2:80")]), now);
    let next = effective.publish(now).unwrap();
    assert_eq!(shown(&next), ["web 10.0.0.1:80", "web 10.0.0.2:80"]);
    assert!(next.version() > copy.version() && effective.figures().complete);
}

#[test]
fn the_disk_copy_counts_as_the_previous_nodes_of_the_guard() {
    let copy = disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("api", "10.0.0.3:80")]);
    let (mut effective, now) = effective(&["/a/"], Some(copy.clone()));
    effective.apply(&watch("/a/"), &synced(&[]), now);
    assert!(effective.publish(now).is_none(), "an empty etcd changes nothing for now");
    assert_eq!((effective.figures().held_nodes, effective.figures().holds), (3, 2));
    let later = effective.next_deadline().unwrap();
    assert_eq!(later, now + config::Guard::default().grace);
    assert_eq!(shown(&effective.publish(later).unwrap()), [""; 0]);
}

#[test]
fn the_disk_copys_remainder_stays_until_all_watches_are_synced_and_no_longer() {
    let copy = disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("api", "10.0.0.3:80"), ("old", "10.0.0.4:80")]);
    let (mut effective, now) = effective(&["/a/", "/b/"], Some(copy));
    effective.set_guard(off(), now);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80"), ("/a/web/2", "10.0.0.2:80")]), now);
    let version = effective.publish(now).map_or(1, |catalog| catalog.version());
    assert_eq!(effective.current().unwrap().node_count(), 4);
    effective.apply(&watch("/a/"), &deleted(&["/a/web/2"]), now);
    let next = effective.publish(now).unwrap();
    assert_eq!(shown(&next), ["api 10.0.0.3:80", "old 10.0.0.4:80", "web 10.0.0.1:80"], "a synced watch may delete");
    assert!(next.version() > version);
    effective.apply(&watch("/b/"), &synced(&[("/b/api/3", "10.0.0.3:80")]), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), ["api 10.0.0.3:80", "web 10.0.0.1:80"]);
}

#[test]
fn moving_to_another_prefix_leaves_no_gap() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    effective.set_guard(off(), now);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    effective.apply(&watch("/b/"), &synced(&[("/b/api/1", "10.0.0.2:80")]), now);
    effective.publish(now);
    effective.set_watches(&[watch("/b/"), watch("/c/")]);
    assert!(effective.publish(now).is_none(), "what only the removed watch knew is kept");
    effective.apply(&watch("/b/"), &deleted(&["/b/api/1"]), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.1:80"], "a watch that stayed goes on");
    effective.apply(&watch("/c/"), &synced(&[("/c/web/1", "10.0.0.9:80")]), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.9:80"]);
}

#[test]
fn a_removed_watch_takes_its_nodes_with_it() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    effective.set_guard(off(), now);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    effective.apply(&watch("/b/"), &synced(&[("/b/api/1", "10.0.0.2:80")]), now);
    effective.publish(now);
    effective.set_watches(&[watch("/b/")]);
    assert_eq!(shown(&effective.publish(now).unwrap()), ["api 10.0.0.2:80"]);
}

#[test]
fn an_exempt_service_is_not_guarded_and_others_are() {
    let (mut effective, now) = effective(&["/a/"], None);
    let exempt = vec![ServiceName::new("batch").unwrap()];
    effective.set_guard(config::Guard { exempt, ..config::Guard::default() }, now);
    effective.apply(&watch("/a/"), &synced(&[("/a/batch/1", "10.0.0.1:80"), ("/a/web/1", "10.0.0.2:80")]), now);
    effective.publish(now);
    effective.apply(&watch("/a/"), &deleted(&["/a/batch/1", "/a/web/1"]), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.2:80"]);
}

#[test]
fn a_switched_off_guard_lets_go_of_what_it_held() {
    let (mut effective, now) = effective(&["/a/"], None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    effective.publish(now);
    effective.apply(&watch("/a/"), &deleted(&["/a/web/1"]), now);
    assert!(effective.publish(now).is_none());
    effective.set_guard(off(), now);
    assert_eq!(shown(&effective.publish(now).unwrap()), [""; 0]);
    assert_eq!((effective.figures().held_nodes, effective.figures().holds), (0, 1), "counters never go back");
}

#[test]
fn without_the_watch_that_was_asked_first_the_other_one_says_how_a_node_is() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    effective.apply(&watch("/b/"), &synced(&[("/b/web/x", "10.0.0.1:80"), ("/b/web/2", "10.0.0.2:80")]), now);
    effective.apply(&watch("/b/"), &put("/b/web/x", "10.0.0.1:80", "critical"), now);
    let served = |catalog: &Catalog| -> Vec<_> {
        catalog.services()["web"].nodes().map(|node| (node.id.clone(), node.health)).collect()
    };
    let both = [("1".to_owned(), Health::Passing), ("2".to_owned(), Health::Passing)];
    assert_eq!(served(&effective.publish(now).unwrap()), both);
    effective.set_watches(&[watch("/b/")]);
    let one = [("x".to_owned(), Health::Critical), ("2".to_owned(), Health::Passing)];
    assert_eq!(served(&effective.publish(now).unwrap()), one);
}

#[test]
fn reordered_watches_are_merged_in_their_new_order() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/first", "10.0.0.1:80")]), now);
    effective.apply(&watch("/b/"), &synced(&[("/b/web/second", "10.0.0.1:80")]), now);
    let id = |catalog: &Catalog| catalog.services()["web"].nodes().next().unwrap().id.clone();
    assert_eq!(id(&effective.publish(now).unwrap()), "first");
    effective.set_watches(&[watch("/b/"), watch("/a/")]);
    assert_eq!(id(&effective.publish(now).unwrap()), "second");
}

#[test]
fn a_watch_that_never_syncs_keeps_the_disk_copy_for_a_while_only() {
    let copy = disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("old", "10.0.0.4:80")]);
    let (mut effective, start) = effective(&["/a/", "/b/"], Some(copy));
    effective.set_guard(off(), start);
    effective.publish(start);
    assert_eq!(effective.next_deadline(), None, "while etcd cannot be reached at all, nothing is dropped");
    let now = start + Duration::from_secs(3600);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
    effective.publish(now);
    assert_eq!(effective.current().unwrap().node_count(), 3);
    let until = now + off().grace;
    assert_eq!(effective.next_deadline(), Some(until));
    assert_eq!(shown(&effective.publish(until).unwrap()), ["web 10.0.0.1:80"]);
    assert_eq!(effective.next_deadline(), None);
    assert!(!effective.figures().complete);
}

fn answer(name: &str, addresses: &[[u8; 4]]) -> Resolution {
    let addresses = addresses.iter().map(|ip| std::net::IpAddr::from(*ip)).collect::<Arc<[_]>>();
    Resolution { name: HostName::new(name).unwrap(), addresses: Some(addresses).filter(|known| !known.is_empty()) }
}

#[test]
fn a_node_by_name_is_served_at_the_addresses_that_the_name_stands_for() {
    let (mut effective, now) = effective(&["/a/", "/b/"], None);
    assert_eq!(effective.take_names(), None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "h1:80"), ("/a/web/2", "10.0.0.9:80")]), now);
    effective.apply(&watch("/b/"), &synced(&[("/b/api/1", "h1:81")]), now);
    let h1 = HostName::new("h1").unwrap();
    assert_eq!(effective.take_names(), Some(BTreeSet::from([h1.clone()])));
    assert!(effective.publish(now).is_none(), "the first version waits for the answer");
    effective.resolve(&answer("h1", &[[10, 0, 0, 1]]));
    let both = ["api 10.0.0.1:81", "web 10.0.0.1:80", "web 10.0.0.9:80"];
    assert_eq!(shown(&effective.publish(now).unwrap()), both);
    effective.resolve(&answer("h1", &[[10, 0, 0, 1]]));
    assert!(effective.publish(now).is_none(), "nothing changed");
    effective.resolve(&answer("h1", &[[10, 0, 0, 1], [10, 0, 0, 2]]));
    let more = ["api 10.0.0.1:81", "api 10.0.0.2:81", "web 10.0.0.1:80", "web 10.0.0.2:80", "web 10.0.0.9:80"];
    assert_eq!(shown(&effective.publish(now).unwrap()), more);
    effective.apply(&watch("/b/"), &deleted(&["/b/api/1"]), now);
    assert_eq!(effective.take_names(), Some(BTreeSet::from([h1])), "another watch wants the name still");
    effective.apply(&watch("/a/"), &deleted(&["/a/web/1"]), now);
    assert_eq!(effective.take_names(), Some(BTreeSet::new()));
}

#[test]
fn a_name_that_stands_for_another_address_takes_its_node_there_and_the_guard_holds_nothing() {
    let (mut effective, now) = effective(&["/a/"], None);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "h1:80")]), now);
    for ips in
        [&[[10, 0, 0, 1]][..], &[[10, 0, 0, 2]], &[[10, 0, 0, 3], [10, 0, 0, 4]], &[[10, 0, 0, 5], [10, 0, 0, 6]]]
    {
        effective.resolve(&answer("h1", ips));
        let expected: Vec<String> = ips.iter().map(|[a, b, c, d]| format!("web {a}.{b}.{c}.{d}:80")).collect();
        assert_eq!(shown(&effective.publish(now).unwrap()), expected);
    }
}

#[test]
fn what_was_served_before_stays_until_the_names_are_looked_up() {
    let (mut effective, now) = effective(&["/a/"], Some(disk(&[("web", "10.0.0.1:80"), ("old", "10.0.0.2:80")])));
    effective.set_guard(off(), now);
    effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "h1:80"), ("/a/web/2", "gone:80")]), now);
    assert!(effective.publish(now).is_none());
    effective.resolve(&answer("gone", &[]));
    assert!(effective.publish(now).is_none() && !effective.figures().complete);
    effective.resolve(&answer("h1", &[[10, 0, 0, 1]]));
    assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.1:80"]);
    assert!(effective.figures().complete);
}

#[test]
fn a_restart_in_the_grace_lets_held_nodes_go_when_they_were_to_go() {
    let second = Duration::from_secs(1);
    let served = [("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("web", "10.0.0.3:80")];
    for etcd_answers in [true, false] {
        let (mut effective, now) = effective(&["/a/"], Some(disk(&served)));
        let held = |address: &str, left: u32| HeldNode {
            service: ServiceName::new("web").unwrap(),
            address: address.parse().unwrap(),
            until: now + second * left,
        };
        effective.hold([held("10.0.0.2:80", 9), held("10.0.0.3:80", 9), held("10.0.0.9:80", 9)], now);
        assert_eq!(effective.held().len(), 2, "what is served no more is not held either");
        if etcd_answers {
            effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
        }
        effective.publish(now + second * 8);
        assert_eq!(shown(&effective.current().unwrap()).len(), 3, "they are served on");
        assert_eq!(effective.next_deadline(), Some(now + second * 9));
        assert_eq!(shown(&effective.publish(now + second * 9).unwrap()), ["web 10.0.0.1:80"]);
    }
}

#[test]
fn other_settings_of_guard_and_watches_give_held_nodes_no_new_grace() {
    let (mut effective, now) = effective(&["/a/"], None);
    let second = Duration::from_secs(1);
    let two = [("/a/web/1", "10.0.0.1:80"), ("/a/web/2", "10.0.0.2:80")];
    effective.apply(&watch("/a/"), &synced(&two), now);
    effective.publish(now);
    effective.apply(&watch("/a/"), &deleted(&["/a/web/1", "/a/web/2"]), now);
    effective.publish(now);
    let until = now + config::Guard::default().grace;
    effective.set_guard(config::Guard { max_loss: 0.7, ..config::Guard::default() }, now + second * 5);
    effective.set_watches(&[watch("/b/")]);
    assert!(effective.publish(now + second * 6).is_none(), "they are served on");
    assert_eq!(effective.held().iter().map(|held| held.until).collect::<Vec<_>>(), [until; 2]);
    assert_eq!(shown(&effective.publish(until).unwrap()), [""; 0]);
}
