//! The catalog stream as a filter sees it.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use futures::StreamExt as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use waypost_agent::proto::catalog_service_client::CatalogServiceClient;
use waypost_catalog::{
    Catalog, Node, Replica,
    replica::Applied,
    wire::{
        Ack, ClientMessage, Hello, PROTOCOL_VERSION, Resync, ServerMessage, client_message::Kind as FromClient,
        server_message::Kind,
    },
};

use crate::served::{Served, does_not_come, nodes, within};

/// A filter, as far as the stream goes.
struct Filter {
    replica: Replica,
    outgoing: mpsc::Sender<ClientMessage>,
    incoming: Streaming<ServerMessage>,
    acknowledges: bool,
}

impl Filter {
    async fn greet(served: &Served, hello: Hello) -> Self {
        let (outgoing, messages) = mpsc::channel(16);
        outgoing.send(ClientMessage { kind: Some(FromClient::Hello(hello)) }).await.unwrap();
        let mut client = CatalogServiceClient::new(served.connect().await);
        let incoming = within(client.stream(ReceiverStream::new(messages))).await.unwrap().into_inner();
        Self { replica: Replica::default(), outgoing, incoming, acknowledges: true }
    }

    async fn open(served: &Served) -> Self {
        Self::greet(served, hello(0)).await
    }

    async fn send(&self, kind: FromClient) {
        self.outgoing.send(ClientMessage { kind: Some(kind) }).await.unwrap();
    }

    async fn message(&mut self) -> Result<Kind, Status> {
        within(self.incoming.message()).await.map(|message| message.and_then(|message| message.kind).unwrap())
    }

    /// The next message that is no heartbeat.
    async fn news(&mut self) -> Kind {
        loop {
            match self.message().await.unwrap() {
                Kind::Heartbeat(_) => {}
                kind => return kind,
            }
        }
    }

    /// Follows the stream up to this catalog. How many messages that took.
    async fn reach(&mut self, catalog: &Catalog) -> usize {
        for messages in 1.. {
            let news = self.news().await;
            if let Applied::Changed { version, .. } = self.replica.apply(news).unwrap() {
                if self.acknowledges {
                    self.send(FromClient::Ack(Ack { version })).await;
                }
                if version == catalog.version() {
                    assert_eq!(self.replica.hash(), catalog.hash());
                    return messages;
                }
            }
        }
        unreachable!()
    }
}

fn hello(hash: u64) -> Hello {
    Hello { protocol: PROTOCOL_VERSION, client: "test#1".to_owned(), hash }
}

#[tokio::test]
async fn a_filter_gets_everything_first_and_then_what_changes() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..4)), ("b", nodes(1..2))]);
    let mut filter = Filter::open(&served).await;
    assert_eq!(filter.reach(&first).await, 4);
    let second = served.publish(&[("a", nodes(2..4)), ("c", nodes(1..2))]);
    assert_eq!(filter.reach(&second).await, 1);
    let third = served.publish(&[("b", vec![])]);
    assert_eq!(filter.reach(&third).await, 1);
    let figures = served.metrics.figures();
    assert_eq!(figures.streams, 1);
    assert_eq!(figures.messages[..4], [("begin", 1), ("part", 2), ("end", 1), ("delta", 2)]);
    drop(filter);
    served.stop().await;
}

#[tokio::test]
async fn versions_that_a_filter_has_not_seen_come_as_one_step() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..2))]);
    let mut filter = Filter::open(&served).await;
    filter.reach(&first).await;
    // Without a pause in which the server could run.
    for port in 3..50 {
        served.publish(&[("a", nodes(1..port))]);
    }
    let last = served.current().unwrap();
    assert_eq!(filter.reach(&last).await, 1);
    served.stop().await;
}

#[tokio::test]
async fn a_filter_that_holds_the_same_is_told_so_and_gets_nothing() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..4))]);
    let mut filter = Filter::greet(&served, hello(first.hash())).await;
    let Kind::InSync(in_sync) = filter.news().await else { panic!() };
    assert_eq!(in_sync.version, first.version());
    assert!(does_not_come(filter.news()).await);
    served.stop().await;
}

#[tokio::test]
async fn a_filter_that_asks_gets_everything_again() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..4))]);
    let mut filter = Filter::open(&served).await;
    filter.reach(&first).await;
    filter.send(FromClient::Resync(Resync { reason: "a hash did not match".to_owned() })).await;
    assert_eq!(filter.reach(&first).await, 3);
    let second = served.publish(&[("a", nodes(1..5))]);
    assert_eq!(filter.reach(&second).await, 1);
    assert_eq!(served.metrics.figures().resyncs, 1);
    served.stop().await;
}

