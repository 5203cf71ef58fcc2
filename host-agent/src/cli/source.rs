//! Whom a command asks: the agent on this host, or etcd itself.

use std::{collections::BTreeMap, env, ffi::OsString, path::PathBuf};

use clap::Args;
use waypost_catalog::{Catalog, Node, Protocol, ServiceName};
use waypost_registry::{Connector, Format};

use super::{
    etcd_options::{self, EtcdOptions},
    exit::Exit,
    values,
};
use crate::{
    api::types,
    client::{Client, ClientError, Path},
    config,
};

mod straight;

pub(super) use straight::{PATIENCE, Straight, connect, keys, unread};

/// Names the agent's socket where the command line does not.
const VARIABLE: &str = "WAYPOST_AGENT";

/// Where the agent is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct AgentOptions {
    /// The agent's Unix socket [env: WAYPOST_AGENT] [default: /run/waypost/agent.sock]
    #[arg(long = "agent", value_name = "SOCKET")]
    socket: Option<PathBuf>,
}

impl AgentOptions {
    /// The agent.
    pub(super) fn client(&self) -> Client {
        let socket = self.socket.clone().or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
        Client::new(socket.unwrap_or_else(|| config::DEFAULT_SOCKET.into()))
    }
}

/// Whom to ask.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TargetOptions {
    #[command(flatten)]
    agent: AgentOptions,
    #[command(flatten)]
    etcd: EtcdOptions,
}

/// Whom to ask for services.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SourceOptions {
    #[command(flatten)]
    target: TargetOptions,
    #[command(flatten)]
    layout: LayoutOptions,
}

/// How services are kept in etcd.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Straight at etcd")]
pub(super) struct LayoutOptions {
    /// How keys and values are written [default: waypost]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// The prefix of the keys [default: the format's]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// What nodes speak that do not say it themselves [default: http1]
    #[arg(long, value_name = "PROTOCOL", value_parser = values::protocol)]
    protocol: Option<Protocol>,
}

/// How services are kept in etcd, decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) format: Format,
    pub(super) prefix: String,
    pub(super) protocol: Protocol,
}

impl LayoutOptions {
    pub(super) fn is_given(&self) -> bool {
        self.format.is_some() || self.prefix.is_some() || self.protocol.is_some()
    }

    pub(super) fn layout(&self) -> anyhow::Result<Layout> {
        let format = self.format.unwrap_or_default();
        let missing = || {
            Exit::usage(format!("format {format} has no prefix of its own; name one with --prefix, such as /services/"))
        };
        let prefix = match &self.prefix {
            Some(prefix) => prefix.clone(),
            None => format.default_root().ok_or_else(missing)?.to_owned(),
        };
        Ok(Layout { format, prefix, protocol: self.protocol.unwrap_or_default() })
    }
}

/// Who answers.
#[derive(Debug)]
pub(super) enum Source {
    /// The agent.
    Agent(Client),
    /// etcd itself.
    Etcd(Straight),
}

/// Who is asked.
#[derive(Debug)]
pub(super) enum Target {
    /// The agent.
    Agent(Client),
    /// etcd itself.
    Etcd(Connector),
}

