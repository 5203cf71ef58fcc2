//! A catalog, or the difference of two, as messages that stay within the limits.

use bytes::Bytes;

use crate::{
    model::{Catalog, Service, ServiceName},
    wire::{Begin, Delta, End, Route, Routes, ServerMessage, ServiceDelta, ServicePart, limits, server_message::Kind},
};

/// The whole catalog: `Begin`, every service in one part or several, the routes if there are any, `End`.
pub fn full(catalog: &Catalog) -> impl Iterator<Item = ServerMessage> + '_ {
    let begin = Kind::Begin(Begin { version: catalog.version() });
    let end = Kind::End(End { version: catalog.version(), hash: catalog.hash() });
    let parts = catalog.services().iter().flat_map(|(name, service)| parts(name, service));
    let routes = (catalog.routes().hash() != 0).then(|| routes(catalog));
    std::iter::once(begin).chain(parts.map(Kind::Part)).chain(routes).chain(std::iter::once(end)).map(message)
}

/// What leads from `old` to `new`: deltas, services whose change is too large for one message whole, in parts, and the
/// routes if they changed.
/// Empty if they hold the same. The last message always carries the new version and hash.
pub fn delta(old: &Catalog, new: &Catalog) -> Vec<ServerMessage> {
    if old.hash() == new.hash() && old.version() == new.version() {
        return Vec::new();
    }
    let mut whole = Vec::new();
    if old.routes().hash() != new.routes().hash() {
        whole.push(message(routes(new)));
    }
    let mut services = Vec::new();
    let mut bytes = 0;
    for (name, service) in new.services() {
        let known = old.services().get(name);
        if known.is_some_and(|known| known.hash() == service.hash()) {
            continue;
        }
        let change = service_delta(name, known.map(AsRef::as_ref), service);
        let size = delta_size(&change);
        if bytes + size > limits::MESSAGE_TARGET_BYTES {
            whole.extend(parts(name, service).map(Kind::Part).map(message));
        } else {
            bytes += size;
            services.push(change);
        }
    }
    for name in old.services().keys().filter(|name| !new.services().contains_key(*name)) {
        let change = ServiceDelta { service: name.to_string(), deleted: true, ..ServiceDelta::default() };
        bytes += delta_size(&change);
        services.push(change);
    }
    if bytes > limits::MESSAGE_BYTES / 2 {
        // So many services vanished at once that their names alone are too much: the full form is smaller.
        return full(new).collect();
    }
    whole.push(message(Kind::Delta(Delta {
        from_version: old.version(),
        version: new.version(),
        hash: new.hash(),
        services,
    })));
    whole
}

fn service_delta(name: &ServiceName, old: Option<&Service>, new: &Service) -> ServiceDelta {
    let mut upsert: Vec<Bytes> = Vec::new();
    let mut remove = Vec::new();
    for (address, entry) in new.entries() {
        let known = old.and_then(|old| old.entries().get(address));
        if known.is_none_or(|known| known.hash() != entry.hash()) {
            upsert.push(entry.encoded().clone());
        }
    }
    for address in old.into_iter().flat_map(|old| old.entries().keys()) {
        if !new.entries().contains_key(address) {
            remove.push(address.to_string());
        }
    }
    let known = old.map(|old| &**old.policy()).unwrap_or_default();
    let policy = (known != &**new.policy()).then(|| new.policy().clone());
    ServiceDelta { service: name.to_string(), hash: new.hash(), upsert, remove, deleted: false, policy }
}

/// About the encoded size: each field's content and a few bytes for its tag and length.
fn delta_size(delta: &ServiceDelta) -> usize {
    let upsert: usize = delta.upsert.iter().map(|node| node.len() + 5).sum();
    let remove: usize = delta.remove.iter().map(|address| address.len() + 3).sum();
    let policy = delta.policy.as_ref().map_or(0, |policy| policy.len() + 5);
    delta.service.len() + 24 + upsert + remove + policy
}

/// The service in parts of at most [`limits::MESSAGE_TARGET_BYTES`], or one node where that is larger.
fn parts<'a>(name: &'a ServiceName, service: &'a Service) -> impl Iterator<Item = ServicePart> + 'a {
    let mut groups: Vec<Vec<Bytes>> = vec![Vec::new()];
    let mut bytes = service.policy().len();
    for entry in service.entries().values() {
        let size = entry.encoded().len() + 5;
        if bytes + size > limits::MESSAGE_TARGET_BYTES && bytes > 0 {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(group) = groups.last_mut() {
            group.push(entry.encoded().clone());
        }
    }
    let parts = groups.len() as u32;
    groups.into_iter().enumerate().map(move |(part, nodes)| ServicePart {
        service: name.to_string(),
        hash: service.hash(),
        part: part as u32,
        parts,
        nodes,
        policy: if part == 0 { service.policy().clone() } else { Bytes::new() },
    })
}

fn routes(catalog: &Catalog) -> Kind {
    let documents = catalog.routes().documents().iter();
    let routes = documents.map(|(id, document)| Route { id: id.clone(), document: document.clone() });
    Kind::Routes(Routes { hash: catalog.routes().hash(), routes: routes.collect() })
}

fn message(kind: Kind) -> ServerMessage {
    ServerMessage { kind: Some(kind) }
}
