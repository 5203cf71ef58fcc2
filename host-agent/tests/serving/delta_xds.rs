//! Delta xDS as an Envoy sees it, and the order between Envoy and filters.

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{HealthStatus, Node as EnvoyNode},
            endpoint::v3::ClusterLoadAssignment,
        },
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use waypost_agent::proto::catalog_service_client::CatalogServiceClient;
use waypost_catalog::wire::{
    Ack, ClientMessage, Hello, PROTOCOL_VERSION, ServerMessage, client_message::Kind as FromClient,
    server_message::Kind,
};

use crate::served::{Served, does_not_come, nodes, within};

/// An Envoy, as far as xDS goes.
struct Envoy {
    outgoing: mpsc::Sender<DeltaDiscoveryRequest>,
    incoming: Streaming<DeltaDiscoveryResponse>,
}

impl Envoy {
    async fn open(served: &Served) -> Self {
        let (outgoing, requests) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(served.connect().await);
        let call = client.delta_aggregated_resources(ReceiverStream::new(requests));
        let incoming = within(call).await.unwrap().into_inner();
        Self { outgoing, incoming }
    }

    /// With all clusters, and the endpoints of `a`.
    async fn settled(served: &Served) -> Self {
        let mut envoy = Self::open(served).await;
        envoy.subscribe::<Cluster>(&[]).await;
        envoy.next::<Cluster>().await;
        envoy.subscribe::<ClusterLoadAssignment>(&["a"]).await;
        envoy.next::<ClusterLoadAssignment>().await;
        envoy
    }

    async fn subscribe<T: prost::Name>(&self, names: &[&str]) {
        self.request::<T>(names, HashMap::new()).await;
    }

    async fn request<T: prost::Name>(&self, names: &[&str], initial_resource_versions: HashMap<String, String>) {
        let request = DeltaDiscoveryRequest {
            node: Some(EnvoyNode { id: "test".to_owned(), ..EnvoyNode::default() }),
            type_url: T::type_url(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            initial_resource_versions,
            ..DeltaDiscoveryRequest::default()
        };
        self.outgoing.send(request).await.unwrap();
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refusal.map(|message| rpc::Status { message: message.to_owned(), ..Default::default() }),
            ..DeltaDiscoveryRequest::default()
        };
        self.outgoing.send(request).await.unwrap();
    }

    async fn unanswered(&mut self) -> DeltaDiscoveryResponse {
        within(self.incoming.message()).await.unwrap().unwrap()
    }

    /// The next response, which is of this type; acknowledged.
    async fn next<T: prost::Name>(&mut self) -> DeltaDiscoveryResponse {
        let response = self.unanswered().await;
        assert_eq!(response.type_url, T::type_url());
        self.answer(&response, None).await;
        response
    }
}

/// A filter that reads and acknowledges when it is told to.
struct Filter {
    outgoing: mpsc::Sender<ClientMessage>,
    incoming: Streaming<ServerMessage>,
}

impl Filter {
    async fn open(served: &Served) -> Self {
        let (outgoing, messages) = mpsc::channel(16);
        let hello = Hello { protocol: PROTOCOL_VERSION, client: "test".to_owned(), hash: 0 };
        outgoing.send(ClientMessage { kind: Some(FromClient::Hello(hello)) }).await.unwrap();
        let mut client = CatalogServiceClient::new(served.connect().await);
        let incoming = within(client.stream(ReceiverStream::new(messages))).await.unwrap().into_inner();
        Self { outgoing, incoming }
    }

    /// The next version that it could acknowledge.
    async fn version(&mut self) -> u64 {
        loop {
            match within(self.incoming.message()).await.unwrap().unwrap().kind.unwrap() {
                Kind::End(end) => return end.version,
                Kind::Delta(delta) => return delta.version,
                _ => {}
            }
        }
    }

