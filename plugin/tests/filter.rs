//! The filter as a whole, against a host made for the test.

mod support;

use std::time::Duration;

use support::{Get, Proxy, changed, heartbeat, web};
use waypost_catalog::{
    sender,
    wire::{Delta, InSync, ServerMessage, client_message, limits, server_message::Kind},
};
use waypost_plugin::{
    counters::Counter,
    filter::{Filter, StartError},
    host::Level,
};

#[test]
fn nothing_is_opened_while_configuring_and_the_first_tick_says_hello() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.start("");
    assert!(proxy.targets.is_empty());
    filter.on_tick(&mut proxy);
    assert_eq!(proxy.targets, ["\x0a\x0f\x0a\x0dwaypost_agent"]);
    let [(1, client_message::Kind::Hello(hello))] = &proxy.sent[..] else { panic!("{:?}", proxy.sent) };
    assert_eq!((hello.protocol, hello.client.as_str(), hello.hash), (2, "front-1#00000007", 0));
}

#[test]
fn a_request_gets_the_candidates_of_its_routes_cluster_in_place_of_forged_ones() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &changed(&web(), "api", &["10.0.1.1:80", "[::1]:80"]));
    assert!(matches!(proxy.sent.last(), Some((1, client_message::Kind::Ack(ack))) if ack.version == 2));
    assert_eq!(Get::cluster("web").through(&mut filter).candidates.unwrap(), "10.0.0.1:80");
    let both = Get::cluster("api").through(&mut filter).candidates.unwrap();
    assert!(["10.0.1.1:80,[::1]:80", "[::1]:80,10.0.1.1:80"].contains(&&*both), "{both}");
}

#[test]
fn without_a_pick_forged_candidates_are_removed() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.start("");
    assert_eq!(Get::cluster("web").through(&mut filter).candidates, None);
    let mut filter = proxy.in_sync("", &web());
    assert_eq!(Get::cluster("other").through(&mut filter).candidates, None);
    assert_eq!(Get::default().through(&mut filter).candidates, None);
    filter.on_tick(&mut proxy);
    assert_eq!((proxy.count(Counter::UnknownService), proxy.count(Counter::Picks)), (2, 0));
}

#[test]
fn a_request_that_is_not_ours_is_not_touched() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &web());
    let request = Get { cluster: Some("other"), ..Get::default() }.through(&mut filter);
    assert_eq!(request.removals, 0);
    assert_eq!(Get::cluster("other").through(&mut filter).removals, 1);
}

#[test]
fn a_header_or_the_hosts_first_label_can_name_the_service() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync(r#"{"service":{"from":"header","name":"X-Service"}}"#, &web());
    assert!(Get::header("x-service", "web").through(&mut filter).candidates.is_some());
    assert!(Get::header("x-other", "web").through(&mut filter).candidates.is_none());
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync(r#"{"service":{"from":"host"}}"#, &web());
    for host in ["web", "web:8080", "web.example.com:80"] {
        assert!(Get::header(":authority", host).through(&mut filter).candidates.is_some(), "{host}");
    }
    for host in ["", "webs.example.com", "example.web", "[::1]:80"] {
        assert!(Get::header(":authority", host).through(&mut filter).candidates.is_none(), "{host}");
    }
}

#[test]
fn in_the_original_dst_mode_the_address_goes_into_filter_state() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync(r#"{"mode":"original_dst"}"#, &web());
    let request = Get::cluster("web").through(&mut filter);
    let expected = b"\x0a\x33envoy.network.transport_socket.original_dst_address\x12\x0b10.0.0.1:80";
    assert_eq!(request.arguments.unwrap(), expected);
    assert_eq!(Get::cluster("other").through(&mut filter).arguments, None);
}

#[test]
fn counts_reach_the_host_with_the_tick_and_once() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &web());
    for _ in 0..5 {
        Get::cluster("web").through(&mut filter);
    }
    assert_eq!(proxy.count(Counter::Picks), 0);
    filter.on_tick(&mut proxy);
    filter.on_tick(&mut proxy);
    assert_eq!(proxy.count(Counter::Picks), 5);
}

