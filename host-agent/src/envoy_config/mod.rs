//! Envoy's bootstrap: the file in `envoy/`, with a host's own socket, ports, node id and services filled in.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::json;
use waypost_catalog::ServiceName;

mod template;

use template::{Filling, TemplateError, Values, fill};

/// The bootstrap as it stands.
const BOOTSTRAP: &str = include_str!("../../../envoy/bootstrap.yaml");

/// The cluster of mode `original_dst`.
const ORIGINAL_DST: &str = include_str!("../../../envoy/pieces/original-dst.yaml");

/// Its name.
const ORIGINAL_DST_CLUSTER: &str = "waypost_original_dst";

/// Where routes come from etcd: the header that says which cluster a request leads to, and who reads it.
const DYNAMIC_HEADER: &str = include_str!("../../../envoy/pieces/dynamic-header.yaml");
const DYNAMIC_CLUSTER: &str = include_str!("../../../envoy/pieces/dynamic-cluster.yaml");

/// How the filter's choice reaches Envoy's router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// Candidates in a header, a cluster per service behind them.
    #[default]
    OverrideHost,
    /// One address in filter state, one cluster for everything, no xDS.
    OriginalDst,
}

/// What is filled in.
#[derive(Clone, Debug)]
pub struct BootstrapOptions {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Envoy's node id.
    pub node_id: String,
    /// Envoy's cluster, in the sense of its node.
    pub cluster: String,
    /// Where it takes requests.
    pub listen: SocketAddr,
    /// Where its admin interface listens.
    pub admin: SocketAddr,
    /// Services that it routes to, by their names as host.
    pub services: Vec<ServiceName>,
    /// Routes come from etcd instead, and every service is reached by its name as host.
    pub dynamic: bool,
    /// How the filter's choice reaches Envoy's router.
    pub mode: Mode,
    /// The filter.
    pub plugin_path: PathBuf,
}