    async fn acknowledge(&self, version: u64) {
        self.outgoing.send(ClientMessage { kind: Some(FromClient::Ack(Ack { version })) }).await.unwrap();
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// Port and health of each endpoint in the response's only resource.
fn endpoints(response: &DeltaDiscoveryResponse) -> Vec<(u32, HealthStatus)> {
    use envoy_types::pb::envoy::config::{
        core::v3::{address::Address, socket_address::PortSpecifier},
        endpoint::v3::lb_endpoint::HostIdentifier,
    };
    let [resource] = &response.resources[..] else { panic!("{response:?}") };
    let assignment = ClusterLoadAssignment::decode(&*resource.resource.as_ref().unwrap().value).unwrap();
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let port = |identifier: &HostIdentifier| match identifier {
        HostIdentifier::Endpoint(endpoint) => match endpoint.address.as_ref().unwrap().address.as_ref().unwrap() {
            Address::SocketAddress(address) => match address.port_specifier {
                Some(PortSpecifier::PortValue(port)) => port,
                _ => panic!(),
            },
            _ => panic!(),
        },
        HostIdentifier::EndpointName(_) => panic!(),
    };
    endpoints.map(|endpoint| (port(endpoint.host_identifier.as_ref().unwrap()), endpoint.health_status())).collect()
}

#[tokio::test]
async fn an_envoy_gets_its_clusters_then_their_endpoints_and_then_only_what_changes() {
    let served = Served::start();
    served.publish(&[("a", nodes(1..3)), ("b", nodes(1..2))]);
    let mut envoy = Envoy::open(&served).await;
    envoy.subscribe::<Cluster>(&[]).await;
    assert_eq!(names(&envoy.next::<Cluster>().await), ["a", "b"]);
    envoy.subscribe::<ClusterLoadAssignment>(&["a", "b"]).await;
    assert_eq!(names(&envoy.next::<ClusterLoadAssignment>().await), ["a", "b"]);
    served.publish(&[("b", nodes(1..3))]);
    let changed = envoy.next::<ClusterLoadAssignment>().await;
    assert_eq!(names(&changed), ["b"]);
    assert_eq!(endpoints(&changed), [(1, HealthStatus::Healthy), (2, HealthStatus::Healthy)]);
    served.publish(&[("c", nodes(1..2))]);
    assert_eq!(names(&envoy.next::<Cluster>().await), ["c"]);
    assert!(does_not_come(envoy.unanswered()).await);
    served.stop().await;
}

#[tokio::test]
async fn an_envoy_that_comes_before_the_first_catalog_is_answered_when_it_is_there() {
    let served = Served::start();
    let mut envoy = Envoy::open(&served).await;
    envoy.subscribe::<Cluster>(&["*"]).await;
    assert!(does_not_come(envoy.unanswered()).await);
    served.publish(&[("a", nodes(1..2))]);
    assert_eq!(names(&envoy.next::<Cluster>().await), ["a"]);
    served.stop().await;
}

#[tokio::test]
async fn after_a_reconnect_only_what_differs_is_sent() {
    let served = Served::start();
    served.publish(&[("a", nodes(1..2)), ("b", nodes(1..2))]);
    let mut envoy = Envoy::open(&served).await;
    envoy.subscribe::<Cluster>(&[]).await;
    let clusters = envoy.next::<Cluster>().await;
    envoy.subscribe::<ClusterLoadAssignment>(&["a", "b"]).await;
    let assignments = envoy.next::<ClusterLoadAssignment>().await;
    drop(envoy);
    let versions = |response: &DeltaDiscoveryResponse| -> HashMap<String, String> {
        response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
    };
    served.publish(&[("a", nodes(1..3))]);
    let mut envoy = Envoy::open(&served).await;
    envoy.request::<Cluster>(&[], versions(&clusters)).await;
    assert_eq!(names(&envoy.next::<Cluster>().await), Vec::<&str>::new());
    envoy.request::<ClusterLoadAssignment>(&["a", "b"], versions(&assignments)).await;
    assert_eq!(names(&envoy.next::<ClusterLoadAssignment>().await), ["a"]);
    served.stop().await;
}

#[tokio::test]
async fn a_refusal_is_counted_and_not_answered_with_the_same_again() {
    let served = Served::start();
    served.publish(&[("a", nodes(1..2))]);
    let mut envoy = Envoy::settled(&served).await;
    served.publish(&[("a", nodes(1..3))]);
    let response = envoy.unanswered().await;
    envoy.answer(&response, Some("bad endpoint")).await;
    assert!(does_not_come(envoy.unanswered()).await);
    assert_eq!(served.metrics.figures().xds_nacks, 1);
    served.publish(&[("a", nodes(1..4))]);
    assert_eq!(endpoints(&envoy.next::<ClusterLoadAssignment>().await).len(), 3);
    served.stop().await;
}

#[tokio::test]
async fn a_node_that_appears_reaches_envoy_before_the_filters() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..2))]);
    let mut envoy = Envoy::settled(&served).await;
    let mut filter = Filter::open(&served).await;
    assert_eq!(filter.version().await, first.version());
    filter.acknowledge(first.version()).await;
    let second = served.publish(&[("a", nodes(1..3))]);
    let response = envoy.unanswered().await;
    assert!(does_not_come(filter.version()).await);
    envoy.answer(&response, None).await;
    assert_eq!(filter.version().await, second.version());
    // An Envoy that does not answer holds the filters up for a short while only.
    let third = served.publish(&[("a", nodes(1..4))]);
    envoy.unanswered().await;
    let before = Instant::now();
    assert_eq!(filter.version().await, third.version());
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    served.stop().await;
}

