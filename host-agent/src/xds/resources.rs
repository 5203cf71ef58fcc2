//! A service as Envoy's messages: its cluster and its endpoints.
//!
//! No message holds a map of more than one entry: the same content then always gives the same bytes, and their hash is
//! the resource's version, which an Envoy may bring back after a restart of the agent.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig},
                load_balancing_policy::Policy,
            },
            common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
            core::v3::{
                Address, AggregatedConfigSource, ApiVersion, ConfigSource, HealthStatus, Http1ProtocolOptions,
                Http2ProtocolOptions, Metadata, SocketAddress, TypedExtensionConfig, address,
                config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::{
            filters::{
                http::{
                    header_mutation::v3::{HeaderMutation, Mutations},
                    upstream_codec::v3::UpstreamCodec,
                },
                network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
            },
            load_balancing_policies::{
                override_host::v3::{OverrideHost, override_host::OverrideHostSource},
                round_robin::v3::RoundRobin,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::{self, Any, UInt32Value, value::Kind},
};
use prost::{Message, Name};
use waypost_catalog::{Health, Node, Placement, Protocol};
use xxhash_rust::xxh3::xxh3_64;

/// The header in which the filter names its candidates.
pub const CANDIDATES_HEADER: &str = "x-waypost-candidates";

/// Header in which the filter names the cluster that a request leads to, where routes come from etcd.
pub const CLUSTER_HEADER: &str = "x-waypost-cluster";

/// Connections, waiting requests and requests in flight that Envoy allows to a cluster. By itself it allows 1,024 of
/// each and refuses the next with 503; that is no place to limit load that nobody asked to be limited.
const MOST_AT_ONCE: u32 = 100_000;

/// Retries in flight that Envoy allows to a cluster. By itself it allows three: the fourth request to a node that has
/// just died would fail although other nodes could serve it.
const MOST_RETRIES_AT_ONCE: u32 = 10_000;

/// A resource as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Hash of its content.
    pub version: u64,
    /// Its content.
    pub body: Any,
}

impl Resource {
    fn new<T: Message + Name>(message: &T) -> Self {
        let body = any(message);
        Self { version: xxh3_64(&body.value), body }
    }
}

/// What a service's nodes speak, by the majority of those that may be picked. A tie, or nobody to ask, leaves it at what
/// it was before: a cluster whose protocol changes begins anew, with new connections. Before there is any, all nodes
/// have a say, since those of a new service cannot be picked yet.
pub fn common_protocol<'a>(nodes: impl IntoIterator<Item = &'a Node>, before: Option<Protocol>) -> Protocol {
    let (mut all, mut pickable) = (0, 0);
    for node in nodes {
        let vote = if node.protocol == Protocol::Http2 { 1 } else { -1 };
        all += vote;
        pickable += if node.is_pickable() { vote } else { 0 };
    }
    match (pickable, before) {
        (0, Some(before)) => before,
        (0, None) if all > 0 => Protocol::Http2,
        (1.., _) => Protocol::Http2,
        _ => Protocol::Http1,
    }
}

/// The cluster of a service: what the filter names if the cluster has it, its own weighted round robin otherwise.
pub fn cluster(service: &str, protocol: Protocol, connect_timeout: Duration) -> Resource {
    let thresholds = Thresholds {
        max_connections: number(MOST_AT_ONCE),
        max_pending_requests: number(MOST_AT_ONCE),
        max_requests: number(MOST_AT_ONCE),
        max_retries: number(MOST_RETRIES_AT_ONCE),
        ..Thresholds::default()
    };
    let protocol_options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(match protocol {
                Protocol::Http1 => ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()),
                Protocol::Http2 => ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()),
            }),
        })),
        http_filters: upstream_filters(),
        ..HttpProtocolOptions::default()
    };
    Resource::new(&Cluster {
        name: service.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                resource_api_version: ApiVersion::V3 as i32,
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                ..ConfigSource::default()
            }),
            ..EdsClusterConfig::default()
        }),
        connect_timeout: Some(protobuf::Duration {
            seconds: connect_timeout.as_secs().try_into().unwrap_or(i64::MAX),
            nanos: connect_timeout.subsec_nanos().cast_signed(),
        }),
        load_balancing_policy: Some(override_host()),
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            any(&protocol_options),
        )]),
        // A node that is gone is gone at once, also if it was never seen to fail.
        ignore_health_on_host_removal: true,
        common_lb_config: Some(CommonLbConfig {
            // Where no node passes there is none to try: Envoy would by itself go to failing ones.
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            // Other nodes' connections are worth keeping.
            close_connections_on_host_set_change: false,
            ..CommonLbConfig::default()
        }),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() }),
        ..Cluster::default()
    })
}

