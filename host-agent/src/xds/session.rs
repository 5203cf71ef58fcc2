//! One Envoy's stream: its subscriptions to both types, and how far it is with the catalog. Pure: the time comes in.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::{
    config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment},
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource},
};
use prost::Name as _;

use super::{
    snapshot::Snapshot,
    subscription::{Change, Subscription, Update, format_version},
};

/// An Envoy that leaves a response without an answer for this long is dropped. It acknowledges a cluster only once its
/// endpoints are there, for which it waits 15 s.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a request turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A subscription, an acknowledgement, or both.
    Accepted,
    /// The refusal of a response, and why.
    Refused {
        /// `clusters` or `endpoints`.
        what: &'static str,
        /// What Envoy says.
        detail: String,
    },
    /// A request for a type that is not served.
    UnknownType(String),
}

/// The state of a stream.
#[derive(Debug, Default)]
pub struct Session {
    clusters: Channel,
    endpoints: Channel,
    nonces: u64,
    /// The version of the catalog whose endpoints Envoy has answered for.
    applied: u64,
}

/// A subscription, and the response it waits for.
#[derive(Debug, Default)]
struct Channel {
    subscription: Subscription,
    /// Of the response that is waited for: the catalog's version, and when it was sent.
    sent: (u64, Option<Instant>),
}

impl Session {
    /// Takes in a request.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Received {
        let (channel, what) = if request.type_url == Cluster::type_url() {
            (&mut self.clusters, "clusters")
        } else if request.type_url == ClusterLoadAssignment::type_url() {
            (&mut self.endpoints, "endpoints")
        } else {
            return Received::UnknownType(request.type_url);
        };
        let answers = channel.subscription.answer(&request.response_nonce);
        if answers {
            channel.sent.1 = None;
            if what == "endpoints" {
                self.applied = self.applied.max(channel.sent.0);
            }
        }
        let change = Change {
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            initial_versions: request.initial_resource_versions,
        };
        channel.subscription.change(change, what == "clusters");
        match request.error_detail {
            Some(status) if answers => Received::Refused { what, detail: status.message },
            _ => Received::Accepted,
        }
    }

    /// The next response that this snapshot calls for: clusters first, since endpoints belong to them.
    pub fn next(&mut self, snapshot: &Snapshot, now: Instant) -> Option<DeltaDiscoveryResponse> {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let sent = (snapshot.version, Some(now));
        if let Some(update) = self.clusters.subscription.update(&snapshot.clusters, &nonce) {
            self.clusters.sent = sent;
            // A changed cluster is built anew beside the old one and takes over once it has endpoints; Envoy does not
            // ask for those a second time.
            for (name, _) in &update.resources {
                self.endpoints.subscription.resend(name);
            }
            return Some(response(Cluster::type_url(), update, nonce, snapshot.version));
        }
        if let Some(update) = self.endpoints.subscription.update(&snapshot.endpoints, &nonce) {
            self.endpoints.sent = sent;
            return Some(response(ClusterLoadAssignment::type_url(), update, nonce, snapshot.version));
        }
        if !self.endpoints.subscription.is_waiting() {
            self.applied = self.applied.max(snapshot.version);
        }
        None
    }

    /// The version of the catalog whose endpoints Envoy has, as far as it wants them.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// When Envoy must have answered.
    pub fn answer_deadline(&self) -> Option<Instant> {
        let sent = [&self.clusters, &self.endpoints].into_iter().filter_map(|channel| channel.sent.1);
        sent.min().map(|sent| sent + ANSWER_LIMIT)
    }
}

