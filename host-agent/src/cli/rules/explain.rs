//! `waypost policy explain` and `waypost route explain`: where a request goes, and why.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use waypost_catalog::ServiceName;
use waypost_policy::Explanation;

use super::{
    super::{
        etcd_options::EtcdOptions,
        exit::Exit,
        output::{self, Paint},
        source::{Layout, LayoutOptions},
        values,
    },
    asked::{Asked, Request},
    facts::Facts,
    rendering::{render_route, render_ways},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainPolicy {
    /// The service
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    service: ServiceName,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    from: From,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainRoute {
    /// The host that the request is for
    #[arg(long, value_name = "HOST")]
    host: String,
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    from: From,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// From where the request comes, and where everything is.
#[derive(Debug, Args)]
pub(super) struct From {
    /// The zone of the host that the request comes through [default: that of --config, or none]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    #[command(flatten)]
    etcd: EtcdOptions,
    #[command(flatten)]
    layout: LayoutOptions,
}

impl From {
    /// Reads what decides. Nodes are where the configuration watches, unless the command line says otherwise.
    async fn facts(&self) -> anyhow::Result<Facts> {
        let configuration = self.etcd.configuration()?;
        let watches = configuration.iter().filter(|_| !self.layout.is_given()).flat_map(|config| &config.watches);
        let mut layouts: Vec<Layout> = watches
            .map(|watch| Layout { format: watch.format, prefix: watch.prefix.clone(), protocol: watch.protocol })
            .collect();
        if layouts.is_empty() {
            layouts.push(self.layout.layout()?);
        }
        let zone = self.zone.clone().or(configuration.map(|config| config.zone)).unwrap_or_default();
        Facts::read(&self.etcd.connector()?, layouts, zone).await
    }
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    request: &'a Request,
    #[serde(flatten)]
    explanation: &'a Explanation,
    notes: &'a [String],
}

impl ExplainRoute {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let facts = self.from.facts().await?;
        let mut request = Request::new(Some(self.host.clone()), self.asked);
        let (explanation, notes) = facts.of_request(&self.host, &mut request);
        match self.json {
            true => output::print_json(&Document { request: &request, explanation: &explanation, notes: &notes })?,
            false => output::print(&render_route(&request.shown(), &explanation, &notes, Paint::stdout()))?,
        };
        Ok(ExitCode::SUCCESS)
    }
}

impl ExplainPolicy {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let facts = self.from.facts().await?;
        let mut request = Request::new(None, self.asked);
        let Some((explanation, notes)) = facts.of_service(&self.service, &mut request) else {
            return Err(Exit::not_there(format!("neither a node nor a policy of service {} is known", self.service)));
        };
        match self.json {
            true => output::print_json(&Document { request: &request, explanation: &explanation, notes: &notes })?,
            false => output::print(&render_ways(&explanation, &notes, Paint::stdout()))?,
        };
        Ok(ExitCode::SUCCESS)
    }
}
