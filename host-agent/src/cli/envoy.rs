//! `waypost envoy bootstrap`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use waypost_catalog::ServiceName;

use super::{load, values::service_name};
use crate::{
    config,
    envoy_config::{self, BootstrapOptions, Mode},
};

#[derive(Debug, Args)]
pub(super) struct Bootstrap {
    /// The agent's configuration, for its socket, node and services; without it the defaults count
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A service to route to; may be repeated [default: those named in the configuration's xds.services, and this
    /// host's own]
    #[arg(long = "service", value_name = "NAME", value_parser = service_name)]
    services: Vec<ServiceName>,
    /// Routes come from etcd, and every service is reached by its name as host: Envoy need not be told of new ones
    #[arg(long, conflicts_with = "services")]
    dynamic: bool,
    /// Where Envoy listens for requests
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10000")]
    listen: SocketAddr,
    /// Where Envoy's admin interface listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    admin: SocketAddr,
    /// The filter's module
    #[arg(long, value_name = "PATH", default_value = "/usr/lib/waypost/waypost_plugin.wasm")]
    plugin: PathBuf,
    /// How a pick reaches Envoy's router: override_host or original_dst
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Envoy's node id [default: the agent's node]
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
}

impl Bootstrap {
    /// The bootstrap, as YAML.
    pub(super) fn render(self) -> anyhow::Result<String> {
        let config = self.config.as_deref().map(load).transpose()?;
        let mut services = self.services;
        if let Some(config) = config.as_ref().filter(|_| services.is_empty() && !self.dynamic) {
            // Patterns name no service, and are no service's name.
            services.extend(config.xds.services.iter().filter_map(|name| ServiceName::new(name).ok()));
            services.extend(config.services.iter().map(|service| service.name.clone()));
        }
        services.sort();
        services.dedup();
        let (socket, node) = match config {
            Some(config) => (config.socket, config.node),
            None => (config::DEFAULT_SOCKET.into(), config::host_name()),
        };
        let options = BootstrapOptions {
            socket,
            node_id: self.node_id.unwrap_or(node),
            cluster: "waypost".to_owned(),
            listen: self.listen,
            admin: self.admin,
            services,
            dynamic: self.dynamic,
            mode: self.mode,
            plugin_path: self.plugin,
        };
        Ok(envoy_config::render(&options)?)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::{Cli, Command, EnvoyCommand};

    #[test]
    fn a_bootstrap_routes_to_what_the_configuration_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let text = "node = \"edge-1\"\n[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n[stream]\nsocket = \"/tmp/w.sock\"\n\
                    [xds]\nservices = [\"users\", \"pay*\"]\n[[service]]\nname = \"orders\"\nport = 80\n";
        std::fs::write(&path, text).unwrap();
        let bootstrap = |args: &[&str]| {
            let config = ["--config", path.to_str().unwrap()];
            let args = ["waypost", "envoy", "bootstrap"].iter().chain(&config).chain(args);
            match Cli::parse_from(args).command {
                Command::Envoy(EnvoyCommand::Bootstrap(bootstrap)) => bootstrap.render().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let printed = bootstrap(&[]);
        for part in ["\"/tmp/w.sock\"", "\"edge-1\"", "\"users\"", "\"orders\""] {
            assert!(printed.contains(part), "{part} in\n{printed}");
        }
        let printed = bootstrap(&["--service", "carts", "--node-id", "mine"]);
        assert!(printed.contains("\"carts\"") && printed.contains("\"mine\"") && !printed.contains("\"orders\""));
    }
}