fn response(type_url: String, update: Update, nonce: String, version: u64) -> DeltaDiscoveryResponse {
    let resources = update.resources.into_iter().map(|(name, resource)| WireResource {
        name,
        version: format_version(resource.version),
        resource: Some(resource.body.clone()),
        ..WireResource::default()
    });
    DeltaDiscoveryResponse {
        system_version_info: version.to_string(),
        resources: resources.collect(),
        type_url,
        removed_resources: update.removed,
        nonce,
        ..DeltaDiscoveryResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::google::{protobuf::Any, rpc};
    use waypost_catalog::ServiceName;

    use super::*;
    use crate::xds::{resources::Resource, snapshot::Resources};

    fn snapshot(version: u64, clusters: &[(&str, u64)], endpoints: &[(&str, u64)]) -> Snapshot {
        let resource = |version: &u64| Arc::new(Resource { version: *version, body: Any::default() });
        let all = |list: &[(&str, u64)]| -> Resources {
            list.iter().map(|(name, version)| (ServiceName::new(name).unwrap(), resource(version))).collect()
        };
        Snapshot { version, clusters: all(clusters), endpoints: all(endpoints) }
    }

    fn request(type_url: String, subscribe: &[&str]) -> DeltaDiscoveryRequest {
        let resource_names_subscribe = subscribe.iter().map(|&name| name.to_owned()).collect();
        DeltaDiscoveryRequest { type_url, resource_names_subscribe, ..DeltaDiscoveryRequest::default() }
    }

    fn answer(response: &DeltaDiscoveryResponse, refused: Option<&str>) -> DeltaDiscoveryRequest {
        let error_detail = refused.map(|message| rpc::Status { message: message.to_owned(), ..Default::default() });
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..DeltaDiscoveryRequest::default() }
    }

    fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
        response.resources.iter().map(|resource| resource.name.as_str()).collect()
    }

    /// A session whose Envoy has cluster `a` and its endpoints at version 1.
    fn settled(now: Instant) -> Session {
        let mut session = Session::default();
        session.receive(request(Cluster::type_url(), &[]));
        session.receive(request(ClusterLoadAssignment::type_url(), &["a"]));
        let first = snapshot(1, &[("a", 1)], &[("a", 1)]);
        while let Some(response) = session.next(&first, now) {
            session.receive(answer(&response, None));
        }
        assert_eq!(session.applied(), 1);
        session
    }

    #[test]
    fn clusters_come_before_their_endpoints() {
        let mut session = Session::default();
        session.receive(request(Cluster::type_url(), &[]));
        session.receive(request(ClusterLoadAssignment::type_url(), &["a"]));
        let snapshot = snapshot(3, &[("a", 1)], &[("a", 1)]);
        let first = session.next(&snapshot, Instant::now()).unwrap();
        assert_eq!((first.type_url.clone(), names(&first)), (Cluster::type_url(), vec!["a"]));
        // Envoy holds the acknowledgement of clusters back until their endpoints are there.
        let second = session.next(&snapshot, Instant::now()).unwrap();
        assert_eq!((second.type_url.clone(), names(&second)), (ClusterLoadAssignment::type_url(), vec!["a"]));
        assert_ne!(first.nonce, second.nonce);
        assert!(session.next(&snapshot, Instant::now()).is_none());
    }

    #[test]
    fn a_version_is_applied_once_its_endpoints_are_acknowledged() {
        let now = Instant::now();
        let mut session = settled(now);
        let second = snapshot(2, &[("a", 1)], &[("a", 2)]);
        let response = session.next(&second, now).unwrap();
        assert_eq!(session.applied(), 1);
        let third = snapshot(3, &[("a", 1)], &[("a", 3)]);
        assert!(session.next(&third, now).is_none());
        session.receive(answer(&response, None));
        assert_eq!(session.applied(), 2);
        let response = session.next(&third, now).unwrap();
        session.receive(answer(&response, None));
        assert_eq!(session.applied(), 3);
        // Nothing in it for this Envoy.
        assert!(session.next(&snapshot(4, &[("a", 1)], &[("a", 3), ("b", 1)]), now).is_none());
        assert_eq!(session.applied(), 4);
    }

    #[test]
    fn a_changed_cluster_is_followed_by_its_endpoints() {
        let now = Instant::now();
        let mut session = settled(now);
        let changed = snapshot(2, &[("a", 2)], &[("a", 1)]);
        assert_eq!(session.next(&changed, now).unwrap().type_url, Cluster::type_url());
        assert_eq!(session.next(&changed, now).unwrap().type_url, ClusterLoadAssignment::type_url());
        assert!(session.next(&changed, now).is_none());
    }

    #[test]
    fn what_was_refused_is_reported_and_not_sent_again_before_it_changes() {
        let now = Instant::now();
        let mut session = settled(now);
        let bad = snapshot(2, &[("a", 1)], &[("a", 2)]);
        let response = session.next(&bad, now).unwrap();
        let received = session.receive(answer(&response, Some("no such thing")));
        assert_eq!(received, Received::Refused { what: "endpoints", detail: "no such thing".to_owned() });
        assert!(session.next(&bad, now).is_none());
        assert_eq!(names(&session.next(&snapshot(3, &[("a", 1)], &[("a", 3)]), now).unwrap()), ["a"]);
    }

    #[test]
    fn an_answer_to_something_older_counts_for_nothing() {
        let now = Instant::now();
        let mut session = settled(now);
        let response = session.next(&snapshot(2, &[("a", 1)], &[("a", 2)]), now).unwrap();
        let stale = DeltaDiscoveryResponse { nonce: "0".to_owned(), ..response };
        assert_eq!(session.receive(answer(&stale, Some("old"))), Received::Accepted);
        assert_eq!(session.applied(), 1);
        assert_eq!(session.answer_deadline(), Some(now + ANSWER_LIMIT));
    }

    #[test]
    fn types_that_are_not_served_are_named_and_change_nothing() {
        let mut session = Session::default();
        let listeners = "type.googleapis.com/envoy.config.listener.v3.Listener".to_owned();
        assert_eq!(session.receive(request(listeners.clone(), &[])), Received::UnknownType(listeners));
        assert!(session.next(&snapshot(1, &[("a", 1)], &[]), Instant::now()).is_none());
        assert_eq!(session.answer_deadline(), None);
    }
}
