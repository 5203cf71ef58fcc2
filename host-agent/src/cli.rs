//! The command line: what can be asked for, and who answers.

mod check;
mod child;
mod hold;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Parser, Subcommand};
use waypost_catalog::ServiceName;

use crate::{
    agent,
    config::{self, Config},
    envoy_config::{self, BootstrapOptions, Mode},
    logging,
};

/// etcd as a service registry that Envoy routes by.
#[derive(Debug, Parser)]
#[command(name = "waypost", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: register this host's services, mirror the registry, and serve Envoy
    Agent {
        /// The agent's configuration (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Work with configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work with Envoy
    #[command(subcommand)]
    Envoy(EnvoyCommand),
    /// Run a command while holding a lock in etcd; straight at etcd, no agent is needed
    #[command(after_long_help = hold::STATUS_HELP)]
    Lock(hold::Lock),
    /// Run a command while being the leader of an election in etcd; straight at etcd, no agent is needed
    #[command(after_long_help = hold::STATUS_HELP)]
    Elect(hold::Elect),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say what a configuration means, or everything that is wrong with it (exit status 1)
    Check {
        /// The agent's configuration (TOML)
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum EnvoyCommand {
    /// Print a complete Envoy bootstrap (YAML) for this agent
    Bootstrap(Bootstrap),
}

#[derive(Debug, Args)]
struct Bootstrap {
    /// The agent's configuration, for its socket, node and services; without it the defaults count
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A service to route to; may be repeated [default: those named in the configuration's xds.services, and this
    /// host's own]
    #[arg(long = "service", value_name = "NAME", value_parser = service_name)]
    services: Vec<ServiceName>,
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

fn service_name(text: &str) -> Result<ServiceName, String> {
    ServiceName::new(text).map_err(|error| error.to_string())
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// Why it could not be done.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Agent { config } => {
                logging::start()?;
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                runtime.context("cannot start the runtime")?.block_on(agent::run(&config))?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Config(ConfigCommand::Check { file, json }) => {
                let outcome = config::load(&file);
                let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                match (json, outcome) {
                    (true, outcome) => print(&check::as_json(&file, outcome)?)?,
                    (false, Ok(config)) => print(&check::summary(&file, &config))?,
                    (false, Err(error)) => eprintln!("{error}"),
                }
                Ok(code)
            }
            Command::Envoy(EnvoyCommand::Bootstrap(bootstrap)) => {
                print(&bootstrap.render()?)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Lock(lock) => lock.run(),
            Command::Elect(elect) => elect.run(),
        }
    }
}

/// Writes to stdout. A reader that has gone, such as `head`, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

fn load(path: &Path) -> anyhow::Result<Config> {
    config::load(path).map_err(|error| anyhow!("the configuration is wrong:\n{error}"))
}

impl Bootstrap {
    fn render(self) -> anyhow::Result<String> {
        let config = self.config.as_deref().map(load).transpose()?;
        let mut services = self.services;
        if let Some(config) = config.as_ref().filter(|_| services.is_empty()) {
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
            mode: self.mode,
            plugin_path: self.plugin,
        };
        Ok(envoy_config::render(&options)?)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

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
