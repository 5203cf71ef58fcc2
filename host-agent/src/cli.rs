//! The command line: what can be asked for, and who answers.

mod change;
mod child;
mod config_check;
mod definition;
mod drain;
mod envoy;
mod etcd_options;
mod exit;
mod follow;
mod generate;
mod hold;
mod instance;
mod kv;
mod maintenance;
mod nodes;
mod output;
mod pick;
mod poll;
mod register;
mod rules;
mod runtime;
mod services;
mod signals;
mod source;
mod status;
#[cfg(feature = "components")]
mod strategy;
mod values;
mod watch;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;
use clap::{Parser, Subcommand};

use crate::{
    agent,
    config::{self, Config},
    logging,
};

/// etcd as a service registry that Envoy routes by.
#[derive(Debug, Parser)]
#[command(name = "waypost", version, max_term_width = 100, after_long_help = exit::HELP)]
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
    /// Say whether all is well, and what is not
    Status(status::Status),
    /// List the services, with their nodes in figures
    Services(services::Services),
    /// List nodes, with their share of new requests
    Nodes(nodes::Nodes),
    /// Print what changes among services and nodes, as it changes
    Watch(watch::Watch),
    /// Pick a healthy node of a service, and print its address
    Pick(pick::Pick),
    /// Register a service of this host: with its agent, or straight in etcd for as long as this runs
    Register(register::Register),
    /// Change what is registered
    Update(change::Update),
    /// End a registration
    Deregister(change::Deregister),
    /// Keep new requests away from this host, a service of it, or an instance
    #[command(subcommand)]
    Maintenance(maintenance::Maintenance),
    /// Put into maintenance, and wait until the process may be stopped
    Drain(drain::Drain),
    /// Say how the nodes of a service are chosen among; straight in etcd, no agent is needed
    #[command(subcommand)]
    Policy(rules::PolicyCommand),
    /// Say which requests go to which service; straight in etcd, no agent is needed
    #[command(subcommand)]
    Route(rules::RouteCommand),
    /// Work with keys of etcd and their values
    #[command(subcommand)]
    Kv(kv::Kv),
    /// Run a command while holding a lock in etcd; straight at etcd, no agent is needed
    #[command(after_long_help = hold::STATUS_HELP)]
    Lock(hold::Lock),
    /// Run a command while being the leader of an election in etcd; straight at etcd, no agent is needed
    #[command(after_long_help = hold::STATUS_HELP)]
    Elect(hold::Elect),
    /// Make and try strategies: WebAssembly components that share out a service's requests
    #[cfg(feature = "components")]
    #[command(subcommand)]
    Strategy(strategy::Strategy),
    /// Work with configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work with Envoy
    #[command(subcommand)]
    Envoy(EnvoyCommand),
    /// Print what completes these commands in a shell
    Completions(generate::Completions),
    /// Print the manual page, or write one per command
    Man(generate::Man),
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
    Bootstrap(envoy::Bootstrap),
}

impl Cli {
    /// Does what was asked for. What goes wrong is told on stderr.
    pub fn run(self) -> ExitCode {
        self.command.run().unwrap_or_else(|error| {
            eprintln!("waypost: {error:#}");
            ExitCode::from(exit::status_of(&error))
        })
    }
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Agent { config } => {
                logging::start()?;
                runtime::many_threads()?.block_on(agent::run(&config))?;
                Ok(ExitCode::SUCCESS)
            }
            #[cfg(feature = "components")]
            Self::Strategy(strategy) => done(runtime::block_on(strategy.run())),
            Self::Config(ConfigCommand::Check { file, json }) => config_check::run(&file, json),
            Self::Envoy(EnvoyCommand::Bootstrap(bootstrap)) => done(output::print(&bootstrap.render()?)),
            Self::Completions(completions) => done(completions.run()),
            Self::Man(man) => done(man.run()),
            Self::Lock(lock) => lock.run(),
            Self::Elect(elect) => elect.run(),
            Self::Status(status) => done(runtime::block_on(status.run())),
            Self::Services(services) => done(runtime::block_on(services.run())),
            Self::Nodes(nodes) => done(runtime::block_on(nodes.run())),
            Self::Watch(watch) => done(runtime::block_on(watch.run())),
            Self::Policy(policy) => runtime::block_on(policy.run()),
            Self::Route(route) => runtime::block_on(route.run()),
            Self::Kv(kv::Kv::Watch(watch)) => done(runtime::block_on(watch.run())),
            Self::Register(register) => done(runtime::block_on(register.run())),
            Self::Update(update) => done(runtime::block_on(update.run())),
            Self::Deregister(deregister) => done(runtime::block_on(deregister.run())),
            Self::Maintenance(maintenance) => done(runtime::block_on(maintenance.run())),
            Self::Drain(drain) => done(runtime::block_on(drain.run())),
            Self::Pick(pick) => done(runtime::block_on(pick.run())),
        }
    }
}

/// The exit status of what either works or fails.
fn done<T>(outcome: anyhow::Result<T>) -> anyhow::Result<ExitCode> {
    outcome.map(|_| ExitCode::SUCCESS)
}

fn load(path: &Path) -> anyhow::Result<Config> {
    config::load(path).map_err(|error| anyhow!("the configuration is wrong:\n{error}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