#[test]
fn a_lost_agent_is_picked_without_and_found_again_with_what_is_held() {
    let mut proxy = Proxy::default();
    let catalog = web();
    let mut filter = proxy.in_sync("", &catalog);
    filter.on_close(&mut proxy, 1, 13);
    assert_eq!(proxy.closed, [1]);
    proxy.unreachable = true;
    proxy.tick_for(&mut filter, Duration::from_secs(30));
    assert!(Get::cluster("web").through(&mut filter).candidates.is_some());
    proxy.unreachable = false;
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    // And then what is under way.
    let [.., (2, client_message::Kind::Hello(hello)), (2, client_message::Kind::Report(_))] = &*proxy.sent else {
        panic!("{:?}", proxy.sent)
    };
    assert_eq!(hello.hash, catalog.hash());
    assert_eq!(proxy.count(Counter::StreamRestarts), 1);
    // Until the agent confirms what is held, it is not known to be current.
    assert_eq!(proxy.count(Counter::StaleSeconds), 31);
    proxy.deliver(&mut filter, 2, [ServerMessage { kind: Some(Kind::InSync(InSync { version: 9 })) }]);
    // What an agent holds that has just started need not be current either.
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    assert_eq!(proxy.count(Counter::StaleSeconds), 32);
    proxy.deliver(&mut filter, 2, heartbeat(0));
    proxy.tick_for(&mut filter, Duration::from_secs(10));
    assert_eq!(proxy.count(Counter::StaleSeconds), 32);
}

#[test]
fn an_agent_that_does_not_answer_is_complained_of_once() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.start("");
    for _ in 0..20 {
        proxy.tick_for(&mut filter, Duration::from_secs(1));
        let stream = proxy.targets.len() as u32;
        filter.on_close(&mut proxy, stream, 9);
    }
    let complaints: Vec<_> = proxy.log.iter().filter(|(level, _)| *level == Level::Warn).collect();
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].1.contains("gRPC status 9: gone"), "{complaints:?}");
}

#[test]
fn a_silent_agent_is_left_and_tried_again() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &web());
    for _ in 0..6 {
        proxy.tick_for(&mut filter, Duration::from_secs(10));
        proxy.deliver(&mut filter, 1, heartbeat(0));
    }
    assert!(proxy.cancelled.is_empty());
    assert_eq!(proxy.count(Counter::StaleSeconds), 0);
    proxy.tick_for(&mut filter, Duration::from_secs(16));
    assert_eq!(proxy.cancelled, [1]);
    assert_eq!(proxy.targets.len(), 2);
    assert_eq!(proxy.count(Counter::StreamRestarts), 1);
}

#[test]
fn a_stream_whose_listener_is_removed_is_lost_at_once() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &web());
    proxy.listener_gone = true;
    filter.on_tick(&mut proxy);
    proxy.tick_for(&mut filter, Duration::from_millis(100));
    assert_eq!(proxy.targets.len(), 2);
    assert!(matches!(proxy.sent.last(), Some((2, client_message::Kind::Hello(_)))));
    assert_eq!(proxy.count(Counter::StreamRestarts), 1);
}

#[test]
fn changes_do_not_hide_that_the_agent_is_cut_off() {
    let mut proxy = Proxy::default();
    let mut catalog = web();
    let mut filter = proxy.in_sync("", &catalog);
    for second in 0..40_u8 {
        proxy.tick_for(&mut filter, Duration::from_secs(1));
        let next = changed(&catalog, "web", &[&format!("10.0.0.{second}:81")]);
        proxy.deliver(&mut filter, 1, sender::delta(&catalog, &next));
        catalog = next;
    }
    assert!((19..=20).contains(&proxy.count(Counter::StaleSeconds)), "{:?}", proxy.counts);
}

#[test]
fn an_agent_that_is_itself_cut_off_makes_the_catalog_stale() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &web());
    for second in 0..60 {
        proxy.tick_for(&mut filter, Duration::from_secs(1));
        proxy.deliver(&mut filter, 1, heartbeat(second * 1_000));
    }
    let stale = proxy.count(Counter::StaleSeconds);
    assert!((38..=41).contains(&stale), "{stale}");
}

