//! `waypost strategy test`: a component run by hand, with what it decides and what that takes.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use waypost_components::{
    Decision, Health, Input, Limits, Locality, Node, RunError,
    nodes_file::{self, Nodes},
    trial::{self, Report},
};

use super::{engine, read};
use crate::{
    cli::{
        nodes,
        output::{self, Align, Cell, Paint, Table, Tone, text},
        values,
    },
    config,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Test {
    /// The component
    #[arg(value_name = "COMPONENT")]
    component: PathBuf,
    /// The nodes (JSON): as waypost nodes --json prints them, or as they stand in the registry
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// The service, if the file holds nodes of several
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The policy's parameters (JSON), or @FILE
    #[arg(long, value_name = "JSON", default_value = "{}")]
    parameters: String,
    /// The zone of the agent that asks
    #[arg(long, value_name = "ZONE", default_value = "")]
    zone: String,
    /// The host of the agent that asks [default: this one]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// How often to ask; each question tells what the one before decided
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "100ms")]
    deadline: Duration,
    /// How much memory an instance may have, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    memory: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    sha256: String,
    bytes: usize,
    compiled_ms: f64,
    started_ms: f64,
    runs_ms: Vec<f64>,
    memory_bytes: usize,
    /// In the order of the file; `null` if there is no answer.
    decisions: Option<Vec<Row<'a>>>,
    ask_again_seconds: Option<u64>,
    error: Option<Failure>,
    log: Vec<Line<'a>>,
    log_dropped: u64,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    address: &'a str,
    id: &'a str,
    weight: u32,
    priority: u8,
    /// Of the requests of its priority, from 0 to 1.
    share: f64,
}

#[derive(Debug, Serialize)]
struct Failure {
    kind: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    level: &'static str,
    message: &'a str,
}

impl Test {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let nodes = self.nodes.display().to_string();
        let nodes_text = fs::read_to_string(&self.nodes).with_context(|| format!("cannot read {nodes}"))?;
        let Nodes { service, nodes } = nodes_file::parse(&nodes_text, self.service.as_deref()).context(nodes)?;
        let input = Input {
            service: service.unwrap_or_else(|| "service".to_owned()),
            nodes: nodes.clone(),
            parameters: self.parameters()?,
            local: Locality { zone: self.zone, host: self.host.unwrap_or_else(config::host_name) },
        };
        let memory = self.memory.checked_mul(1 << 20).context("--memory is too large")?;
        let limits = Limits { deadline: self.deadline, memory, ..Limits::default() };
        let component = self.component.display().to_string();
        let report = trial::run(&engine(limits)?, &read(&self.component)?, input, self.runs)
            .with_context(|| component.clone())?;
        if self.json {
            output::print_json(&document(&report, &nodes))?;
        } else {
            output::print(&render(&component, &report, &nodes, limits, Paint::stdout()))?;
        }
        report.outcome.map(|_| ()).map_err(|error| anyhow!(error))
    }

    fn parameters(&self) -> anyhow::Result<String> {
        let text = match self.parameters.strip_prefix('@') {
            Some(file) => fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?,
            None => self.parameters.clone(),
        };
        // As they come out of a policy: a value, written again.
        let value: Value = serde_json::from_str(&text).context("the parameters are no JSON")?;
        Ok(value.to_string())
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// What each node gets of the requests of its priority.
fn rows<'a>(nodes: &'a [Node], decisions: &[Decision]) -> Vec<Row<'a>> {
    let pairs = || nodes.iter().zip(decisions);
    let total = |priority: u8| -> u64 {
        let same = pairs().filter(|(node, decision)| node.is_pickable() && decision.priority == priority);
        same.map(|(_, decision)| u64::from(decision.weight)).sum()
    };
    pairs()
        .map(|(node, decision)| Row {
            address: &node.address,
            id: &node.id,
            weight: decision.weight,
            priority: decision.priority,
            share: match total(decision.priority) {
                total if total > 0 && node.is_pickable() => f64::from(decision.weight) / total as f64,
                _ => 0.0,
            },
        })
        .collect()
}

fn document<'a>(report: &'a Report, nodes: &'a [Node]) -> Document<'a> {
    let answer = report.outcome.as_ref().ok();
    let failure = |error: &RunError| Failure { kind: error.kind(), message: error.to_string() };
    Document {
        sha256: report.hash.to_string(),
        bytes: report.bytes,
        compiled_ms: milliseconds(report.compiled_in),
        started_ms: milliseconds(report.started_in),
        runs_ms: report.took.iter().copied().map(milliseconds).collect(),
        memory_bytes: report.memory,
        decisions: answer.map(|answer| rows(nodes, &answer.decisions)),
        ask_again_seconds: answer.and_then(|answer| answer.ask_again).map(|after| after.as_secs()),
        error: report.outcome.as_ref().err().map(failure),
        log: report.log.lines.iter().map(|line| Line { level: line.level.as_str(), message: &line.message }).collect(),
        log_dropped: report.log.dropped,
    }
}

