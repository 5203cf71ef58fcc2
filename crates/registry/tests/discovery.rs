//! Services and nodes against a real etcd: found, picked from many threads, followed.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

use etcd_client::Client;
use waypost_registry::{
    Discovery, Format, HubError, HubOptions, NodeEvent, NodeEvents, Registry, Restart, ResyncReason, Strategy,
    catalog::{Node, Protocol},
};
use waypost_registry_testing::{Etcd, PATIENCE, eventually};

const PREFIX: &str = "/waypost/services/";

async fn put(client: &Client, path: &str, port: u16, more: &str) {
    let value = format!(r#"{{"address":"10.0.0.1","port":{port}{more}}}"#);
    client.kv_client().put(format!("{PREFIX}{path}"), value, None).await.unwrap();
}

async fn delete(client: &Client, path: &str) {
    client.kv_client().delete(format!("{PREFIX}{path}"), None).await.unwrap();
}

fn discover(registry: &Registry) -> Discovery {
    registry.discover(PREFIX, Format::Waypost, Protocol::Http1).unwrap()
}

async fn ready(registry: &Registry) -> Discovery {
    let discovery = discover(registry);
    discovery.ready(PATIENCE).await.unwrap();
    discovery
}

async fn next(events: &mut NodeEvents) -> NodeEvent {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time").expect("no end")
}

fn ports(nodes: &[Arc<Node>]) -> Vec<u16> {
    nodes.iter().map(|node| node.address.port()).collect()
}

/// What a subscriber makes of the events, each checked against what he has.
#[derive(Default)]
struct Copy {
    services: BTreeMap<String, BTreeMap<SocketAddr, Arc<Node>>>,
    restarts: Vec<Restart>,
}

impl Copy {
    fn apply(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Added { service, node } => {
                assert_eq!(self.services.entry(service.to_string()).or_default().insert(node.address, node), None);
            }
            NodeEvent::Changed { service, old, new } => {
                assert!(old != new && old.address == new.address);
                assert_eq!(self.services.get_mut(&*service).unwrap().insert(new.address, new), Some(old));
            }
            NodeEvent::Removed { service, node } => {
                let nodes = self.services.get_mut(&*service).unwrap();
                assert_eq!(nodes.remove(&node.address), Some(node));
                if nodes.is_empty() {
                    self.services.remove(&*service);
                }
            }
            NodeEvent::Resynchronised { reason, services } => {
                self.restarts.push(reason);
                let nodes = |nodes: &[Arc<Node>]| nodes.iter().map(|node| (node.address, Arc::clone(node))).collect();
                self.services = services.iter().map(|(service, of)| (service.to_string(), nodes(of))).collect();
            }
        }
    }

    fn is(&self, discovery: &Discovery) -> bool {
        let services = discovery.services();
        services.len() == self.services.len()
            && services.iter().all(|service| {
                let nodes = discovery.nodes(service);
                let copy = &self.services[service.as_str()];
                nodes.len() == copy.len() && nodes.iter().all(|node| copy.get(&node.address) == Some(node))
            })
    }
}

