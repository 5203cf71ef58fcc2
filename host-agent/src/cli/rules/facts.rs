//! What etcd holds that decides where a request goes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
};

use waypost_catalog::{Health, Node, ServiceName};
use waypost_policy::{Compiled, Explanation, Policy, RequestView, RouteTable, explain};
use waypost_registry::Connector;

use super::{
    super::source::{Layout, Straight},
    Called, Document, Store,
};
use crate::rules::RuleKind;

/// Everything that decides, and what of it could not be read.
#[derive(Debug, Default)]
pub(super) struct Facts {
    routes: RouteTable,
    policies: BTreeMap<ServiceName, Policy>,
    services: BTreeMap<ServiceName, BTreeMap<SocketAddr, Node>>,
    /// Failure domain of the host that the request comes through; empty if unknown.
    zone: String,
    notes: Vec<String>,
}

impl Facts {
    /// Reads them.
    pub(super) async fn read(connector: &Connector, layouts: Vec<Layout>, zone: String) -> anyhow::Result<Self> {
        let mut facts = Self { zone, ..Self::default() };
        let mut routes = Vec::new();
        for kind in RuleKind::ALL {
            for stored in Store::new(connector.clone(), kind).list().await? {
                let (called, name) = (Called(kind, &stored.name), ServiceName::new(&stored.name));
                match (Document::parse(kind, &stored.name, &stored.document), name) {
                    (Ok(Document::Route(route)), _) => routes.push(*route),
                    (Ok(Document::Policy(policy)), Ok(name)) => drop(facts.policies.insert(name, *policy)),
                    (Ok(Document::Policy(_)), Err(error)) => {
                        facts.notes.push(format!("{called} counts for nothing: {error}"))
                    }
                    (Err(problems), _) => {
                        let first = problems.iter().next().map(ToString::to_string).unwrap_or_default();
                        let note = format!(
                            "{called} is invalid and left out here; agents go on with the last good one that they saw: {first}"
                        );
                        facts.notes.push(note);
                    }
                }
            }
        }
        facts.routes = RouteTable::new(routes);
        for layout in layouts {
            let catalog = Straight::new(connector.clone(), layout).catalog(None).await?;
            for (name, service) in catalog.services() {
                service.nodes().for_each(|node| facts.add(name, node.clone()));
            }
        }
        Ok(facts)
    }

    /// Of two nodes at one address a passing one counts, and otherwise that of the watch named first.
    fn add(&mut self, service: &ServiceName, node: Node) {
        let nodes = self.services.entry(service.clone()).or_default();
        match nodes.entry(node.address) {
            Entry::Vacant(free) => drop(free.insert(node)),
            Entry::Occupied(mut taken) => {
                if node.health == Health::Passing && taken.get().health != Health::Passing {
                    taken.insert(node);
                }
            }
        }
    }

    /// Where a request goes that comes to the routes.
    pub(super) fn of_request(&self, host: &str, request: &mut impl RequestView) -> (Explanation, Vec<String>) {
        let fallback = self.called_like(host);
        let policy_of = |service: &ServiceName| self.policies.get(service);
        let mut explanation = explain(&self.routes, fallback, policy_of, request);
        let mut notes = self.notes.clone();
        if explanation.ways.is_empty() {
            notes.push(format!("no route matches, and no service is called like the host {host} or its first label"));
        }
        notes.extend(self.choose(&mut explanation, request));
        (explanation, notes)
    }

    /// Where a request goes that is for a service already; `None` if nothing is known of it.
    pub(super) fn of_service(
        &self,
        service: &ServiceName,
        request: &mut impl RequestView,
    ) -> Option<(Explanation, Vec<String>)> {
        if !self.services.contains_key(service) && !self.policies.contains_key(service) {
            return None;
        }
        let policy_of = |service: &ServiceName| self.policies.get(service);
        let mut explanation = explain(&RouteTable::default(), Some(service), policy_of, request);
        let mut notes = self.notes.clone();
        notes.extend(self.choose(&mut explanation, request));
        Some((explanation, notes))
    }

    /// The service that a request without a route is for: the one called like its host, or else like the first label of
    /// it. As the filter has it.
    fn called_like(&self, host: &str) -> Option<&ServiceName> {
        let known = |name: &str| self.services.get_key_value(name).map(|(name, _)| name);
        let bare = match host.rsplit_once(':') {
            Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        known(bare).or_else(|| known(host.split(['.', ':']).next().unwrap_or_default()))
    }

    /// Fills in the nodes of every way, and says what is not known here.
    fn choose(&self, explanation: &mut Explanation, request: &mut impl RequestView) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |text: String| {
            if !notes.contains(&text) {
                notes.push(text);
            }
        };
        for way in &mut explanation.ways {
            let Some(service) = ServiceName::new(&way.service).ok() else { continue };
            let policy = self.policies.get(&service).cloned().unwrap_or_default();
            if let Some(component) = &policy.component {
                let name = match &component.source {
                    waypost_policy::ComponentSource::Name(name) => name.as_str(),
                    waypost_policy::ComponentSource::Sha256(hash) => hash.get(..12).unwrap_or(hash),
                };
                note(format!(
                    "component {name} gives the nodes of {service} their weights and levels in each agent; here they have their own"
                ));
            }
            if policy.slow_start.is_some() {
                note(format!("nodes of {service} that have just come get less at first: only agents know which"));
            }
            let nodes: Vec<Node> = self.nodes(&service).cloned().collect();
            if nodes.is_empty() {
                note(format!("no node of {service} is known"));
            }
            way.choose_among(&self.compiled(policy), &nodes, request);
        }
        notes
    }