/// The endpoints of a service: its nodes, and those that are gone but not yet forgotten by the filters.
///
/// All of one priority are in one locality, whatever their zone: with several, Envoy would first share requests among the
/// localities and then among the nodes of each, and the shares would no longer be the nodes' weights. The zone goes into the
/// endpoint's metadata, where access logs and subset policies find it.
pub fn endpoints<'a>(
    service: &str,
    nodes: impl IntoIterator<Item = &'a Node>,
    leaving: impl IntoIterator<Item = &'a Node>,
) -> Resource {
    let nodes = nodes.into_iter().map(|node| (node, health(node)));
    let leaving = leaving.into_iter().map(|node| (node, HealthStatus::Draining));
    let all: Vec<_> = nodes.chain(leaving).collect();
    // While one of them starts slowly, all are in thousandths, so that its share can be a part of the smallest weight.
    let warming = all.iter().any(|(node, _)| node.placement.warmup < Placement::WARM);
    let weight = |node: &Node| match u64::from(node.effective_weight()) {
        weight if warming => weight * u64::from(node.placement.warmup),
        weight => weight,
    };
    let weights = fitting(all.iter().map(|(node, _)| weight(node)).collect());
    let mut levels = BTreeMap::<u8, Vec<LbEndpoint>>::new();
    for ((node, health), weight) in all.iter().zip(weights) {
        levels.entry(node.placement.priority).or_default().push(LbEndpoint {
            health_status: *health as i32,
            load_balancing_weight: number(weight),
            metadata: zone(node),
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(address(node)),
                ..Endpoint::default()
            })),
        });
    }
    // Envoy wants them numbered without a gap.
    let endpoints = (0..).zip(levels.into_values()).map(|(priority, lb_endpoints)| LocalityLbEndpoints {
        lb_endpoints,
        priority,
        ..LocalityLbEndpoints::default()
    });
    Resource::new(&ClusterLoadAssignment {
        cluster_name: service.to_owned(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    })
}

fn health(node: &Node) -> HealthStatus {
    match node.health {
        Health::Critical => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
        // Envoy takes no weight of 0, and none means the same as draining: nothing new, what runs may end.
        Health::Passing if node.effective_weight() == 0 => HealthStatus::Draining,
        Health::Passing => HealthStatus::Healthy,
    }
}

/// Weights as Envoy takes them: at least 1 each, and no more than `u32::MAX` together.
fn fitting(weights: Vec<u64>) -> Vec<u32> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight).max(1)).sum();
    let most = u32::MAX;
    // What rounding up to 1 can add.
    let room = u128::from(most).saturating_sub(weights.len() as u128);
    let fit = |weight: u64| {
        let weight = if sum > most.into() { u128::from(weight) * room / sum } else { weight.into() };
        u32::try_from(weight).unwrap_or(most).max(1)
    };
    weights.into_iter().map(fit).collect()
}

fn zone(node: &Node) -> Option<Metadata> {
    if node.zone.is_empty() {
        return None;
    }
    let zone = protobuf::Value { kind: Some(Kind::StringValue(node.zone.clone())) };
    let fields = protobuf::Struct { fields: HashMap::from([("zone".to_owned(), zone)]) };
    Some(Metadata { filter_metadata: HashMap::from([("waypost".to_owned(), fields)]), ..Metadata::default() })
}

fn address(node: &Node) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: node.address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(node.address.port().into())),
            ..SocketAddress::default()
        })),
    }
}

fn override_host() -> LoadBalancingPolicy {
    let source = OverrideHostSource { header: CANDIDATES_HEADER.to_owned(), metadata: None };
    let fallback = policy("envoy.load_balancing_policies.round_robin", &RoundRobin::default());
    policy(
        "envoy.load_balancing_policies.override_host",
        &OverrideHost { override_host_sources: vec![source], selected_host_key: None, fallback_policy: Some(fallback) },
    )
}

fn policy<T: Message + Name>(name: &str, config: &T) -> LoadBalancingPolicy {
    let extension = TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(config)) };
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(extension) }] }
}

/// Filters that run once the node is chosen: the candidates are the filter's business, and no node's.
fn upstream_filters() -> Vec<HttpFilter> {
    let remove = |header: &str| Mutation { action: Some(Action::Remove(header.to_owned())) };
    let removed = [CANDIDATES_HEADER, CLUSTER_HEADER].map(remove);
    let mutations = Mutations { request_mutations: removed.into(), ..Mutations::default() };
    let strip = HeaderMutation { mutations: Some(mutations), ..HeaderMutation::default() };
    vec![
        filter("envoy.filters.http.header_mutation", &strip),
        filter("envoy.filters.http.upstream_codec", &UpstreamCodec {}),
    ]
}

fn filter<T: Message + Name>(name: &str, config: &T) -> HttpFilter {
    let config_type = Some(ConfigType::TypedConfig(any(config)));
    HttpFilter { name: name.to_owned(), config_type, ..HttpFilter::default() }
}