#[tokio::test]
async fn nodes_come_change_and_go_and_only_healthy_ones_are_picked() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, "web/1", 1, "").await;
    put(&client, "web/2", 2, r#","health":"critical""#).await;
    put(&client, "api/1", 3, r#","weight":0"#).await;
    let registry = Registry::new(etcd.connector());
    let discovery = ready(&registry).await;
    let names: Vec<_> = discovery.services().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["api", "web"]);
    assert_eq!((ports(&discovery.nodes("web")), ports(&discovery.healthy("web"))), (vec![1, 2], vec![1]));
    for strategy in Strategy::ALL {
        assert_eq!(discovery.pick("web", strategy).unwrap().address.port(), 1);
        assert_eq!((discovery.pick("api", strategy), discovery.pick("none", strategy)), (None, None));
    }

    let mut events = discovery.subscribe();
    let NodeEvent::Resynchronised { reason, services } = next(&mut events).await else { panic!("no start") };
    assert_eq!((reason, services.len()), (Restart::Subscribed, 2));
    put(&client, "web/2", 2, r#","weight":7"#).await;
    let NodeEvent::Changed { service, old, new } = next(&mut events).await else { panic!("no change") };
    assert_eq!((service.as_str(), old.is_pickable(), new.is_pickable(), new.weight), ("web", false, true, 7));
    assert_eq!(ports(&discovery.healthy("web")), [1, 2], "who is told sees it");
    put(&client, "new/1", 9, "").await;
    assert!(matches!(next(&mut events).await, NodeEvent::Added { service, node }
        if service.as_str() == "new" && discovery.pick("new", Strategy::Random) .as_ref() == Some(&node)));
    delete(&client, "web/1").await;
    assert!(matches!(next(&mut events).await, NodeEvent::Removed { node, .. } if node.address.port() == 1));
    delete(&client, "web/2").await;
    assert!(matches!(next(&mut events).await, NodeEvent::Removed { node, .. } if node.address.port() == 2));
    assert_eq!((discovery.nodes("web").len(), discovery.services().len()), (0, 2));
}

#[tokio::test]
async fn a_value_that_cannot_be_read_takes_no_node_away() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, "web/1", 1, "").await;
    let registry = Registry::new(etcd.connector());
    let discovery = ready(&registry).await;
    client.kv_client().put(format!("{PREFIX}web/1"), "{", None).await.unwrap();
    eventually("it is counted", || async { (discovery.undecodable() == 1).then_some(()) }).await;
    assert_eq!(ports(&discovery.nodes("web")), [1]);
    assert!(discovery.last_errors()[0].contains("web/1"), "{:?}", discovery.last_errors());
}

#[tokio::test]
async fn a_host_that_has_a_name_is_looked_up_before_the_services_are_ready() {
    let etcd = Etcd::start().await;
    let value = r#"{"address":"localhost","port":7}"#;
    etcd.client().await.put(format!("{PREFIX}web/1"), value, None).await.unwrap();
    let registry = Registry::new(etcd.connector());
    let discovery = ready(&registry).await;
    let nodes = discovery.nodes("web");
    assert_eq!(ports(&nodes), [7]);
    assert!(nodes[0].address.ip().is_loopback());
}

#[tokio::test]
async fn all_views_of_a_prefix_share_one_watch() {
    let etcd = Etcd::start().await;
    let registry = Registry::new(etcd.connector());
    let (first, second) = (ready(&registry).await, ready(&registry).await);
    let keys = registry.keys(PREFIX).unwrap();
    etcd.has_watchers(1).await;
    drop((first, keys));
    put(&etcd.client().await, "web/1", 1, "").await;
    eventually("the node is there", || async { second.pick("web", Strategy::RoundRobin) }).await;
    assert_eq!(etcd.watchers().await, 1);
    let events = second.subscribe();
    drop(second);
    assert_eq!(ports(&events.discovery().nodes("web")), [1]);
    drop(events);
    etcd.has_watchers(0).await;
    let error = registry.discover("/waypost/services", Format::Waypost, Protocol::Http1).err().unwrap();
    assert_eq!(error, HubError::Prefix { prefix: "/waypost/services".into() });
}