/// Why there is no such bootstrap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// No service is named.
    #[error("no service to route to: name one at least, or have routes come from etcd (--dynamic)")]
    NoService,
    /// Services are named where they come from etcd.
    #[error("services are named, and routes are to come from etcd: either or")]
    NamedAndDynamic,
    /// Two services that one host name stands for.
    #[error(
        "service {0}: another one has the same name but for upper and lower case, and hosts do not tell them apart"
    )]
    AmbiguousService(ServiceName),
    /// A service that mode `original_dst` cannot tell by its host.
    #[error(
        "service {0}: mode original_dst tells services by the first label of the host, so no `.` or `:` may be in their \
         names: use mode override_host"
    )]
    NotALabel(ServiceName),
    /// A path or name that no YAML file can hold.
    #[error("{what} {value:?}: only printable Unicode text can be written into Envoy's configuration")]
    Unprintable {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The file that this program was built with is at fault.
    #[error("this program was built with an unusable bootstrap: {0}")]
    Template(#[from] TemplateError),
}

/// The bootstrap.
///
/// # Errors
/// [`RenderError`], which says what to change.
pub fn render(options: &BootstrapOptions) -> Result<String, RenderError> {
    check_services(options)?;
    let (override_host, original_dst) = match options.mode {
        Mode::OverrideHost => (vec![Values::new()], vec![]),
        Mode::OriginalDst => (vec![], vec![Values::new()]),
    };
    let plugin_configuration = match (options.mode, options.dynamic) {
        (Mode::OverrideHost, false) => json!({"mode": "override_host"}),
        (Mode::OriginalDst, false) => json!({"mode": "original_dst", "service": {"from": "host"}}),
        (Mode::OverrideHost, true) => json!({"mode": "override_host", "service": {"from": "routes"}}),
        (Mode::OriginalDst, true) => json!({"mode": "original_dst", "service": {"from": "routes"}}),
    };
    let values = Values::from([
        ("socket", json!(path("the socket", &options.socket)?)),
        ("plugin", json!(path("the filter", &options.plugin_path)?)),
        ("node_id", json!(printable("the node id", &options.node_id)?)),
        ("node_cluster", json!(printable("the node's cluster", &options.cluster)?)),
        ("listen_address", json!(options.listen.ip())),
        ("listen_port", json!(options.listen.port())),
        ("admin_address", json!(options.admin.ip())),
        ("admin_port", json!(options.admin.port())),
        ("plugin_configuration", json!(plugin_configuration.to_string())),
    ]);
    let services = options.services.iter().map(|service| {
        let cluster = match options.mode {
            Mode::OverrideHost => service.as_str(),
            Mode::OriginalDst => ORIGINAL_DST_CLUSTER,
        };
        Values::from([
            ("service", json!(service.as_str())),
            ("domains", json!([service.as_str(), format!("{service}:*")])),
            ("cluster", json!(cluster)),
        ])
    });
    let everything = options.dynamic.then(|| {
        Values::from([
            ("service", json!("waypost")),
            ("domains", json!(["*"])),
            ("cluster", json!(ORIGINAL_DST_CLUSTER)),
        ])
    });
    let by_header = options.dynamic && options.mode == Mode::OverrideHost;
    let filling = Filling {
        values,
        blocks: [
            ("as_it_stands", vec![]),
            ("override_host", override_host),
            ("original_dst", original_dst),
            ("services", services.chain(everything).collect()),
            ("named", if by_header { vec![] } else { vec![Values::new()] }),
        ]
        .into(),
        texts: [
            ("original_dst", ORIGINAL_DST),
            ("dynamic_header", if by_header { DYNAMIC_HEADER } else { "" }),
            ("dynamic_cluster", if by_header { DYNAMIC_CLUSTER } else { "" }),
        ]
        .into(),
    };
    Ok(fill(BOOTSTRAP, &filling)?)
}

fn check_services(options: &BootstrapOptions) -> Result<(), RenderError> {
    match (options.services.is_empty(), options.dynamic) {
        (true, false) => return Err(RenderError::NoService),
        (false, true) => return Err(RenderError::NamedAndDynamic),
        (true, true) | (false, false) => {}
    }
    let mut hosts = BTreeSet::new();
    for service in &options.services {
        if !hosts.insert(service.to_ascii_lowercase()) {
            return Err(RenderError::AmbiguousService(service.clone()));
        }
        if options.mode == Mode::OriginalDst && service.contains(['.', ':']) {
            return Err(RenderError::NotALabel(service.clone()));
        }
    }
    Ok(())
}

fn path<'a>(what: &'static str, path: &'a Path) -> Result<&'a str, RenderError> {
    let unprintable = || RenderError::Unprintable { what, value: path.display().to_string() };
    printable(what, path.to_str().ok_or_else(unprintable)?)
}

/// Quotes and escapes are JSON's business; what is left is what no YAML scalar may hold as it is.
fn printable<'a>(what: &'static str, text: &'a str) -> Result<&'a str, RenderError> {
    let fits =
        |c: char| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    match text.chars().all(fits) {
        true => Ok(text),
        false => Err(RenderError::Unprintable { what, value: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(services: &[&str], mode: Mode) -> BootstrapOptions {
        BootstrapOptions {
            socket: "/tmp/a.sock".into(),
            node_id: "edge-1".into(),
            cluster: "edge".into(),
            listen: "[::1]:8000".parse().unwrap(),
            admin: "127.0.0.1:8001".parse().unwrap(),
            services: services.iter().map(|name| ServiceName::new(name).unwrap()).collect(),
            dynamic: false,
            mode,
            plugin_path: "/opt/plugin.wasm".into(),
        }
    }

    fn rendered(services: &[&str], mode: Mode) -> String {
        render(&options(services, mode)).unwrap()
    }

    /// What counts of a piece or of the bootstrap: no comments, no blank lines.
    fn content(yaml: &str) -> Vec<&str> {
        let lines = yaml.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
        lines.map(|line| line.split(" #= ").next().unwrap()).collect()
    }

    fn contains(bootstrap: &str, piece: &str) -> bool {
        let piece = content(piece);
        content(bootstrap).windows(piece.len()).any(|window| {
            let indentation = window[0].len().saturating_sub(piece[0].len());
            window
                .iter()
                .zip(&piece)
                .all(|(line, wanted)| line.get(indentation..) == Some(*wanted) && line[..indentation].trim().is_empty())
        })
    }

    #[test]
    fn the_bootstrap_is_made_of_the_pieces() {
        for piece in [
            include_str!("../../../envoy/pieces/ads.yaml"),
            include_str!("../../../envoy/pieces/cluster-agent.yaml"),
            include_str!("../../../envoy/pieces/http-filters.yaml"),
            include_str!("../../../envoy/pieces/route.yaml"),
        ] {
            assert!(contains(BOOTSTRAP, piece), "{piece}");
        }
        assert!(!contains(BOOTSTRAP, ORIGINAL_DST));
        assert!(contains(&rendered(&["web"], Mode::OriginalDst), ORIGINAL_DST));
    }

    #[test]
    fn every_place_is_filled_in_and_no_mark_is_left() {
        let yaml = rendered(&["web", "shop.v1"], Mode::OverrideHost);
        for expected in [
            "path: \"/tmp/a.sock\"",
            "filename: \"/opt/plugin.wasm\"",
            "id: \"edge-1\"",
            "cluster: \"edge\"",
            "address: \"::1\"",
            "port_value: 8000",
            "address: \"127.0.0.1\"",
            "port_value: 8001",
            "value: \"{\\\"mode\\\":\\\"override_host\\\"}\"",
            "- name: \"web\"",
            "domains: [\"web\",\"web:*\"]",
            "cluster: \"web\"",
            "domains: [\"shop.v1\",\"shop.v1:*\"]",
            "cluster: \"shop.v1\"",
        ] {
            assert!(content(&yaml).iter().any(|line| line.trim() == expected), "{expected}\n{yaml}");
        }
        let marks = ["#=", "#+", "#-", "#<"];
        assert!(!yaml.lines().any(|line| marks.iter().any(|mark| line.contains(mark))), "{yaml}");
    }

    #[test]
    fn original_dst_has_one_cluster_and_no_xds() {
        let yaml = rendered(&["web"], Mode::OriginalDst);
        let yaml = content(&yaml).join("\n");
        assert!(!yaml.contains("dynamic_resources") && !yaml.contains("cluster: \"web\""), "{yaml}");
        assert!(yaml.contains("cluster: \"waypost_original_dst\""), "{yaml}");
        assert!(yaml.contains(r#"value: "{\"mode\":\"original_dst\",\"service\":{\"from\":\"host\"}}""#), "{yaml}");
    }

    #[test]
    fn with_routes_from_etcd_there_is_one_virtual_host_and_a_header_names_the_cluster() {
        let dynamic = |mode| render(&BootstrapOptions { dynamic: true, ..options(&[], mode) }).unwrap();
        let yaml = dynamic(Mode::OverrideHost);
        assert!(contains(&yaml, DYNAMIC_HEADER) && contains(&yaml, DYNAMIC_CLUSTER), "{yaml}");
        let lines = content(&yaml).join("\n");
        assert!(lines.contains(r#"domains: ["*"]"#) && !lines.contains(" cluster: \"waypost_"), "{yaml}");
        assert!(lines.contains(r#"{\"mode\":\"override_host\",\"service\":{\"from\":\"routes\"}}"#), "{yaml}");
        let yaml = content(&dynamic(Mode::OriginalDst)).join("\n");
        assert!(yaml.contains("cluster: \"waypost_original_dst\"") && !yaml.contains("x-waypost-cluster"), "{yaml}");
        let both = BootstrapOptions { dynamic: true, ..options(&["web"], Mode::OverrideHost) };
        assert_eq!(render(&both).unwrap_err(), RenderError::NamedAndDynamic);
    }

    #[test]
    fn whatever_is_filled_in_stays_a_value() {
        let hostile = "x\" #= port: {a: [b, 'c\\";
        let yaml = render(&BootstrapOptions {
            node_id: hostile.into(),
            socket: hostile.into(),
            ..options(&["web"], Mode::OverrideHost)
        });
        let yaml = yaml.unwrap();
        let quoted = serde_json::to_string(hostile).unwrap();
        assert!(yaml.contains(&format!("\n  id: {quoted}\n")), "{yaml}");
        assert!(yaml.contains(&format!(" path: {quoted}\n")), "{yaml}");
        for unprintable in ["a\nb", "a\u{85}b", "a\u{2028}b", "\0"] {
            let options = BootstrapOptions { node_id: unprintable.into(), ..options(&["web"], Mode::OverrideHost) };
            assert!(matches!(render(&options), Err(RenderError::Unprintable { what: "the node id", .. })));
        }
    }

    #[test]
    fn services_that_cannot_be_told_apart_are_refused() {
        let refused = |services: &[&str], mode| render(&options(services, mode)).unwrap_err();
        let name = |name| ServiceName::new(name).unwrap();
        assert_eq!(refused(&[], Mode::OverrideHost), RenderError::NoService);
        assert_eq!(refused(&["web", "Web"], Mode::OverrideHost), RenderError::AmbiguousService(name("Web")));
        assert_eq!(refused(&["web.v1"], Mode::OriginalDst), RenderError::NotALabel(name("web.v1")));
    }
}