impl TargetOptions {
    /// Who is asked, by the command line, the environment, or the default.
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        match self.choose(|name| env::var_os(name))? {
            Choice::Agent(socket) => Ok(Target::Agent(Client::new(socket))),
            Choice::Etcd => Ok(Target::Etcd(self.etcd.connector()?)),
        }
    }

    fn choose(&self, variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Choice> {
        match &self.agent.socket {
            Some(_) if self.etcd.is_given() => Err(Exit::usage("--agent beside --etcd or --config: name one of them")),
            Some(socket) => Ok(Choice::Agent(socket.clone())),
            None if self.etcd.is_given() => Ok(Choice::Etcd),
            None => match (variable(VARIABLE), variable(etcd_options::VARIABLE)) {
                (Some(socket), _) => Ok(Choice::Agent(socket.into())),
                (None, Some(_)) => Ok(Choice::Etcd),
                (None, None) => Ok(Choice::Agent(config::DEFAULT_SOCKET.into())),
            },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Agent(PathBuf),
    Etcd,
}

impl SourceOptions {
    /// How etcd is reached, where it is gone straight at.
    pub(super) fn etcd(&self) -> anyhow::Result<config::Etcd> {
        self.target.etcd.settings(env::var(etcd_options::VARIABLE).ok())
    }

    /// Who is asked.
    pub(super) fn source(&self) -> anyhow::Result<Source> {
        match self.target.target()? {
            Target::Agent(_) if self.layout.is_given() => {
                let message = "--format, --prefix and --protocol say how etcd is read: name it with --etcd. The agent \
                               knows its prefixes from its configuration";
                Err(Exit::usage(message))
            }
            Target::Agent(client) => Ok(Source::Agent(client)),
            Target::Etcd(connector) => Ok(Source::Etcd(Straight::new(connector, self.layout.layout()?))),
        }
    }
}

impl Source {
    /// Every node, or every one of a service.
    pub(super) async fn catalog(&self, service: Option<&ServiceName>) -> anyhow::Result<Catalog> {
        match self {
            Self::Etcd(straight) => straight.catalog(service).await,
            Self::Agent(client) => {
                let path = Path::of(&["nodes"]).with("service", service.map(ServiceName::as_str));
                let answer: types::AllNodes = client.get(&path).await.map_err(told)?;
                Ok(catalog(answer))
            }
        }
    }
}

impl Source {
    /// What became of requests, if it is an agent that is asked: etcd knows nothing of them.
    pub(super) async fn outcomes(&self, service: Option<&ServiceName>) -> anyhow::Result<Option<types::Outcomes>> {
        match self {
            Self::Etcd(_) => Ok(None),
            Self::Agent(client) => {
                let path = Path::of(&["outcomes"]).with("service", service.map(ServiceName::as_str));
                client.get(&path).await.map(Some).map_err(told)
            }
        }
    }
}

/// The nodes that an agent told of. What it serves fits a catalog.
fn catalog(answer: types::AllNodes) -> Catalog {
    let mut services = BTreeMap::<ServiceName, Vec<Node>>::new();
    for types::ServiceNode { service, node } in answer.nodes {
        if let Ok(service) = ServiceName::new(&service) {
            services.entry(service).or_default().push(node.into());
        }
    }
    Catalog::default().updated(services).0.unwrap_or_default()
}

/// The agent's failure, with its exit status.
pub(super) fn told(error: ClientError) -> anyhow::Error {
    match &error {
        error if error.is_unreachable() => Exit::unavailable(error.to_string()),
        error if error.is_absent() => Exit::not_there(error.to_string()),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(agent: Option<&str>, etcd: bool, variables: &[(&str, &str)]) -> anyhow::Result<Choice> {
        let etcd = if etcd { EtcdOptions::at("http://127.0.0.1:1") } else { EtcdOptions::default() };
        let options = TargetOptions { agent: AgentOptions { socket: agent.map(PathBuf::from) }, etcd };
        options.choose(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_command_line_counts_before_the_environment_and_that_before_the_default() {
        let both = [(VARIABLE, "/env.sock"), (etcd_options::VARIABLE, "http://env:1")];
        assert_eq!(chosen(Some("/a.sock"), false, &both).unwrap(), Choice::Agent("/a.sock".into()));
        assert_eq!(chosen(None, true, &both).unwrap(), Choice::Etcd);
        assert_eq!(chosen(None, false, &both).unwrap(), Choice::Agent("/env.sock".into()));
        assert_eq!(chosen(None, false, &both[1..]).unwrap(), Choice::Etcd);
        assert_eq!(chosen(None, false, &[]).unwrap(), Choice::Agent(config::DEFAULT_SOCKET.into()));
        assert!(chosen(Some("/a.sock"), true, &[]).is_err());
    }

    #[test]
    fn a_format_without_a_prefix_of_its_own_needs_one() {
        let layout = |format, prefix: Option<&str>| {
            LayoutOptions { format: Some(format), prefix: prefix.map(str::to_owned), protocol: None }.layout()
        };
        assert_eq!(layout(Format::Kratos, None).unwrap().prefix, "/microservices/");
        assert_eq!(layout(Format::EndpointKey, Some("/s/")).unwrap().prefix, "/s/");
        assert!(layout(Format::EndpointKey, None).unwrap_err().to_string().contains("--prefix"));
    }
}
