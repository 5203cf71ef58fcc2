//! A service of this host.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    time::{Duration, UNIX_EPOCH},
};

use waypost_catalog::{Health, Node, Placement, Protocol, ServiceName};
use waypost_registry::{
    address::AddressSource,
    format::{EncodeError, Format, Timestamps},
};

use super::{
    check::{Check, check},
    reader::Section,
    values::{self, SECOND},
};

/// A service of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Where its address comes from.
    pub address: AddressSource,
    /// The port it listens on.
    pub port: u16,
    /// Name of this instance in the registry.
    pub instance: String,
    /// Its share of new requests; 0 means none.
    pub weight: u32,
    /// Failure domain; empty if unknown.
    pub zone: String,
    /// Version of what runs; empty if unknown.
    pub version: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Free data by name.
    pub metadata: BTreeMap<String, String>,
    /// What it speaks.
    pub protocol: Protocol,
    /// How it is written to the registry.
    pub format: Format,
    /// The prefix it is written under, which ends in `/` or is empty.
    pub root: String,
    /// How long the registration outlives the agent: whole seconds.
    pub ttl: Duration,
    /// Its check; without one it passes always.
    pub check: Option<Check>,
}

impl Service {
    /// The node it is, at an address and of a health.
    pub fn node_at(&self, address: SocketAddr, health: Health) -> Node {
        Node {
            address,
            weight: self.weight,
            health,
            protocol: self.protocol,
            id: self.instance.clone(),
            zone: self.zone.clone(),
            version: self.version.clone(),
            tags: self.tags.clone(),
            metadata: self.metadata.clone(),
            placement: Placement::default(),
        }
    }
}

/// Every service of the document.
pub(super) fn services(root: &Section<'_>, node: &str) -> Vec<Service> {
    let mut seen = HashSet::new();
    let mut services = Vec::new();
    for section in root.sections("service") {
        let Some(service) = service(&section, node) else { continue };
        if !seen.insert((service.root.clone(), service.name.clone(), service.instance.clone())) {
            let message =
                format!("{:?} of {} is there already: set a different instance", service.instance, service.name);
            section.problem("instance", message);
        }
        services.push(service);
    }
    services
}

/// One service: the tables `[[service]]`, and what is registered at run time.
pub(super) fn service(section: &Section<'_>, node: &str) -> Option<Service> {
    let name = section.require("name", "the service's name", values::service_name);
    let address = section.get("address", values::parsed).unwrap_or(AddressSource::Auto);
    let port = section.require("port", "the port it listens on", values::integer(1..=u16::MAX));
    let instance = section.get("instance", values::segment);
    let weight = section.get("weight", values::integer(0..=u32::MAX));
    let zone = section.get("zone", values::text).unwrap_or_default();
    let version = section.get("version", values::text).unwrap_or_default();
    let tags = section.list("tags", values::text).unwrap_or_default();
    let metadata = section.map("metadata", values::text).unwrap_or_default();
    let protocol = section.get("protocol", values::protocol).unwrap_or(Protocol::Http1);
    let format = section.get("format", values::format).unwrap_or(Format::Waypost);
    let root = section.get("root", values::prefix);
    let ttl = section.get("ttl", values::seconds(SECOND..=3600 * SECOND)).unwrap_or(5 * SECOND);
    let check = section.section("check").map(check);
    if format.default_root().is_none() && !section.has("root") {
        section.problem(
            "root",
            format!("missing: format {format} has no prefix of its own; write one, such as \"/services/\""),
        );
    }
    section.finish();
    let (name, port, check) = (name?, port?, check.map_or(Some(None), |check| check.map(Some))?);
    let instance = instance.unwrap_or_else(|| format!("{node}-{port}"));
    let root = root.unwrap_or_else(|| format.default_root().unwrap_or_default().to_owned());
    let weight = weight.unwrap_or_else(|| format.default_weight());
    let service = Service {
        name,
        address,
        port,
        instance,
        weight,
        zone,
        version,
        tags,
        metadata,
        protocol,
        format,
        root,
        ttl,
        check,
    };
    let node = service.node_at(SocketAddr::from(([127, 0, 0, 1], port)), Health::Passing);
    let times = Timestamps { registered_at: UNIX_EPOCH, updated_at: UNIX_EPOCH };
    if let Err(error) = node.encode() {
        section.problem("metadata", error.to_string());
    } else if let Err(error) = format.encode(&service.root, &service.name, &service.instance, &node, times) {
        let key = match error {
            EncodeError::ReadOnly(_) => "format",
            EncodeError::ZeroWeight(_) => "weight",
            EncodeError::DnsName(_) | EncodeError::UpstreamId(_) => "name",
            EncodeError::Instance(_) => "instance",
            EncodeError::TooLarge(_) | EncodeError::Json(_) => "metadata",
        };
        section.problem(key, error.to_string());
    }
    Some(service)
}
