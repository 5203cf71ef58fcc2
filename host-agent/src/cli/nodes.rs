//! `waypost nodes`: nodes, with their share of new requests, and what became of those.

use std::collections::HashMap;

use clap::Args;
use serde::Serialize;
use waypost_catalog::{self as catalog, Catalog, Node, ServiceName};

use super::{
    exit::Exit,
    output::{self, Align, Cell, Paint, Table, Tone, text},
    source::SourceOptions,
    values,
};
use crate::api::{
    filter::Filter,
    types::{self, NodeQuery},
};

#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// Only this service
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    service: Option<ServiceName>,
    /// Only nodes that may be picked: they pass and have a weight above 0
    #[arg(long)]
    healthy: bool,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    source: SourceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which nodes count.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Conditions {
    /// Only nodes with this tag
    #[arg(long, value_name = "TAG")]
    pub(super) tag: Option<String>,
    /// Only nodes of this zone
    #[arg(long, value_name = "ZONE")]
    pub(super) zone: Option<String>,
    /// Only nodes of this version
    #[arg(long, value_name = "VERSION")]
    pub(super) version: Option<String>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    nodes: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    service: &'a str,
    /// Of the service's new requests, from 0 to 1.
    share: f64,
    #[serde(flatten)]
    node: types::Node,
    /// What became of its requests, where an agent is asked whose filters have reported any.
    outcomes: Option<types::NodeOutcomes>,
}

impl Nodes {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let source = self.source.source()?;
        let catalog = source.catalog(self.service.as_ref()).await?;
        let outcomes = source.outcomes(self.service.as_ref()).await?;
        if let Some(name) = self.service.as_ref().filter(|name| !catalog.services().contains_key(*name)) {
            return Err(Exit::not_there(format!(
                "no node of service {name} is known; waypost services lists the others"
            )));
        }
        let Conditions { tag, zone, version } = self.conditions;
        let filter =
            Filter::from(NodeQuery { healthy: self.healthy.then_some(true), tag, zone, version, service: None });
        let rows = rows(&catalog, &filter, outcomes.unwrap_or(types::Outcomes { services: Vec::new() }));
        if self.json {
            output::print_json(&Document { nodes: rows })?;
        } else {
            output::print(&render(&rows, Paint::stdout()))?;
        }
        Ok(())
    }
}

/// The nodes that are asked for. A share is one of all of the service's nodes, also of those that are not shown.
fn rows<'a>(catalog: &'a Catalog, filter: &Filter, outcomes: types::Outcomes) -> Vec<Row<'a>> {
    let mut outcomes: HashMap<(String, String), _> = outcomes
        .services
        .into_iter()
        .flat_map(|types::ServiceOutcomes { service, nodes, .. }| {
            nodes.into_iter().map(move |node| ((service.clone(), node.address.clone()), node))
        })
        .collect();
    let mut rows = Vec::new();
    for (name, service) in catalog.services() {
        let total: u64 =
            service.nodes().filter(|node| node.is_pickable()).map(|node| u64::from(node.effective_weight())).sum();
        let share =
            |node: &Node| if node.is_pickable() { f64::from(node.effective_weight()) / total as f64 } else { 0.0 };
        let taken = service.nodes().filter(|node| filter.takes(node));
        rows.extend(taken.map(|node| {
            let outcomes = outcomes.remove(&(name.to_string(), node.address.to_string()));
            Row { service: name, share: share(node), node: node.into(), outcomes }
        }));
    }
    rows
}

/// How a node's health looks.
pub(super) fn health(health: types::Health) -> Cell {
    let tone = match health {
        types::Health::Passing => Tone::Good,
        types::Health::Critical => Tone::Bad,
        types::Health::Draining => Tone::Warning,
    };
    Cell::toned(health.as_str(), tone)
}

/// The weight that counts, and from what it comes where that is something else.
fn weight(node: &types::Node) -> String {
    let own = match node.placement.weight {
        Some(placed) => format!("{placed} ({})", node.weight),
        None => node.weight.to_string(),
    };
    match node.placement.warmup {
        catalog::Placement::WARM => own,
        warmup => format!("{own} at {}", text::percent(f64::from(warmup) / 1e3)),
    }
}

/// Rate, share of errors and latency.
fn requests_of(outcomes: Option<&types::NodeOutcomes>) -> [Cell; 3] {
    let Some(outcomes) = outcomes else { return ["", "", ""].map(Cell::from) };
    let errors = match outcomes.error_share {
        Some(share) => Cell::toned(text::percent(share), if share > 0.0 { Tone::Bad } else { Tone::Plain }),
        None => "".into(),
    };
    let p99 = outcomes.p99_ms.map_or_else(String::new, |millis| match millis {
        ..10.0 => format!("{millis:.1} ms"),
        ..1e4 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1e3),
    });
    [format!("{:.1}/s", outcomes.rate).into(), errors, p99.into()]
}

