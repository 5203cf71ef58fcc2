//! The plugin's configuration: JSON, every field optional, unknown ones refused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a pick reaches Envoy's router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// An ordered list of candidates in a header, for a cluster with the `override_host` policy.
    #[default]
    OverrideHost,
    /// One address in filter state, for an `ORIGINAL_DST` cluster.
    OriginalDst,
}

/// What names the service of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServiceFrom {
    /// The cluster that the route leads to.
    #[default]
    Cluster,
    /// A header with this name, in lower case.
    Header(String),
    /// The host up to the first dot or colon.
    Host,
    /// The first of the routes in etcd that matches; where none does, the host, whole or up to the first dot.
    Routes,
}

/// The configuration of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How a pick reaches the router.
    pub mode: Mode,
    /// What names the service.
    pub service: ServiceFrom,
    /// The cluster through which the agent is reached.
    pub agent_cluster: String,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No JSON, a wrong type, an unknown field or value.
    #[error("the plugin's configuration is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// `service.name` is missing or of no use.
    #[error("service.name: {0}")]
    ServiceName(&'static str),
    /// A name that cannot be a cluster's.
    #[error("agent_cluster: 1 to {MAX_CLUSTER_NAME} printable ASCII characters are allowed")]
    AgentCluster,
}

/// The longest name whose encoded `GrpcService` is ASCII, and so fits the SDK's function that takes text.
const MAX_CLUSTER_NAME: usize = 120;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    service: Service,
    #[serde(default = "default_agent_cluster")]
    agent_cluster: String,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    from: From,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum From {
    #[default]
    Cluster,
    Header,
    Host,
    Routes,
}

fn default_agent_cluster() -> String {
    "waypost_agent".into()
}

impl Config {
    /// Reads a configuration; none at all means the defaults.
    ///
    /// # Errors
    /// [`ConfigError`], which names the field.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let json = if json.is_empty() { b"{}" } else { json };
        let Document { mode, service, agent_cluster } = serde_json::from_slice(json)?;
        let service = match (service.from, service.name) {
            (From::Cluster, None) => ServiceFrom::Cluster,
            (From::Host, None) => ServiceFrom::Host,
            (From::Routes, None) => ServiceFrom::Routes,
            (From::Header, Some(name)) => ServiceFrom::Header(header_name(&name)?),
            (From::Header, None) => return Err(ConfigError::ServiceName("the name of a header is needed")),
            (From::Cluster | From::Host | From::Routes, Some(_)) => {
                return Err(ConfigError::ServiceName("only allowed with \"from\": \"header\""));
            }
        };
        let fits = (1..=MAX_CLUSTER_NAME).contains(&agent_cluster.len());
        if !fits || !agent_cluster.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ConfigError::AgentCluster);
        }
        Ok(Self { mode, service, agent_cluster })
    }
}

/// As JSON: the same text for the same configuration, however it was written.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = match &self.service {
            ServiceFrom::Cluster => Service { from: From::Cluster, name: None },
            ServiceFrom::Header(name) => Service { from: From::Header, name: Some(name.clone()) },
            ServiceFrom::Host => Service { from: From::Host, name: None },
            ServiceFrom::Routes => Service { from: From::Routes, name: None },
        };
        let document = Document { mode: self.mode, service, agent_cluster: self.agent_cluster.clone() };
        f.write_str(&serde_json::to_string(&document).map_err(|_| fmt::Error)?)
    }
}

fn header_name(name: &str) -> Result<String, ConfigError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(fits) {
        return Err(ConfigError::ServiceName("1 to 128 of the letters A-Z a-z, digits and - _ . are allowed"));
    }
    Ok(name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_an_empty_object_mean_the_defaults() {
        let default =
            Config { mode: Mode::OverrideHost, service: ServiceFrom::Cluster, agent_cluster: "waypost_agent".into() };
        assert_eq!(Config::parse(b"").unwrap(), default);
        assert_eq!(Config::parse(b"{}").unwrap(), default);
    }

    #[test]
    fn every_field_is_read_and_written_back() {
        let json = br#"{"agent_cluster":"agent","service":{"name":"X-Service","from":"header"},"mode":"original_dst"}"#;
        let config = Config::parse(json).unwrap();
        assert_eq!(
            config,
            Config {
                mode: Mode::OriginalDst,
                service: ServiceFrom::Header("x-service".into()),
                agent_cluster: "agent".into(),
            }
        );
        assert_eq!(Config::parse(config.to_string().as_bytes()).unwrap(), config);
        for (from, expected) in [("host", ServiceFrom::Host), ("routes", ServiceFrom::Routes)] {
            let config = Config::parse(format!(r#"{{"service":{{"from":"{from}"}}}}"#).as_bytes()).unwrap();
            assert_eq!(config.service, expected);
            assert_eq!(Config::parse(config.to_string().as_bytes()).unwrap(), config);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, expected) in [
            (r#"{"mod":"override_host"}"#, "`mod`"),
            (r#"{"mode":"hash"}"#, "`hash`"),
            (r#"{"service":{"from":"path"}}"#, "`path`"),
            (r#"{"service":{"from":"header","nam":"x"}}"#, "`nam`"),
            (r#"{"service":{}}"#, "`from`"),
            (r#"{"service":{"from":"header"}}"#, "service.name"),
            (r#"{"service":{"from":"header","name":"x y"}}"#, "service.name"),
            (r#"{"service":{"from":"host","name":"x"}}"#, "service.name"),
            (r#"{"agent_cluster":""}"#, "agent_cluster"),
            (r#"{"agent_cluster":"\u00e9"}"#, "agent_cluster"),
            (r#"{"agent_cluster":7}"#, "expected a string"),
            ("[]x", "not valid"),
            ("\u{0}", "not valid"),
        ] {
            let error = Config::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
