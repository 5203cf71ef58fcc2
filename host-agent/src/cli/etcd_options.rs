//! How the command line says where etcd is, for every command that goes straight there.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;
use waypost_registry::Connector;

use super::load;
use crate::{
    config::{Auth, Config, Etcd, Password},
    etcd,
};

/// Names the endpoints where the command line does not.
pub(super) const VARIABLE: &str = "WAYPOST_ETCD";
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Straight at etcd")]
pub(super) struct EtcdOptions {
    /// Endpoints of etcd; may be repeated [env: WAYPOST_ETCD]
    #[arg(long = "etcd", value_name = "URL[,URL]", value_delimiter = ',', conflicts_with = "config")]
    endpoints: Vec<String>,
    /// A configuration of the agent, for its [etcd] section: endpoints, TLS, user
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The user to sign in as
    #[arg(long, value_name = "NAME", requires = "password_file", conflicts_with = "config")]
    user: Option<String>,
    /// The file that holds the user's password
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Certificates of the authorities to trust (PEM), for https endpoints
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    ca: Option<PathBuf>,
    /// Own certificate (PEM), where etcd asks for one
    #[arg(long, value_name = "FILE", requires = "client_key", conflicts_with = "config")]
    cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(id = "client_key", long = "key", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl EtcdOptions {
    /// This endpoint.
    #[cfg(test)]
    pub(super) fn at(endpoint: &str) -> Self {
        Self { endpoints: vec![endpoint.to_owned()], ..Self::default() }
    }

    /// Whether the command line names an etcd.
    pub(super) fn is_given(&self) -> bool {
        !self.endpoints.is_empty() || self.config.is_some()
    }

    /// The configuration that the command line names.
    pub(super) fn configuration(&self) -> anyhow::Result<Option<Config>> {
        self.config.as_deref().map(load).transpose()
    }

    /// How etcd is reached; `variable` is what the environment says of it.
    pub(super) fn settings(&self, variable: Option<String>) -> anyhow::Result<Etcd> {
        if let Some(path) = &self.config {
            return Ok(load(path)?.etcd);
        }
        let endpoints = match variable.filter(|_| self.endpoints.is_empty()) {
            Some(variable) => variable.split(',').map(str::to_owned).collect(),
            None if self.endpoints.is_empty() => vec![DEFAULT_ENDPOINT.to_owned()],
            None => self.endpoints.clone(),
        };
        let auth = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => Some(Auth { username: user.clone(), password: Password::File(file.clone()) }),
            _ => None,
        };
        Ok(Etcd {
            endpoints,
            auth,
            ca_file: self.ca.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(3),
        })
    }

    /// The connector. Nothing is connected yet.
    pub(super) fn connector(&self) -> anyhow::Result<Connector> {
        let settings = self.settings(std::env::var(VARIABLE).ok())?;
        etcd::connector(&settings).context("see --etcd, --ca, --cert, --user, or --config")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: EtcdOptions,
    }

    fn parsed(args: &[&str]) -> Result<EtcdOptions, clap::Error> {
        Line::try_parse_from(std::iter::once(&"x").chain(args)).map(|line| line.options)
    }

    #[test]
    fn the_command_line_counts_before_the_environment_and_that_before_the_default() {
        let endpoints = |args: &[&str], variable: Option<&str>| {
            parsed(args).unwrap().settings(variable.map(str::to_owned)).unwrap().endpoints
        };
        let named = ["--etcd", "http://a:1,http://b:2", "--etcd", "http://c:3"];
        assert_eq!(endpoints(&named, Some("http://d:4")), ["http://a:1", "http://b:2", "http://c:3"]);
        assert_eq!(endpoints(&[], Some("http://d:4,http://e:5")), ["http://d:4", "http://e:5"]);
        assert_eq!(endpoints(&[], None), [DEFAULT_ENDPOINT]);
    }

    #[test]
    fn halves_of_pairs_are_refused() {
        for args in [["--user", "u"], ["--password-file", "f"], ["--cert", "c"], ["--key", "k"]] {
            assert!(parsed(&args).is_err(), "{args:?}");
        }
        let etcd = parsed(&["--user", "u", "--password-file", "f", "--cert", "c", "--key", "k", "--ca", "a"]);
        let etcd = etcd.unwrap().settings(None).unwrap();
        assert_eq!(etcd.auth, Some(Auth { username: "u".into(), password: Password::File("f".into()) }));
        assert_eq!((etcd.ca_file, etcd.identity), (Some("a".into()), Some(("c".into(), "k".into()))));
    }
}
