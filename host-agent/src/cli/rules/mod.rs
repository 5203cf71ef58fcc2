//! `waypost policy` and `waypost route`: the documents in etcd that say where requests go.

mod asked;
mod document;
mod explain;
mod facts;
mod listing;
mod rendering;
mod store;

use std::{fmt, process::ExitCode};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;
use waypost_policy::{Problem, Problems};

use self::{
    document::{Document, Given},
    store::{Store, Stored},
};
use super::{
    etcd_options::EtcdOptions,
    exit::Exit,
    output::{self, Paint, text::printable},
    values,
};
use crate::rules::RuleKind;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Print a service's policy, as it is in etcd
    Get(Get<Service>),
    /// Put a service's policy into etcd, if nothing is wrong with it
    Set(Set<Service>),
    /// List all policies
    List(List),
    /// Delete a service's policy: its nodes are chosen among as without one
    Delete(Delete<Service>),
    /// Tell to which nodes of a service a request goes, and why not to the others
    Explain(explain::ExplainPolicy),
}

#[derive(Debug, Subcommand)]
pub(super) enum RouteCommand {
    /// Print a route, as it is in etcd
    Get(Get<Id>),
    /// Put a route into etcd, if nothing is wrong with it
    Set(Set<Id>),
    /// List all routes, in their order
    List(List),
    /// Delete a route
    Delete(Delete<Id>),
    /// Tell which route a request meets, to which nodes it goes, and why not to the others
    Explain(explain::ExplainRoute),
}

impl PolicyCommand {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Get(get) => get.run().await,
            Self::Set(set) => set.run().await,
            Self::List(list) => list.run(RuleKind::Policies).await,
            Self::Delete(delete) => delete.run().await,
            Self::Explain(explain) => explain.run().await,
        }
    }
}

impl RouteCommand {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Get(get) => get.run().await,
            Self::Set(set) => set.run().await,
            Self::List(list) => list.run(RuleKind::Routes).await,
            Self::Delete(delete) => delete.run().await,
            Self::Explain(explain) => explain.run().await,
        }
    }
}

/// What names a document, below the prefix of its kind.
pub(super) trait Named: Args {
    const KIND: RuleKind;

    fn name(&self) -> &str;
}

#[derive(Debug, Args)]
pub(super) struct Service {
    /// The service
    #[arg(value_name = "SERVICE", value_parser = values::segment)]
    service: String,
}

#[derive(Debug, Args)]
pub(super) struct Id {
    /// What the route is called
    #[arg(value_name = "ID", value_parser = values::segment)]
    id: String,
}

impl Named for Service {
    const KIND: RuleKind = RuleKind::Policies;

    fn name(&self) -> &str {
        &self.service
    }
}

impl Named for Id {
    const KIND: RuleKind = RuleKind::Routes;

    fn name(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Args)]
pub(super) struct Get<N: Args> {
    #[command(flatten)]
    name: N,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Print JSON, with the revision and what is wrong
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Set<N: Args> {
    #[command(flatten)]
    name: N,
    /// The document: a file, - for stdin, or the JSON itself
    #[arg(value_name = "DOCUMENT")]
    document: Given,
    /// Only if the document in etcd was last changed in this revision; 0: only if there is none
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(0..))]
    if_revision: Option<i64>,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete<N: Args> {
    #[command(flatten)]
    name: N,
    /// Only if the document in etcd was last changed in this revision
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    if_revision: Option<i64>,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A document in JSON output, or what was done to it.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    key: String,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum What {
    /// As it is in etcd.
    Is {
        revision: i64,
        valid: bool,
        problems: Vec<Problem>,
        /// Null if it is no JSON.
        document: Value,
    },
    /// It was put.
    Put { revision: i64 },
    /// It was not, since that is wrong with it.
    Refused { problems: Problems },
    /// It is gone.
    Deleted { deleted: bool },
}

impl<'a> Entry<'a> {
    fn new(kind: RuleKind, name: &'a str, what: What) -> Self {
        let (service, id) = match kind {
            RuleKind::Policies => (Some(name), None),
            RuleKind::Routes => (None, Some(name)),
        };
        Self { service, id, key: store::key(kind, name), what }
    }

    fn of(kind: RuleKind, stored: &'a Stored) -> Self {
        let problems = Document::parse(kind, &stored.name, &stored.document).err();
        let what = What::Is {
            revision: stored.revision,
            valid: problems.is_none(),
            problems: problems.into_iter().flatten().collect(),
            document: serde_json::from_slice(&stored.document).unwrap_or_default(),
        };
        Self::new(kind, &stored.name, what)
    }
}

/// A document as a sentence names it.
struct Called<'a>(RuleKind, &'a str);

