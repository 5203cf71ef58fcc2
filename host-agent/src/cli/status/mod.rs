//! `waypost status`: whether all is well, what is not, and the figures to begin with.

mod agent;
mod cluster;

use clap::Args;
use serde::Serialize;

use super::{
    output::{Paint, Tone, text::printable},
    source::{Source, SourceOptions},
};
use crate::api::types::ServiceSummary;

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    source: SourceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self.source.source()? {
            Source::Agent(client) => agent::run(&client, self.json).await,
            Source::Etcd(straight) => cluster::run(&self.source.etcd()?, &straight, self.json).await,
        }
    }
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Requests fail or may soon, or something is lost.
    Problem,
    /// Somebody may have meant it.
    Notice,
}

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    text: String,
}

impl Finding {
    fn problem(text: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, text: text.into() }
    }

    fn notice(text: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, text: text.into() }
    }
}

/// What is wrong with services.
fn of_services(services: &[ServiceSummary]) -> impl Iterator<Item = Finding> {
    services.iter().filter_map(|service| {
        let ServiceSummary { name, nodes, passing, critical, draining, .. } = service;
        match (passing, critical) {
            (0, _) => {
                let text = format!("service {name} has no passing node: {critical} critical, {draining} draining");
                Some(Finding::problem(text))
            }
            (_, 0) if service.weight > 0 => None,
            (_, 0) => Some(Finding::problem(format!("service {name} has no node with a weight above 0"))),
            _ => Some(Finding::notice(format!("service {name} has {critical} critical of {nodes} nodes"))),
        }
    })
}

/// The verdict, and what it is founded on, what matters most first.
fn verdict(findings: &[Finding], paint: Paint) -> String {
    let problems = findings.iter().filter(|finding| finding.severity == Severity::Problem).count();
    let mut out = match (problems, findings.len()) {
        (0, 0) => paint.paint(Tone::Good, "all is well"),
        (0, _) => paint.paint(Tone::Warning, "well, but"),
        (1, _) => paint.paint(Tone::Bad, "1 problem"),
        _ => paint.paint(Tone::Bad, &format!("{problems} problems")),
    };
    out.push('\n');
    let mut findings: Vec<&Finding> = findings.iter().collect();
    findings.sort_by_key(|finding| finding.severity);
    for finding in findings {
        let (mark, tone) = match finding.severity {
            Severity::Problem => ("!", Tone::Bad),
            Severity::Notice => ("-", Tone::Warning),
        };
        out.push_str(&format!("  {} {}\n", paint.paint(tone, mark), printable(&finding.text)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_a_node_to_pick_is_a_problem_and_a_critical_node_a_notice() {
        let service = |name: &str, passing, critical, draining, weight| ServiceSummary {
            name: name.into(),
            nodes: passing + critical + draining,
            passing,
            critical,
            draining,
            weight,
        };
        let services =
            [service("a", 0, 1, 1, 0), service("b", 2, 1, 0, 2), service("c", 1, 0, 1, 1), service("d", 1, 0, 0, 0)];
        let mut findings: Vec<Finding> = of_services(&services).collect();
        findings.reverse();
        let expected = "\
2 problems
  ! service d has no node with a weight above 0
  ! service a has no passing node: 1 critical, 1 draining
  - service b has 1 critical of 3 nodes
";
        assert_eq!(verdict(&findings, Paint::PLAIN), expected);
        assert_eq!(verdict(&[], Paint::PLAIN), "all is well\n");
    }
}