fn render(rows: &[Row<'_>], paint: Paint) -> String {
    if rows.is_empty() {
        return "no nodes\n".to_owned();
    }
    let mut table = Table::headed([
        ("SERVICE", Align::Left),
        ("ADDRESS", Align::Left),
        ("HEALTH", Align::Left),
        ("WEIGHT", Align::Right),
        ("SHARE", Align::Right),
        ("RATE", Align::Right),
        ("ERRORS", Align::Right),
        ("P99", Align::Right),
        ("ZONE", Align::Left),
        ("VERSION", Align::Left),
        ("TAGS", Align::Left),
        ("ID", Align::Left),
    ]);
    // Nobody has told anything of requests where etcd is asked, or no Envoy runs.
    if rows.iter().all(|row| row.outcomes.is_none()) {
        table.hide(5..8);
    }
    let mut last = "";
    for Row { service, share, node, outcomes } in rows {
        let name = if *service == last { "" } else { service };
        last = service;
        let ejected = outcomes.as_ref().is_some_and(|outcomes| outcomes.ejected_by > 0);
        let [rate, errors, p99] = requests_of(outcomes.as_ref());
        table.row([
            name.into(),
            node.address.to_string().into(),
            if ejected { Cell::toned("ejected", Tone::Bad) } else { health(node.health) },
            weight(node).into(),
            Cell::toned(text::percent(*share), if *share > 0.0 { Tone::Plain } else { Tone::Faint }),
            rate,
            errors,
            p99,
            (&node.zone).into(),
            (&node.version).into(),
            node.tags.join(",").into(),
            (&node.id).into(),
        ]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use waypost_catalog::Health;

    use super::*;

    fn nothing() -> types::Outcomes {
        types::Outcomes { services: Vec::new() }
    }

    fn catalog() -> Catalog {
        let node = |port, weight, health| Node {
            weight,
            health,
            zone: "eu-1".into(),
            ..Node::at(([10, 0, 0, 1], port).into())
        };
        let web = vec![
            Node { version: "2.1".into(), tags: vec!["canary".into(), "x".into()], ..node(80, 1, Health::Passing) },
            Node { id: "web-2".into(), ..node(8080, 3, Health::Passing) },
            node(8081, 9, Health::Draining),
        ];
        let services = [("web", web), ("db", vec![node(5432, 1, Health::Critical)])];
        let services = services.map(|(name, nodes)| (ServiceName::new(name).unwrap(), nodes));
        Catalog::default().updated(services).0.unwrap()
    }

    #[test]
    fn a_share_is_that_of_what_may_be_picked() {
        let expected = "\
SERVICE  ADDRESS        HEALTH    WEIGHT   SHARE  ZONE  VERSION  TAGS      ID
db       10.0.0.1:5432  critical       1   0.0 %  eu-1                     10.0.0.1:5432
web      10.0.0.1:80    passing        1  25.0 %  eu-1  2.1      canary,x  10.0.0.1:80
         10.0.0.1:8080  passing        3  75.0 %  eu-1                     web-2
         10.0.0.1:8081  draining       9   0.0 %  eu-1                     10.0.0.1:8081
";
        assert_eq!(render(&rows(&catalog(), &Filter::default(), nothing()), Paint::PLAIN), expected);
        assert_eq!(render(&[], Paint::PLAIN), "no nodes\n");
    }

    #[test]
    fn what_filters_report_shows_beside_the_nodes_that_they_report_on() {
        let node = |address: &str, rate, p99_ms, ejected_by| types::NodeOutcomes {
            address: address.into(),
            requests: 600,
            server_errors: 3,
            resets: 0,
            connect_failures: 0,
            timeouts: 0,
            cancelled: 0,
            failed_tries: 0,
            rate,
            error_share: Some(0.005),
            p50_ms: Some(1.0),
            p99_ms: Some(p99_ms),
            in_flight: 2,
            ejected_by,
        };
        let nodes = vec![node("10.0.0.1:80", 10.0, 2.34, 0), node("10.0.0.1:8080", 30.04, 250.0, 1)];
        let web = types::ServiceOutcomes { service: "web".into(), panic_picks: 0, nodes };
        let expected = "\
SERVICE  ADDRESS        HEALTH    WEIGHT   SHARE    RATE  ERRORS     P99  ZONE  VERSION  TAGS      ID
db       10.0.0.1:5432  critical       1   0.0 %                          eu-1                     10.0.0.1:5432
web      10.0.0.1:80    passing        1  25.0 %  10.0/s   0.5 %  2.3 ms  eu-1  2.1      canary,x  10.0.0.1:80
         10.0.0.1:8080  ejected        3  75.0 %  30.0/s   0.5 %  250 ms  eu-1                     web-2
         10.0.0.1:8081  draining       9   0.0 %                          eu-1                     10.0.0.1:8081
";
        let catalog = catalog();
        let rows = rows(&catalog, &Filter::default(), types::Outcomes { services: vec![web] });
        assert_eq!(render(&rows, Paint::PLAIN), expected);
    }

    #[test]
    fn a_share_counts_the_nodes_that_are_not_shown() {
        let filter = Filter::from(NodeQuery { tag: Some("canary".into()), ..NodeQuery::default() });
        let catalog = catalog();
        let shown = serde_json::to_value(Document { nodes: rows(&catalog, &filter, nothing()) }).unwrap();
        let node = &shown["nodes"][0];
        assert_eq!((shown["nodes"].as_array().unwrap().len(), &node["share"]), (1, &0.25.into()));
        assert_eq!((&node["service"], &node["address"]), (&"web".into(), &"10.0.0.1:80".into()));
    }
}
