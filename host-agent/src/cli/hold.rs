//! `waypost lock` and `waypost elect`: a command that runs while a lock or a leadership is held, and no longer.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use waypost_registry::{Election, Held, LockError};

use super::{
    child,
    etcd_options::EtcdOptions,
    exit::{LOST, UNAVAILABLE},
    runtime,
    signals::Signals,
    values::{duration, ttl},
};
use crate::config;

/// For etcd to answer when nobody is to be waited for.
const ATTEMPT: Duration = Duration::from_secs(10);
/// For etcd to hear that we have left the line.
const PARTING: Duration = Duration::from_secs(1);

pub(super) const STATUS_HELP: &str = "\
Exit status: the command's own, or 128 and the signal's number if a signal ended it;
   69  not had in time, or etcd not reached; the command was not started
   75  lost while the command ran; it was stopped (SIGTERM, and SIGKILL after 5 s)
  126  the command cannot be run
  127  the command is not found

SIGINT, SIGTERM and SIGHUP are forwarded to the command. In its environment are WAYPOST_LOCK_KEY and
WAYPOST_FENCING_TOKEN: the key's create revision, which is larger for each later holder.";

#[derive(Debug, Args)]
pub(super) struct Lock {
    #[command(flatten)]
    common: Common,
    /// How long to wait for the lock; 0s tries once
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    wait: Duration,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Args)]
pub(super) struct Elect {
    #[command(flatten)]
    common: Common,
    /// What others see of the leader [default: this host's name]
    #[arg(long)]
    value: Option<String>,
    /// How long to wait for the leadership [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Args)]
struct Common {
    /// What is held: keys are put under NAME/, as etcdctl does
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// How long it stays held after this process dies, in whole seconds
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = ttl)]
    ttl: Duration,
}

#[derive(Debug, Args)]
struct Run {
    /// Say what is held, and that it was lost, as lines of JSON on stderr
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", last = true, required = true)]
    command: Vec<OsString>,
}

impl Lock {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { common, wait, run } = self;
        let lock = waypost_registry::Lock::new(common.etcd.connector()?, &common.name, common.ttl)?;
        let status = runtime::block_on(async {
            let mut signals = Signals::listen()?;
            let acquiring = async {
                match wait {
                    Duration::ZERO => lock.try_acquire(ATTEMPT).await,
                    wait => lock.acquire(wait).await.map(Some),
                }
            };
            let status = match had(acquiring, &common.name, &mut signals).await {
                Ok(held) => match run.under(&held, &mut signals).await? {
                    Ran::Ended(status) => released(held.release().await, status),
                    Ran::Lost => LOST,
                },
                Err(status) => status,
            };
            lock.wind_up(PARTING).await;
            Ok(status)
        })?;
        Ok(status.into())
    }
}

impl Elect {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { common, value, wait, run } = self;
        let election = Election::new(common.etcd.connector()?, &common.name, common.ttl)?;
        let status = runtime::block_on(async {
            let mut signals = Signals::listen()?;
            let value = value.unwrap_or_else(config::host_name);
            let campaigning = async { election.campaign(value, wait.unwrap_or(Duration::MAX)).await.map(Some) };
            let status = match had(campaigning, &common.name, &mut signals).await {
                Ok(leadership) => match run.under(&leadership, &mut signals).await? {
                    Ran::Ended(status) => released(leadership.resign().await, status),
                    Ran::Lost => LOST,
                },
                Err(status) => status,
            };
            election.wind_up(PARTING).await;
            Ok(status)
        })?;
        Ok(status.into())
    }
}

/// What is waited for, or the exit status if it is not had.
async fn had<T>(
    waiting: impl Future<Output = Result<Option<T>, LockError>>,
    name: &str,
    signals: &mut Signals,
) -> Result<T, u8> {
    let outcome = tokio::select! {
        outcome = waiting => outcome,
        signal = signals.next() => return Err(child::status_of_signal(signal)),
    };
    match outcome {
        Ok(Some(held)) => return Ok(held),
        Ok(None) => eprintln!("waypost: {name} is held by somebody else"),
        Err(error) => eprintln!("waypost: {error}"),
    }
    Err(UNAVAILABLE)
}

/// How a run ended.
enum Ran {
    /// By itself, with this exit status.
    Ended(u8),
    /// Stopped, since the lock was lost.
    Lost,
}

impl Run {
    /// Runs the command as long as the lock is held.
    async fn under(&self, held: &Held, signals: &mut Signals) -> anyhow::Result<Ran> {
        let environment =
            [("WAYPOST_FENCING_TOKEN", held.fencing_token().to_string()), ("WAYPOST_LOCK_KEY", held.key().to_owned())];
        let mut child = match child::spawn(&self.command, &environment) {
            Ok(child) => child,
            Err((status, error)) => {
                eprintln!("waypost: {error}");
                return Ok(Ran::Ended(status));
            }
        };
        if self.json {
            eprintln!(
                "{}",
                json!({ "event": "held", "name": held.name(), "key": held.key(), "token": held.fencing_token() })
            );
        }
        let cause = tokio::select! {
            ended = child::wait(&mut child, signals) => {
                return ended.map(Ran::Ended).context("cannot wait for the command");
            }
            cause = held.lost() => cause,
        };
        if self.json {
            eprintln!("{}", json!({ "event": "lost", "name": held.name(), "cause": cause.to_string() }));
        } else {
            eprintln!("waypost: {} is not held any more: {cause}; stopping the command", held.name());
        }
        child::stop(&mut child).await.context("cannot stop the command")?;
        Ok(Ran::Lost)
    }
}

/// The exit status of a command that has ended, after the release.
fn released(outcome: Result<(), LockError>, status: u8) -> u8 {
    let Err(error) = outcome else { return status };
    eprintln!("waypost: {error}");
    // Lost while the command was ending: what it did last was not protected.
    if matches!(error, LockError::Lost { .. }) { LOST } else { status }
}