/// The answers' times: the first one's, then the middle one's and the longest of the others'.
fn answered(took: &[Duration]) -> String {
    let Some((first, others)) = took.split_first() else { return "not asked".to_owned() };
    let mut text = format!("{}; the first in {:.3} ms", text::count(took.len(), "time"), milliseconds(*first));
    let mut others = others.to_vec();
    others.sort_unstable();
    if let (Some(middle), Some(longest)) = (others.get(others.len() / 2), others.last()) {
        let (middle, longest) = (milliseconds(*middle), milliseconds(*longest));
        text.push_str(&format!(", then {middle:.3} ms (median), {longest:.3} ms (longest)"));
    }
    text
}

fn render(component: &str, report: &Report, nodes: &[Node], limits: Limits, paint: Paint) -> String {
    let mut facts = Table::new([Align::Left; 2]);
    let memory = format!("{} of {}", text::bytes(report.memory as u64), text::bytes(limits.memory as u64));
    for row in [
        ["component", &format!("{component}, {}", text::bytes(report.bytes as u64))],
        ["sha256", &report.hash.to_string()],
        ["compiled", &format!("in {:.1} ms", milliseconds(report.compiled_in))],
        ["started", &format!("in {:.3} ms", milliseconds(report.started_in))],
        ["asked", &answered(&report.took)],
        ["memory", &memory],
    ] {
        facts.row(row.map(Cell::from));
    }
    let mut out = facts.render(paint);

    if let Ok(answer) = &report.outcome {
        let mut table = Table::headed([
            ("ADDRESS", Align::Left),
            ("HEALTH", Align::Left),
            ("REGISTERED", Align::Right),
            ("WEIGHT", Align::Right),
            ("PRIORITY", Align::Right),
            ("SHARE", Align::Right),
            ("ID", Align::Left),
        ]);
        for (node, row) in nodes.iter().zip(rows(nodes, &answer.decisions)) {
            table.row([
                row.address.into(),
                health(node.health),
                node.weight.to_string().into(),
                row.weight.to_string().into(),
                row.priority.to_string().into(),
                Cell::toned(text::percent(row.share), if row.share > 0.0 { Tone::Plain } else { Tone::Faint }),
                row.id.into(),
            ]);
        }
        out.push('\n');
        out.push_str(&table.render(paint));
        if let Some(after) = answer.ask_again {
            out.push_str(&format!("\nto be asked again after {}\n", text::lasted(after)));
        }
    }

    if !report.log.lines.is_empty() {
        out.push('\n');
    }
    for line in &report.log.lines {
        out.push_str(&format!("{}: {}\n", line.level.as_str(), text::printable(&line.message)));
    }
    if report.log.dropped > 0 {
        out.push_str(&format!("{} dropped\n", text::count(report.log.dropped as usize, "more line")));
    }
    out
}

fn health(health: Health) -> Cell {
    nodes::health(match health {
        Health::Passing => crate::api::types::Health::Passing,
        Health::Critical => crate::api::types::Health::Critical,
        Health::Draining => crate::api::types::Health::Draining,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_one_of_the_nodes_of_the_same_priority_that_may_get_requests() {
        let node = |weight, health| Node { weight, health, ..Node::default() };
        let nodes =
            [node(1, Health::Passing), node(1, Health::Passing), node(1, Health::Critical), node(1, Health::Passing)];
        let decisions = [(3, 0), (1, 0), (9, 0), (5, 1)].map(|(weight, priority)| Decision { weight, priority });
        let shares: Vec<_> = rows(&nodes, &decisions).iter().map(|row| row.share).collect();
        assert_eq!(shares, [0.75, 0.25, 0.0, 1.0]);
    }

    #[test]
    fn times_are_told_apart_by_whether_an_instance_was_new() {
        let times = |times: &[u64]| -> Vec<_> { times.iter().copied().map(Duration::from_micros).collect() };
        assert_eq!(answered(&times(&[])), "not asked");
        assert_eq!(answered(&times(&[1500])), "1 time; the first in 1.500 ms");
        let text = "4 times; the first in 9.000 ms, then 2.000 ms (median), 3.000 ms (longest)";
        assert_eq!(answered(&times(&[9000, 3000, 1000, 2000])), text);
    }
}