#[tokio::test]
async fn a_change_without_a_new_node_reaches_the_filters_at_once() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..3))]);
    let mut envoy = Envoy::settled(&served).await;
    let mut filter = Filter::open(&served).await;
    filter.version().await;
    filter.acknowledge(first.version()).await;
    let mut heavier = nodes(1..3);
    heavier[0].weight = 7;
    let second = served.publish(&[("a", heavier)]);
    assert_eq!(filter.version().await, second.version());
    envoy.unanswered().await;
    served.stop().await;
}

#[tokio::test]
async fn a_node_that_goes_leaves_envoy_once_every_filter_has_dropped_it() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..3))]);
    let mut envoy = Envoy::settled(&served).await;
    let mut filters = [Filter::open(&served).await, Filter::open(&served).await];
    for filter in &mut filters {
        assert_eq!(filter.version().await, first.version());
        filter.acknowledge(first.version()).await;
    }
    let second = served.publish(&[("a", nodes(2..3))]);
    let leaving = envoy.next::<ClusterLoadAssignment>().await;
    assert_eq!(endpoints(&leaving), [(2, HealthStatus::Healthy), (1, HealthStatus::Draining)]);
    filters[0].acknowledge(second.version()).await;
    assert!(does_not_come(envoy.unanswered()).await);
    filters[1].acknowledge(second.version()).await;
    assert_eq!(endpoints(&envoy.next::<ClusterLoadAssignment>().await), [(2, HealthStatus::Healthy)]);
    served.stop().await;
}

#[tokio::test]
async fn a_cluster_goes_with_its_service_even_if_a_filter_says_nothing() {
    let served = Served::start();
    let first = served.publish(&[("a", nodes(1..2)), ("b", nodes(1..2))]);
    let mut envoy = Envoy::settled(&served).await;
    let mut filter = Filter::open(&served).await;
    filter.version().await;
    filter.acknowledge(first.version()).await;
    let before = Instant::now();
    served.publish(&[("a", vec![])]);
    assert_eq!(endpoints(&envoy.next::<ClusterLoadAssignment>().await), [(1, HealthStatus::Draining)]);
    let gone = envoy.next::<Cluster>().await;
    assert_eq!((names(&gone), &gone.removed_resources[..]), (vec![], &["a".to_owned()][..]));
    let waited = before.elapsed();
    assert!(waited > Duration::from_millis(900) && waited < Duration::from_secs(3), "{waited:?}");
    let gone = envoy.next::<ClusterLoadAssignment>().await;
    assert_eq!(gone.removed_resources, ["a"]);
    served.stop().await;
}

#[tokio::test]
async fn the_state_of_the_world_is_not_served_and_the_answer_says_what_to_set() {
    let served = Served::start();
    let mut client = AggregatedDiscoveryServiceClient::new(served.connect().await);
    let status = client.stream_aggregated_resources(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("DELTA_GRPC"), "{status}");
    served.stop().await;
}