#[tokio::test]
async fn threads_that_pick_together_keep_the_exact_proportions() {
    const ROUNDS: usize = 5_000;
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    for (port, weight) in [(1, 1), (2, 2), (3, 5), (4, 0)] {
        put(&client, &format!("web/{port}"), port, &format!(r#","weight":{weight}"#)).await;
    }
    let registry = Registry::new(etcd.connector());
    let discovery = ready(&registry).await;
    for (strategy, shares) in [(Strategy::WeightedRoundRobin, [1, 2, 5, 0]), (Strategy::RoundRobin, [1, 1, 1, 0])] {
        let threads = 4;
        let work = || {
            let mut counts = [0; 4];
            for _ in 0..ROUNDS * shares.iter().sum::<usize>() {
                counts[usize::from(discovery.pick("web", strategy).unwrap().address.port()) - 1] += 1;
            }
            counts
        };
        let mut counts = [0; 4];
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in running {
                for (sum, count) in counts.iter_mut().zip(thread.join().unwrap()) {
                    *sum += count;
                }
            }
        });
        assert_eq!(counts, shares.map(|share| share * ROUNDS * threads), "{strategy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn picks_go_on_while_nodes_change_and_never_give_what_may_not_be_picked() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, "web/1", 1, "").await;
    let registry = Registry::new(etcd.connector());
    let discovery = ready(&registry).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let pickers: Vec<_> = Strategy::ALL
        .into_iter()
        .map(|strategy| {
            let (discovery, stop) = (discovery.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut picks = 0u64;
                while !stop.is_cancelled() {
                    let node = discovery.pick("web", strategy).expect("one is always there");
                    assert!(node.is_pickable());
                    picks += 1;
                    std::thread::yield_now();
                }
                picks
            })
        })
        .collect();
    let mut events = discovery.subscribe();
    let mut copy = Copy::default();
    let began = Instant::now();
    for round in 1..=200 {
        put(&client, "web/2", 2, &format!(r#","weight":{}"#, round % 3)).await;
        put(&client, &format!("other/{round}"), round, "").await;
        let health = if round % 2 == 0 { "draining" } else { "passing" };
        put(&client, "web/3", 3, &format!(r#","health":"{health}""#)).await;
    }
    delete(&client, "other/200").await;
    while !(copy.services.get("other").is_some_and(|nodes| nodes.len() == 199) && copy.is(&discovery)) {
        assert!(began.elapsed() < PATIENCE);
        copy.apply(next(&mut events).await);
    }
    assert_eq!(copy.restarts, [Restart::Subscribed]);
    stop.cancel();
    for picker in pickers {
        assert!(picker.join().unwrap() > 0);
    }
}

#[tokio::test]
async fn a_slow_subscriber_of_nodes_is_told_and_goes_on_from_the_present_state() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let registry = Registry::with_options(etcd.connector(), HubOptions { queue: 4, ..HubOptions::default() });
    let discovery = ready(&registry).await;
    let mut events = discovery.subscribe();
    let mut copy = Copy::default();
    copy.apply(next(&mut events).await);
    for port in 1..=100 {
        put(&client, &format!("web/{port:03}"), port, "").await;
        // Each for itself, so that they are many events and not one.
        eventually("it is there", || async { (discovery.nodes("web").len() == usize::from(port)).then_some(()) }).await;
    }
    delete(&client, "web/001").await;
    eventually("it is gone", || async { (discovery.nodes("web").len() == 99).then_some(()) }).await;
    copy.apply(next(&mut events).await);
    assert_eq!(copy.restarts, [Restart::Subscribed, Restart::Lagged]);
    assert!(copy.is(&discovery));
    put(&client, "web/001", 1, "").await;
    assert!(matches!(next(&mut events).await, NodeEvent::Added { node, .. } if node.address.port() == 1));
}

#[tokio::test]
async fn a_wiped_etcd_is_a_new_start_and_after_the_shutdown_picks_go_on() {
    let mut etcd = Etcd::start().await;
    let client = etcd.client().await;
    for port in 1..10 {
        put(&client, "web/1", port, "").await;
    }
    let registry = Registry::new(etcd.connector());
    let discovery = ready(&registry).await;
    let mut events = discovery.subscribe();
    next(&mut events).await;
    etcd.wipe().await;
    let NodeEvent::Resynchronised { reason, services } = next(&mut events).await else { panic!("no start") };
    assert_eq!((reason, services.len()), (Restart::Mirror(ResyncReason::RevisionRegressed), 0));
    put(&etcd.client().await, "web/1", 1, "").await;
    assert!(matches!(next(&mut events).await, NodeEvent::Added { .. }));
    registry.shutdown().await;
    tokio::time::timeout(PATIENCE, discovery.closed()).await.expect("closed");
    assert_eq!(events.next().await, None);
    assert!(discovery.pick("web", Strategy::WeightedRandom).is_some());
}
