//! The sections of the file other than services.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use waypost_catalog::Protocol;
use waypost_registry::format::Format;

use super::{
    Auth, Config, DEFAULT_SOCKET, Etcd, Guard, Password, StrategiesConfig, Watch, Xds,
    reader::Section,
    service,
    values::{self, MS, SECOND},
};

const MINUTE: Duration = Duration::from_secs(60);

/// The prefix under which Waypost's own format keeps services, unless another is named.
pub(super) const DEFAULT_ROOT: &str = "/waypost/services/";

/// The document. `None` only if something was noted as wrong; a `Some` may still come with notes.
pub(super) fn config(root: &Section<'_>, host_name: &str) -> Option<Config> {
    let node = root.get("node", values::segment).or_else(|| default_node(root, host_name));
    let zone = root.get("zone", values::text).unwrap_or_default();
    let state_dir = root.get("state_dir", values::path).unwrap_or_else(|| "/var/lib/waypost".into());
    let drain = root.get("drain", values::duration(Duration::ZERO..=10 * MINUTE)).unwrap_or(5 * SECOND);
    let etcd = match root.section("etcd") {
        Some(section) => etcd(section),
        None => {
            if !root.has("etcd") {
                root.problem("etcd.endpoints", "missing: write [etcd] with endpoints = [\"http://127.0.0.1:2379\"]");
            }
            None
        }
    };
    let socket = root.section("stream").and_then(socket).unwrap_or_else(|| DEFAULT_SOCKET.into());
    let api = root.section("api").and_then(listen);
    let admin = root.section("admin").and_then(listen).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9180)));
    let xds =
        root.section("xds").map(xds).unwrap_or_else(|| Xds { services: vec!["*".into()], connect_timeout: SECOND });
    let guard = root.section("guard").map(guard).unwrap_or_default();
    let strategies = root.section("strategies").map(strategies).unwrap_or_default();
    let watches = watches(root);
    let mut services = service::services(root, node.as_deref().unwrap_or("node"));
    for service in services.iter_mut().filter(|service| service.zone.is_empty()) {
        service.zone.clone_from(&zone);
    }
    root.finish();
    Some(Config {
        node: node?,
        zone,
        state_dir,
        drain,
        etcd: etcd?,
        socket,
        admin,
        api,
        xds,
        guard,
        strategies,
        watches,
        services,
    })
}

fn default_node(root: &Section<'_>, host_name: &str) -> Option<String> {
    if root.has("node") {
        return None;
    }
    let checked = values::check_segment(host_name.to_owned());
    checked.map_err(|error| root.problem("node", format!("missing, and the host's name {error}"))).ok()
}

fn etcd(section: Section<'_>) -> Option<Etcd> {
    let endpoints = section.list("endpoints", values::endpoint);
    if !section.has("endpoints") {
        section.problem("endpoints", "missing: write an array, such as [\"http://127.0.0.1:2379\"]");
    }
    let username = section.get("username", values::text);
    let literal = section.get("password", values::text).map(Password::Literal);
    let file = section.get("password_file", values::path).map(Password::File);
    let ca_file = section.get("ca_file", values::path);
    let cert = section.get("cert_file", values::path);
    let key = section.get("key_file", values::path);
    let timeout = || values::duration(100 * MS..=MINUTE);
    let connect_timeout = section.get("connect_timeout", timeout()).unwrap_or(2 * SECOND);
    let request_timeout = section.get("request_timeout", timeout()).unwrap_or(3 * SECOND);

    if let Some(endpoints) = &endpoints {
        let tls = endpoints.iter().filter(|endpoint| endpoint.starts_with("https:")).count();
        if endpoints.is_empty() {
            section.problem("endpoints", "is empty: write at least one, such as \"http://127.0.0.1:2379\"");
        } else if tls > 0 && tls < endpoints.len() {
            section.problem("endpoints", "mixes http and https: all endpoints are reached the same way");
        } else if tls > 0 && !section.has("ca_file") {
            section.problem("ca_file", "missing: https endpoints need the certificate of the authority to trust");
        } else if tls == 0 {
            for key in ["ca_file", "cert_file", "key_file"].into_iter().filter(|key| section.has(key)) {
                section.problem(key, "is for TLS: write the endpoints with https, or leave it out");
            }
        }
    }
    if section.has("password") && section.has("password_file") {
        section.problem("password_file", "beside password: write one of the two");
    }
    let has_password = section.has("password") || section.has("password_file");
    if section.has("username") != has_password {
        let (key, other) =
            if has_password { ("username", "a password is given") } else { ("password_file", "a username is given") };
        section.problem(key, format!("missing, where {other}"));
    }
    if section.has("cert_file") != section.has("key_file") {
        let missing = if section.has("cert_file") { "key_file" } else { "cert_file" };
        section.problem(missing, "missing: cert_file and key_file come together");
    }
    section.finish();
    let auth = username.zip(literal.or(file)).map(|(username, password)| Auth { username, password });
    Some(Etcd { endpoints: endpoints?, auth, ca_file, identity: cert.zip(key), connect_timeout, request_timeout })
}

