//! Which service a request is for, and what it asks of it.

use std::time::Duration;

use fastrand::Rng;
use waypost_policy::{Compiled, Remembering, RequestView, Route, RouteTable, Strategy, SubsetChoice};

use crate::{host::Request, service::Wish, services::Services, view::View};

/// Who has named the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// The route of this id.
    ByRoute(&'a str),
    /// The host, since no route matched.
    ByHost,
    /// The proxy's own configuration, or a header.
    Otherwise,
}

/// Which service a request is for.
#[derive(Debug)]
pub struct Target<'a> {
    service: Service<'a>,
    named: Named<'a>,
    route: Option<&'a Route>,
    /// The subset that the route names.
    subset: Option<&'a str>,
    /// Whether the service is not what the whole host says.
    leads_elsewhere: bool,
}

#[derive(Debug)]
enum Service<'a> {
    OfRoute(&'a str),
    /// Text, and which part of it.
    Read(String, usize),
}

impl<'a> Target<'a> {
    /// The service of this name.
    pub fn named(name: Option<Vec<u8>>) -> Self {
        let name = name.and_then(|name| String::from_utf8(name).ok()).unwrap_or_default();
        let length = name.len();
        Self::read(name, length, Named::Otherwise)
    }

    /// The service that the host names up to its first dot or colon.
    pub fn first_label(host: Option<Vec<u8>>) -> Self {
        let host = host.and_then(|host| String::from_utf8(host).ok()).unwrap_or_default();
        let length = label(&host);
        Self::read(host, length, Named::Otherwise)
    }

    /// The service of the first route that matches; of none, the one that is called like the host, or like its first
    /// label.
    pub fn by_routes<R: Request>(
        routes: &'a RouteTable,
        view: &mut Remembering<View<'_, R>>,
        services: &mut Services,
    ) -> Self {
        if let Some(route) = routes.find(view) {
            let target = route.target_for(view, services.random());
            let name = target.service.as_str();
            let leads_elsewhere = view.host().is_none_or(|host| host != name.as_bytes());
            return Self {
                service: Service::OfRoute(name),
                named: Named::ByRoute(&route.id),
                route: Some(route),
                subset: target.subset.as_deref(),
                leads_elsewhere,
            };
        }
        let host = view.host().and_then(|host| String::from_utf8(host).ok()).unwrap_or_default();
        let whole = without_port(&host);
        let length = if host.get(..whole).is_some_and(|host| services.holds(host)) { whole } else { label(&host) };
        Self::read(host, length, Named::ByHost)
    }

    fn read(text: String, length: usize, named: Named<'a>) -> Self {
        let leads_elsewhere = named == Named::ByHost && length != text.len();
        Self { service: Service::Read(text, length), named, route: None, subset: None, leads_elsewhere }
    }

    /// The service's name; empty if nothing names one.
    pub fn service(&self) -> &str {
        match &self.service {
            Service::OfRoute(name) => name,
            Service::Read(text, length) => text.get(..*length).unwrap_or_default(),
        }
    }

    /// Who has named it.
    pub fn named_by(&self) -> Named<'a> {
        self.named
    }

    /// Whether the proxy is to be told another cluster than it would go to by the host.
    pub fn leads_elsewhere(&self) -> bool {
        self.leads_elsewhere
    }

    /// The route's limit on the whole answer.
    pub fn timeout(&self) -> Option<Duration> {
        self.route?.timeout
    }

    /// What the request asks of the service: what the route says, then what the request says where the policy lets it,
    /// then what the policy says.
    pub fn wish<R: Request>(&self, compiled: &Compiled, view: &mut Remembering<View<'_, R>>, rng: &mut Rng) -> Wish {
        let policy = &compiled.policy;
        let subset = match self.subset {
            Some(name) => policy.subsets.choice(Some(name)),
            None if policy.subsets.is_empty() => SubsetChoice::Whole,
            None => policy.subset_for(view, rng.u64(..)),
        };
        let hash = match &policy.strategy {
            Strategy::ConsistentHash(hashing) => hashing.key.of(view),
            _ => None,
        };
        let preferred = policy.sticky.as_ref().and_then(|sticky| sticky.key(view));
        Wish { subset, hash, preferred }
    }
}

/// How long the host's first label is.
fn label(host: &str) -> usize {
    host.find(['.', ':']).unwrap_or(host.len())
}

/// How long the host is without its port. Names of services may hold a colon, so only digits count as one.
fn without_port(host: &str) -> usize {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name.len(),
        _ => host.len(),
    }
}
