//! `waypost services`: every service, in figures.

use clap::Args;
use serde::Serialize;

use super::{
    output::{self, Align, Cell, Paint, Table, Tone, text},
    source::{Source, SourceOptions, told},
};
use crate::{
    api::{
        catalog::summaries,
        types::{self, ServiceSummary},
    },
    client::Path,
};

#[derive(Debug, Args)]
pub(super) struct Services {
    #[command(flatten)]
    source: SourceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    services: Vec<ServiceSummary>,
}

impl Services {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let services = match self.source.source()? {
            Source::Agent(client) => {
                let answer: types::Services = client.get(&Path::of(&["services"])).await.map_err(told)?;
                answer.services
            }
            source @ Source::Etcd(_) => summaries(&source.catalog(None).await?),
        };
        if self.json {
            output::print_json(&Document { services })?;
        } else {
            output::print(&render(&services, Paint::stdout()))?;
        }
        Ok(())
    }
}

fn render(services: &[ServiceSummary], paint: Paint) -> String {
    if services.is_empty() {
        return "no services\n".to_owned();
    }
    let mut table = Table::headed([
        ("SERVICE", Align::Left),
        ("NODES", Align::Right),
        ("PASSING", Align::Right),
        ("CRITICAL", Align::Right),
        ("DRAINING", Align::Right),
        ("WEIGHT", Align::Right),
    ]);
    for service in services {
        let count = |number: usize, tone| Cell::toned(number.to_string(), if number == 0 { Tone::Faint } else { tone });
        let passing = if service.passing == 0 { Tone::Bad } else { Tone::Good };
        table.row([
            (&service.name).into(),
            service.nodes.to_string().into(),
            Cell::toned(service.passing.to_string(), passing),
            count(service.critical, Tone::Bad),
            count(service.draining, Tone::Warning),
            service.weight.to_string().into(),
        ]);
    }
    let nodes = services.iter().map(|service| service.nodes).sum();
    let passing: usize = services.iter().map(|service| service.passing).sum();
    let total =
        format!("{}, {}, {passing} passing", text::count(services.len(), "service"), text::count(nodes, "node"));
    format!("{}\n{}\n", table.render(paint), paint.paint(Tone::Faint, &total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_shown_in_aligned_figures() {
        let summary = |name: &str, passing, critical, weight| ServiceSummary {
            name: name.into(),
            nodes: passing + critical,
            passing,
            critical,
            draining: 0,
            weight,
        };
        let expected = "\
SERVICE  NODES  PASSING  CRITICAL  DRAINING  WEIGHT
orders      12       10         2         0      30
db           1        0         1         0       0

2 services, 13 nodes, 10 passing
";
        assert_eq!(render(&[summary("orders", 10, 2, 30), summary("db", 0, 1, 0)], Paint::PLAIN), expected);
        assert_eq!(render(&[], Paint::PLAIN), "no services\n");
    }
}