fn socket(section: Section<'_>) -> Option<PathBuf> {
    let socket = section.get("socket", values::path);
    // The address of a Unix socket holds 108 bytes with the closing zero.
    if let Some(path) = socket.as_ref().filter(|path| path.as_os_str().len() > 107) {
        section
            .problem("socket", format!("takes {} bytes, and a Unix socket's path at most 107", path.as_os_str().len()));
    }
    section.finish();
    socket
}

fn listen(section: Section<'_>) -> Option<SocketAddr> {
    let listen = section.get("listen", values::loopback);
    section.finish();
    listen
}

fn xds(section: Section<'_>) -> Xds {
    let services = section.list("services", values::service_pattern).unwrap_or_else(|| vec!["*".into()]);
    let connect_timeout = section.get("connect_timeout", values::duration(10 * MS..=MINUTE)).unwrap_or(SECOND);
    section.finish();
    Xds { services, connect_timeout }
}

impl Default for Guard {
    fn default() -> Self {
        Self { enabled: true, max_loss: 0.5, grace: 30 * SECOND, window: 10 * SECOND, exempt: Vec::new() }
    }
}

fn guard(section: Section<'_>) -> Guard {
    let default = Guard::default();
    let guard = Guard {
        enabled: section.get("enabled", values::boolean).unwrap_or(default.enabled),
        max_loss: section.get("max_loss", values::share).unwrap_or(default.max_loss),
        grace: section.get("grace", values::duration(SECOND..=60 * MINUTE)).unwrap_or(default.grace),
        window: section.get("window", values::duration(SECOND..=60 * MINUTE)).unwrap_or(default.window),
        exempt: section.list("exempt", values::service_name).unwrap_or(default.exempt),
    };
    section.finish();
    guard
}

impl Default for StrategiesConfig {
    fn default() -> Self {
        Self { directory: "/etc/waypost/strategies".into(), deadline: 100 * MS, memory: 64 << 20 }
    }
}

fn strategies(section: Section<'_>) -> StrategiesConfig {
    let default = StrategiesConfig::default();
    let memory = section.get("memory_mib", values::integer(1..=4096_usize)).map(|mib| mib << 20);
    let strategies = StrategiesConfig {
        directory: section.get("directory", values::path).unwrap_or(default.directory),
        deadline: section.get("deadline", values::duration(MS..=MINUTE)).unwrap_or(default.deadline),
        memory: memory.unwrap_or(default.memory),
    };
    section.finish();
    strategies
}

fn watches(root: &Section<'_>) -> Vec<Watch> {
    let mut watches: Vec<Watch> = Vec::new();
    for section in root.sections("watch") {
        let format = section.get("format", values::format).unwrap_or(Format::Waypost);
        // biregister puts nothing between prefix and name.
        let allowed = if format == Format::Biregister { values::open_prefix } else { values::prefix };
        let prefix = section.get("prefix", allowed);
        let protocol = section.get("protocol", values::protocol).unwrap_or(Protocol::Http1);
        // An empty one would be all of etcd.
        let default = format.default_root().filter(|root| !root.is_empty() && !section.has("prefix"));
        if default.is_none() && !section.has("prefix") {
            section.problem("prefix", format!("missing: format {format} has no prefix of its own"));
        }
        section.finish();
        let Some(prefix) = prefix.or(default.map(str::to_owned)) else { continue };
        if watches.iter().any(|watch| watch.prefix == prefix) {
            section.problem("prefix", format!("{prefix:?} is watched already: each prefix once"));
        }
        watches.push(Watch { prefix, format, protocol });
    }
    if watches.is_empty() {
        watches.push(Watch { prefix: DEFAULT_ROOT.to_owned(), format: Format::Waypost, protocol: Protocol::Http1 });
    }
    watches
}