impl fmt::Display for Called<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RuleKind::Policies => write!(f, "policy {}", self.1),
            RuleKind::Routes => write!(f, "route {}", self.1),
        }
    }
}

fn not_there(kind: RuleKind, name: &str) -> anyhow::Error {
    let list = match kind {
        RuleKind::Policies => "waypost policy list",
        RuleKind::Routes => "waypost route list",
    };
    Exit::not_there(format!("there is no {}; {list} lists the others", Called(kind, name)))
}

impl<N: Named> Get<N> {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (kind, name) = (N::KIND, self.name.name());
        let stored = Store::new(self.etcd.connector()?, kind).get(name).await?;
        let stored = stored.ok_or_else(|| not_there(kind, name))?;
        if self.json {
            output::print_json(&Entry::of(kind, &stored))?;
            return Ok(ExitCode::SUCCESS);
        }
        let text = String::from_utf8_lossy(&stored.document);
        output::print(&format!("{}\n", text.trim_end()))?;
        if let Err(problems) = Document::parse(kind, name, &stored.document) {
            eprintln!("waypost: {} is invalid, and no agent takes it:", Called(kind, name));
            eprintln!("{}", lines(&problems));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl<N: Named> Set<N> {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (kind, name) = (N::KIND, self.name.name());
        let document = self.document.read()?;
        if let Err(problems) = Document::parse(kind, name, document.as_bytes()) {
            if !self.json {
                return Err(anyhow!("{} is refused:\n{}", Called(kind, name), lines(&problems)));
            }
            output::print_json(&Entry::new(kind, name, What::Refused { problems }))?;
            return Ok(ExitCode::FAILURE);
        }
        let store = Store::new(self.etcd.connector()?, kind);
        let revision = store.put(name, document.trim(), self.if_revision).await?;
        match self.json {
            true => output::print_json(&Entry::new(kind, name, What::Put { revision }))?,
            false => output::print(&format!("{}: set in revision {revision}\n", Called(kind, name)))?,
        };
        Ok(ExitCode::SUCCESS)
    }
}

impl<N: Named> Delete<N> {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let (kind, name) = (N::KIND, self.name.name());
        let store = Store::new(self.etcd.connector()?, kind);
        if !store.delete(name, self.if_revision).await? {
            return Err(not_there(kind, name));
        }
        match self.json {
            true => output::print_json(&Entry::new(kind, name, What::Deleted { deleted: true }))?,
            false => output::print(&format!("{}: deleted\n", Called(kind, name)))?,
        };
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    async fn run(self, kind: RuleKind) -> anyhow::Result<ExitCode> {
        let stored = Store::new(self.etcd.connector()?, kind).list().await?;
        match self.json {
            true => output::print_json(&listing::document(kind, &stored))?,
            false => output::print(&listing::render(kind, &stored, Paint::stdout()))?,
        };
        Ok(ExitCode::SUCCESS)
    }
}

/// Problems for people, with what a terminal would obey written out.
fn lines(problems: &Problems) -> String {
    let lines = problems.iter().map(|problem| format!("  {}", printable(&problem.to_string())));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_tells_what_is_wrong_and_names_itself_as_its_kind_does() {
        let stored = |document: &str| Stored { name: "web".into(), document: document.into(), revision: 7 };
        let shown = |kind, document: &str| serde_json::to_value(Entry::of(kind, &stored(document))).unwrap();
        let good = shown(RuleKind::Policies, r#"{"strategy": "random"}"#);
        let expected = json!({
            "service": "web", "key": "/waypost/policies/web", "revision": 7, "valid": true, "problems": [],
            "document": { "strategy": "random" },
        });
        assert_eq!(good, expected);
        let bad = shown(RuleKind::Routes, r#"{"order": 1, "match": {}}"#);
        let problem = json!({ "path": "service", "message": bad["problems"][0]["message"] });
        assert_eq!((&bad["id"], &bad["valid"], &bad["problems"]), (&"web".into(), &false.into(), &json!([problem])));
        assert_eq!(shown(RuleKind::Policies, "{")["document"], Value::Null);
    }
}