#[tokio::test]
async fn a_large_service_comes_in_parts_and_arrives_whole() {
    let served = Served::start();
    let mut large = nodes(1..5001);
    for node in &mut large {
        node.metadata.insert("note".to_owned(), "x".repeat(200));
    }
    let first = served.publish(&[("small", nodes(1..2))]);
    let mut filter = Filter::open(&served).await;
    filter.reach(&first).await;
    let second = served.publish(&[("large", large)]);
    assert!(filter.reach(&second).await > 4);
    assert_eq!(filter.replica.services()["large"].nodes().len(), 5000);
    served.stop().await;
}

#[tokio::test]
async fn before_the_first_catalog_there_is_only_a_heartbeat_and_resync_is_of_no_use() {
    let served = Served::start();
    served.age.0.store(1234, Relaxed);
    let mut filter = Filter::open(&served).await;
    let Kind::Heartbeat(heartbeat) = filter.message().await.unwrap() else { panic!() };
    assert_eq!((heartbeat.version, heartbeat.stale_ms), (0, 1234));
    filter.send(FromClient::Resync(Resync::default())).await;
    assert!(does_not_come(filter.message()).await);
    let first = served.publish(&[("a", nodes(1..2))]);
    assert_eq!(filter.reach(&first).await, 3);
    served.stop().await;
}

#[tokio::test]
async fn heartbeats_come_every_five_seconds_and_say_how_old_the_catalog_may_be() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..2))]);
    let mut filter = Filter::open(&served).await;
    filter.reach(&first).await;
    let Kind::Heartbeat(_) = filter.message().await.unwrap() else { panic!() };
    served.age.0.store(77, Relaxed);
    let before = Instant::now();
    let Kind::Heartbeat(heartbeat) = filter.message().await.unwrap() else { panic!() };
    assert_eq!((heartbeat.version, heartbeat.stale_ms), (first.version(), 77));
    assert!(before.elapsed() > Duration::from_secs(4) && before.elapsed() < Duration::from_secs(7));
    served.stop().await;
}

#[tokio::test]
async fn what_breaks_the_protocol_is_refused_with_a_reason() {
    let served = Served::start();
    let mut filter = Filter::greet(&served, Hello { protocol: 99, ..hello(0) }).await;
    let status = filter.message().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("version 2 of the catalog stream, the filter version 99"), "{status}");
    let (outgoing, messages) = mpsc::channel(1);
    outgoing.send(ClientMessage { kind: Some(FromClient::Ack(Ack { version: 1 })) }).await.unwrap();
    let mut client = CatalogServiceClient::new(served.connect().await);
    let mut incoming = client.stream(ReceiverStream::new(messages)).await.unwrap().into_inner();
    assert_eq!(within(incoming.message()).await.unwrap_err().code(), Code::InvalidArgument);
    let mut filter = Filter::open(&served).await;
    filter.send(FromClient::Hello(hello(0))).await;
    let status = loop {
        if let Err(status) = filter.message().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    served.stop().await;
}

#[tokio::test]
async fn streams_end_with_the_agent_and_say_so() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..2))]);
    let mut filters = futures::future::join_all((0..3).map(|_| Filter::open(&served))).await;
    for filter in &mut filters {
        filter.reach(&first).await;
    }
    let before = Instant::now();
    served.stop().await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    for filter in &mut filters {
        let end = loop {
            match filter.message().await {
                Ok(Kind::Heartbeat(_)) => {}
                other => break other,
            }
        };
        assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    }
}

#[tokio::test]
async fn many_filters_follow_and_one_that_does_not_read_holds_up_none() {
    let served = Served::start();
    let large = |round: u16| -> Vec<Node> {
        let mut large = nodes(1..2001);
        for node in &mut large {
            node.metadata.insert("note".to_owned(), format!("{round}{}", "x".repeat(1000)));
        }
        large
    };
    served.publish(&[("large", large(0))]);
    let sleeper = Filter::open(&served).await;
    let mut filters = futures::future::join_all((0..4).map(|_| Filter::open(&served))).await;
    for round in 1..6 {
        let catalog = served.publish(&[("large", large(round))]);
        let reached = futures::stream::iter(&mut filters).map(|filter| filter.reach(&catalog));
        reached.buffer_unordered(4).collect::<Vec<_>>().await;
    }
    drop(sleeper);
    served.stop().await;
}