    /// As the agent of the zone would have it.
    fn compiled(&self, policy: Policy) -> Compiled {
        let callers = policy.locality.as_ref().and_then(|locality| locality.callers.clone());
        let callers = callers.iter().flat_map(|callers| self.nodes(callers));
        let zones: Vec<&str> =
            callers.filter(|node| node.health == Health::Passing).map(|node| node.zone.as_str()).collect();
        Compiled::new(policy, self.zone.clone(), zones)
    }

    fn nodes(&self, service: &ServiceName) -> impl Iterator<Item = &Node> {
        self.services.get(service).into_iter().flat_map(BTreeMap::values)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use waypost_policy::Route;

    use super::{
        super::asked::{Asked, Request},
        *,
    };

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    /// Two versions of orders, of which one node is critical, and users without a policy.
    pub(in crate::cli::rules) fn facts() -> Facts {
        let policy = r#"{"subsets": {"v1": {"version": "1"}, "v2": {"version": "2"}}, "slow_start": {"window": "30s"},
            "split": {"arms": [{"subset": "v1", "weight": 3}, {"subset": "v2", "weight": 1}]}}"#;
        let routes = [
            ("admin", r#"{"order": 10, "match": {"path": {"prefix": "/admin/"}}, "service": "admin"}"#),
            ("orders", r#"{"order": 20, "match": {"hosts": ["shop.x"]}, "service": "orders", "timeout": "2s"}"#),
        ];
        let routes = routes.map(|(id, json)| Route::parse(id, json.as_bytes()).unwrap());
        let mut facts = Facts {
            routes: RouteTable::new(routes.into()),
            policies: [(name("orders"), Policy::parse(policy.as_bytes()).unwrap())].into(),
            ..Facts::default()
        };
        for (service, port, version, weight, health) in [
            ("orders", 1, "1", 3, Health::Passing),
            ("orders", 2, "1", 1, Health::Passing),
            ("orders", 3, "1", 1, Health::Critical),
            ("orders", 4, "2", 1, Health::Passing),
            ("users", 5, "", 1, Health::Passing),
        ] {
            let node = Node::at(([10, 0, 0, port], 80).into());
            facts.add(&name(service), Node { version: version.into(), weight, health, ..node });
        }
        facts
    }

    pub(in crate::cli::rules) fn request(host: Option<&str>, path: &str) -> Request {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            asked: Asked,
        }
        Request::new(host.map(str::to_owned), Line::parse_from(["x", "--path", path]).asked)
    }

    #[test]
    fn a_request_without_a_route_is_for_the_service_called_like_its_host() {
        let facts = facts();
        let called = |host| facts.called_like(host).map(ServiceName::as_str);
        assert_eq!([called("users"), called("users:8080"), called("users.x:80")], [Some("users"); 3]);
        assert_eq!([called("x"), called(""), called("x.users")], [None; 3]);
        let (explanation, notes) = facts.of_request("nobody", &mut request(Some("nobody"), "/"));
        assert!(explanation.ways.is_empty() && notes[0].contains("like the host nobody"), "{notes:?}");
    }

    #[test]
    fn what_is_not_known_here_is_noted_once() {
        let (explanation, notes) = facts().of_request("shop.x", &mut request(Some("shop.x"), "/"));
        assert_eq!(explanation.ways.len(), 2);
        assert_eq!(notes, ["nodes of orders that have just come get less at first: only agents know which"]);
        let (_, notes) = facts().of_request("shop.x", &mut request(Some("shop.x"), "/admin/"));
        assert_eq!(notes, ["no node of admin is known"]);
    }

    #[test]
    fn of_two_nodes_at_one_address_a_passing_one_counts_and_then_the_first() {
        let mut facts = Facts::default();
        let at = |id: &str, health| Node { id: id.into(), health, ..Node::at(([10, 0, 0, 1], 80).into()) };
        for (id, health) in
            [("a", Health::Critical), ("b", Health::Draining), ("c", Health::Passing), ("d", Health::Passing)]
        {
            facts.add(&name("web"), at(id, health));
        }
        assert_eq!(facts.nodes(&name("web")).map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c"]);
    }
}