#[test]
fn what_does_not_add_up_is_asked_for_again_and_what_was_held_stays_in_use() {
    let mut proxy = Proxy::default();
    let first = web();
    let mut filter = proxy.in_sync("", &first);
    let second = changed(&first, "web", &["10.0.0.2:80"]);
    assert_eq!(Get::cluster("web").through(&mut filter).candidates.unwrap(), "10.0.0.1:80");
    let mut damaged = sender::delta(&first, &second);
    let Some(Kind::Delta(Delta { hash, .. })) = &mut damaged[0].kind else { panic!() };
    *hash += 1;
    proxy.deliver(&mut filter, 1, damaged);
    assert!(matches!(proxy.sent.last(), Some((1, client_message::Kind::Resync(_)))));
    assert_eq!(Get::cluster("web").through(&mut filter).candidates.unwrap(), "10.0.0.1:80");
    proxy.deliver(&mut filter, 1, sender::full(&second));
    assert_eq!(Get::cluster("web").through(&mut filter).candidates.unwrap(), "10.0.0.2:80");
    filter.on_message(&mut proxy, 1, None);
    filter.on_message(&mut proxy, 1, Some(&[0xff; 9]));
    filter.on_message(&mut proxy, 1, Some(&vec![0; limits::MESSAGE_BYTES + 1]));
    filter.on_tick(&mut proxy);
    assert_eq!(proxy.count(Counter::Resyncs), 1);
    proxy.tick_for(&mut filter, Duration::from_secs(3));
    assert_eq!(proxy.count(Counter::Resyncs), 2);
    // Until then what is held counts as stale, however lively the agent is.
    proxy.deliver(&mut filter, 1, heartbeat(0));
    assert!((2..=3).contains(&proxy.count(Counter::StaleSeconds)), "{:?}", proxy.counts);
    proxy.deliver(&mut filter, 1, sender::full(&second));
    let stale = proxy.count(Counter::StaleSeconds);
    proxy.tick_for(&mut filter, Duration::from_secs(3));
    assert_eq!(proxy.count(Counter::StaleSeconds), stale);
}

#[test]
fn a_message_of_a_kind_yet_to_be_invented_is_passed_over() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.in_sync("", &web());
    let sent = proxy.sent.len();
    filter.on_message(&mut proxy, 1, Some(&[0xfa, 0x01, 0x00]));
    assert_eq!(proxy.sent.len(), sent);
}

#[test]
fn a_vm_after_a_crash_picks_with_its_first_request() {
    let mut proxy = Proxy::default();
    let catalog = web();
    let mut filter = proxy.in_sync("", &catalog);
    proxy.tick_for(&mut filter, Duration::from_secs(2));
    drop(filter);
    let mut filter = proxy.start("");
    assert_eq!(Get::cluster("web").through(&mut filter).candidates.unwrap(), "10.0.0.1:80");
    filter.on_tick(&mut proxy);
    let [.., (_, client_message::Kind::Hello(hello)), (_, client_message::Kind::Report(_))] = &*proxy.sent else {
        panic!("{:?}", proxy.sent)
    };
    assert_eq!(hello.hash, catalog.hash());
}

#[test]
fn another_configuration_for_the_same_vm_id_is_refused_and_the_same_one_is_not() {
    let mut proxy = Proxy::default();
    let filter = proxy.start("{}");
    filter.join(br#"{"mode":"override_host"}"#).unwrap();
    let other = br#"{"service":{"from":"host"}}"#;
    let error = filter.join(other).unwrap_err();
    assert!(matches!(error, StartError::Taken { .. }), "{error}");
    let error = Filter::start(&mut proxy, other, true).unwrap_err();
    assert!(error.to_string().contains("vm_id"), "{error}");
    proxy.start(r#"{"mode":"override_host"}"#);
}

#[test]
fn a_configuration_that_was_only_tried_does_not_keep_the_vm_id_and_one_in_use_does() {
    let mut proxy = Proxy::default();
    drop(proxy.start(r#"{"service":{"from":"host"}}"#));
    proxy.now += Duration::from_secs(3);
    let mut filter = proxy.start("{}");
    filter.on_tick(&mut proxy);
    proxy.now += Duration::from_secs(1_000_000);
    assert!(Filter::start(&mut proxy, br#"{"service":{"from":"host"}}"#, true).is_err());
    proxy.start("{}");
}