fn any<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(port: u16, weight: u32, health: Health) -> Node {
        Node { weight, health, ..Node::at(([10, 0, 0, 1], port).into()) }
    }

    fn decoded(resource: &Resource) -> Vec<LbEndpoint> {
        let assignment = ClusterLoadAssignment::decode(&*resource.body.value).unwrap();
        assert_eq!(assignment.endpoints.len(), 1);
        assignment.endpoints.into_iter().next().unwrap().lb_endpoints
    }

    #[test]
    fn health_and_weight_become_what_envoy_takes() {
        let nodes = [
            node(1, 7, Health::Passing),
            node(2, 0, Health::Passing),
            node(3, 2, Health::Critical),
            node(4, 0, Health::Draining),
        ];
        let resource = endpoints("web", &nodes, &[node(5, 3, Health::Passing)]);
        let seen = decoded(&resource);
        let seen =
            seen.iter().map(|endpoint| (endpoint.health_status(), endpoint.load_balancing_weight.unwrap().value));
        let expected = [
            (HealthStatus::Healthy, 7),
            (HealthStatus::Draining, 1),
            (HealthStatus::Unhealthy, 2),
            (HealthStatus::Draining, 1),
            (HealthStatus::Draining, 3),
        ];
        assert_eq!(seen.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn weights_keep_their_proportions_where_their_sum_is_too_large_for_envoy() {
        const MAX: u64 = u32::MAX as u64;
        assert_eq!(fitting(vec![1, 0, MAX - 2]), [1, 1, u32::MAX - 2]);
        for weights in [vec![MAX; 2], vec![MAX, 0, 0], vec![MAX * 1_000; 10_000], vec![MAX, MAX / 2]] {
            let fitted = fitting(weights.clone());
            assert!(fitted.iter().map(|weight| u64::from(*weight)).sum::<u64>() <= u64::from(u32::MAX));
            assert!(fitted.iter().all(|weight| *weight >= 1));
        }
        let fitted = fitting(vec![MAX, MAX / 2]);
        assert!((f64::from(fitted[0]) / f64::from(fitted[1]) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn a_node_that_starts_slowly_gets_its_part_and_a_component_s_weight_counts() {
        let mut starting = node(1, 2, Health::Passing);
        starting.placement.warmup = 100;
        let mut placed = node(2, 9, Health::Passing);
        placed.placement.weight = Some(1);
        let seen = decoded(&endpoints("web", &[starting, placed], &[]));
        let weights = seen.iter().map(|endpoint| endpoint.load_balancing_weight.unwrap().value);
        assert_eq!(weights.collect::<Vec<_>>(), [200, 1_000]);
    }

    #[test]
    fn priorities_are_numbered_without_a_gap() {
        let at = |n, priority| {
            let placement = Placement { priority, ..Placement::default() };
            Node { placement, ..node(n, 1, Health::Passing) }
        };
        let resource = endpoints("web", &[at(1, 7), at(2, 3), at(3, 7)], &[]);
        let assignment = ClusterLoadAssignment::decode(&*resource.body.value).unwrap();
        let levels = assignment.endpoints.iter().map(|level| (level.priority, level.lb_endpoints.len()));
        assert_eq!(levels.collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    }

    #[test]
    fn zones_change_no_locality_and_can_be_read_from_the_metadata() {
        let zoned = Node { zone: "a".to_owned(), ..node(1, 1, Health::Passing) };
        let seen = decoded(&endpoints("web", &[zoned, node(2, 1, Health::Passing)], &[]));
        let zone = &seen[0].metadata.as_ref().unwrap().filter_metadata["waypost"].fields["zone"];
        assert_eq!(zone.kind, Some(Kind::StringValue("a".to_owned())));
        assert_eq!(seen[1].metadata, None);
    }

    #[test]
    fn the_majority_of_the_nodes_that_may_be_picked_says_what_the_service_speaks() {
        let http1 = node(1, 1, Health::Passing);
        let http2 = Node { protocol: Protocol::Http2, ..node(2, 1, Health::Passing) };
        let critical = node(3, 1, Health::Critical);
        assert_eq!(common_protocol([&http2, &http1, &http2], None), Protocol::Http2);
        assert_eq!(common_protocol([&http1, &http2, &http1], Some(Protocol::Http2)), Protocol::Http1);
        assert_eq!(common_protocol([&http2, &critical, &critical], None), Protocol::Http2);
        for before in [Protocol::Http1, Protocol::Http2] {
            assert_eq!(common_protocol([&http2, &http1], Some(before)), before, "a tie");
            assert_eq!(common_protocol([&critical], Some(before)), before, "nobody to ask");
        }
        assert_eq!(common_protocol([], None), Protocol::Http1);
        let starting = Node { health: Health::Critical, ..http2.clone() };
        assert_eq!(common_protocol([&starting], None), Protocol::Http2);
    }

    #[test]
    fn a_cluster_is_another_one_with_another_protocol() {
        let second = Duration::from_secs(1);
        let versions = [Protocol::Http1, Protocol::Http2].map(|protocol| cluster("web", protocol, second).version);
        assert_ne!(versions[0], versions[1]);
        assert_eq!(versions[0], cluster("web", Protocol::Http1, second).version);
    }

    #[test]
    fn ipv6_addresses_go_without_brackets() {
        let node = Node::at("[::1]:80".parse().unwrap());
        let Some(address::Address::SocketAddress(address)) = address(&node).address else { panic!() };
        assert_eq!((address.address.as_str(), address.port_specifier), ("::1", Some(PortSpecifier::PortValue(80))));
    }
}
