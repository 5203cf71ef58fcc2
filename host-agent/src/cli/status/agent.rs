//! What the agent on this host says of itself, of its services and of everybody's.

use std::time::Duration;

use serde::Serialize;

use super::{Finding, Severity, of_services, verdict};
use crate::{
    api::types::{Health, Registration, RegistrationState, ServiceSummary, Services, Status},
    cli::{
        nodes::health,
        output::{
            self, Align, Cell, Paint, Table, Tone,
            text::{count, lasted},
        },
        source::told,
    },
    client::{Client, Path},
};

#[derive(Debug, Serialize)]
struct Document {
    problems: Vec<String>,
    notices: Vec<String>,
    agent: Status,
    registrations: Vec<Registration>,
    services: Vec<ServiceSummary>,
}

pub(super) async fn run(client: &Client, json: bool) -> anyhow::Result<()> {
    let agent: Status = client.get(&Path::of(&["status"])).await.map_err(told)?;
    let registrations: Vec<Registration> = client.get(&Path::of(&["registrations"])).await.map_err(told)?;
    let services = match &agent.catalog {
        Some(_) => client.get::<Services>(&Path::of(&["services"])).await.map_err(told)?.services,
        None => Vec::new(),
    };
    let findings = findings(&agent, &registrations, &services);
    if !json {
        output::print(&render(&agent, &registrations, &findings, Paint::stdout()))?;
        return Ok(());
    }
    let of = |severity| {
        let found = findings.iter().filter(move |finding| finding.severity == severity);
        found.map(|finding| finding.text.clone()).collect()
    };
    let (problems, notices) = (of(Severity::Problem), of(Severity::Notice));
    output::print_json(&Document { problems, notices, agent, registrations, services })?;
    Ok(())
}

fn findings(agent: &Status, registrations: &[Registration], services: &[ServiceSummary]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if agent.catalog.is_none() {
        findings.push(Finding::problem("the agent has no catalog yet: Envoy gets nothing from it"));
    }
    for watch in agent.watches.iter().filter(|watch| !watch.synced) {
        let stale = lasted(Duration::try_from_secs_f64(agent.etcd.stale_seconds).unwrap_or_default());
        let cause = watch.cause.as_deref().unwrap_or("not in step yet");
        findings.push(Finding::problem(format!("etcd: {} is not followed for {stale}: {cause}", watch.prefix)));
    }
    for document in &agent.rules.refused {
        let instead = if document.last_good { "the one before it stays in use" } else { "it is not used" };
        let problems = document.problems.join("; ");
        findings.push(Finding::problem(format!("{} is refused, {instead}: {problems}", document.key)));
    }
    for component in &agent.rules.components {
        let Some(problem) = &component.problem else { continue };
        let instead = match component.last_good_seconds {
            Some(_) => "its last good answer stands",
            None => "plain weights are used",
        };
        let (name, service) = (&component.component, &component.service);
        findings.push(Finding::problem(format!("component {name} of {service} fails, {instead}: {problem}")));
    }
    if let Some(maintenance) = &agent.maintenance {
        let text = format!("this host is in maintenance since {}: {}", maintenance.since, maintenance.reason);
        findings.push(Finding::notice(text));
    }
    findings.extend(registrations.iter().filter_map(|registration| of_registration(agent, registration)));
    findings.extend(of_services(services));
    findings
}

/// What is wrong with a service of this host. Its maintenance is one thing, and that of the host is told once.
fn of_registration(agent: &Status, registration: &Registration) -> Option<Finding> {
    let name = format!("{}/{}", registration.service, registration.instance);
    let problem = registration.problem.as_deref().unwrap_or("no cause is known");
    let said = registration.check.as_ref().filter(|check| !check.passing).map_or(problem, |check| &check.output);
    match (registration.state, registration.health) {
        (RegistrationState::Retrying | RegistrationState::Lost | RegistrationState::Closed, _) => {
            Some(Finding::problem(format!("{name} is not in etcd as intended: {problem}")))
        }
        (_, Some(Health::Critical)) => Some(Finding::problem(format!("{name} is critical: {said}"))),
        (RegistrationState::Pending, _) => Some(Finding::notice(format!("{name} is not registered yet: {said}"))),
        _ => {
            let maintenance = registration.maintenance.as_ref().filter(|_| agent.maintenance.is_none())?;
            let text = format!("{name} is in maintenance since {}: {}", maintenance.since, maintenance.reason);
            Some(Finding::notice(text))
        }
    }
}

fn render(agent: &Status, registrations: &[Registration], findings: &[Finding], paint: Paint) -> String {
    let uptime = lasted(Duration::try_from_secs_f64(agent.uptime_seconds).unwrap_or_default());
    let head = format!("{}: {}", paint.paint(Tone::Strong, &agent.node), verdict(findings, paint));
    let etcd = match agent.etcd.synced {
        true => Cell::toned(format!("in step, revision {}", agent.etcd.revision), Tone::Good),
        false => Cell::toned(format!("not in step, last known revision {}", agent.etcd.revision), Tone::Bad),
    };
    let catalog = agent.catalog.as_ref().map_or_else(
        || Cell::toned("none yet", Tone::Bad),
        |catalog| format!("{}, {}", count(catalog.services, "service"), count(catalog.nodes, "node")).into(),
    );
    let streams = &agent.streams;
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let mut facts = Table::new([Align::Left; 2]);
    facts.row(["agent".into(), format!("waypost {}, up for {uptime}", agent.version).into()]);
    facts.row(["etcd".into(), etcd]);
    facts.row(["".into(), agent.etcd.endpoints.join(", ").into()]);
    facts.row(["serves".into(), catalog]);
    let envoys = format!("{}, {}", count(number(streams.envoys), "Envoy"), count(number(streams.filters), "filter"));
    facts.row(["to".into(), envoys.into()]);
    let (policies, routes) = (agent.rules.policies, agent.rules.routes);
    if policies + routes > 0 {
        let policies = if policies == 1 { "1 policy".to_owned() } else { format!("{policies} policies") };
        facts.row(["by".into(), format!("{policies}, {}", count(routes, "route")).into()]);
    }

    let left = |name| (name, Align::Left);
    let mut watches = Table::headed([
        left("WATCH"),
        left("FORMAT"),
        left("STATE"),
        ("REVISION", Align::Right),
        ("KEYS", Align::Right),
    ]);
    for watch in &agent.watches {
        let state =
            if watch.synced { Cell::toned("in step", Tone::Good) } else { Cell::toned("not in step", Tone::Bad) };
        let (revision, keys) = (watch.revision.to_string(), watch.keys.to_string());
        watches.row([(&watch.prefix).into(), (&watch.format).into(), state, revision.into(), keys.into()]);
    }
    let mut out = format!("{head}\n{}\n{}", facts.render(paint), watches.render(paint));
    if !registrations.is_empty() {
        out.push('\n');
        out.push_str(&of_this_host(registrations).render(paint));
    }
    out
}

/// This host's services.
fn of_this_host(registrations: &[Registration]) -> Table<6> {
    let columns = ["THIS HOST", "INSTANCE", "ADDRESS", "HEALTH", "STATE", "CHECK"];
    let mut table = Table::headed(columns.map(|name| (name, Align::Left)));
    for registration in registrations {
        let tone = match registration.state {
            RegistrationState::Registered => Tone::Good,
            RegistrationState::Pending | RegistrationState::Withdrawn => Tone::Warning,
            RegistrationState::Retrying | RegistrationState::Lost | RegistrationState::Closed => Tone::Bad,
        };
        let check = registration.check.as_ref().map_or_else(
            || Cell::from(""),
            |check| {
                let (what, tone) = if check.passing { ("passes", Tone::Good) } else { ("fails", Tone::Bad) };
                Cell::toned(format!("{what}, took {} ms", check.took_ms), tone)
            },
        );
        table.row([
            (&registration.service).into(),
            (&registration.instance).into(),
            registration.address.map(|address| address.to_string()).unwrap_or_default().into(),
            registration.health.map_or_else(|| "".into(), health),
            Cell::toned(registration.state.as_str(), tone),
            check,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{
        CatalogStatus, CheckReport, EtcdStatus, Maintenance, RefusedDocument, RulesStatus, Source, StreamStatus,
        WatchStatus,
    };

    fn agent() -> Status {
        Status {
            node: "host-a".into(),
            version: "0.1.0".into(),
            uptime_seconds: 7_500.2,
            etcd: EtcdStatus {
                endpoints: vec!["http://10.0.0.1:2379".into()],
                synced: true,
                revision: 1234,
                stale_seconds: 0.1,
            },
            watches: vec![WatchStatus {
                prefix: "/waypost/services/".into(),
                format: "waypost".into(),
                synced: true,
                revision: 1234,
                keys: 3,
                cause: None,
            }],
            catalog: Some(CatalogStatus { version: 7, services: 1, nodes: 3 }),
            maintenance: None,
            registrations: 1,
            streams: StreamStatus { filters: 3, envoys: 1 },
            rules: RulesStatus { policies: 1, routes: 2, refused: Vec::new(), components: Vec::new() },
        }
    }

    fn registration() -> Registration {
        Registration {
            service: "web".into(),
            instance: "host-a-8080".into(),
            root: "/waypost/services/".into(),
            source: Source::File,
            address: Some(([10, 0, 0, 5], 8080).into()),
            health: Some(Health::Passing),
            state: RegistrationState::Registered,
            problem: None,
            lease: Some("694d".into()),
            check: Some(CheckReport { passing: true, output: "200 OK".into(), at: String::new(), took_ms: 3 }),
            maintenance: None,
            definition: None,
        }
    }

    #[test]
    fn a_well_agent_is_said_to_be_well_with_its_figures() {
        let (agent, registrations) = (agent(), [registration()]);
        let findings = findings(&agent, &registrations, &[]);
        let expected = "\
host-a: all is well

agent   waypost 0.1.0, up for 2 h 5 min
etcd    in step, revision 1234
        http://10.0.0.1:2379
serves  1 service, 3 nodes
to      1 Envoy, 3 filters
by      1 policy, 2 routes

WATCH               FORMAT   STATE    REVISION  KEYS
/waypost/services/  waypost  in step      1234     3

THIS HOST  INSTANCE     ADDRESS        HEALTH   STATE       CHECK
web        host-a-8080  10.0.0.5:8080  passing  registered  passes, took 3 ms
";
        assert_eq!(render(&agent, &registrations, &findings, Paint::PLAIN), expected);
    }

    #[test]
    fn whatever_is_wrong_is_said_first_and_with_its_cause() {
        let mut agent = agent();
        agent.watches[0] = WatchStatus { synced: false, cause: Some("cut off".into()), ..agent.watches[0].clone() };
        agent.etcd.stale_seconds = 72.0;
        agent.rules.refused.push(RefusedDocument {
            key: "/waypost/policies/web".into(),
            revision: 9,
            problems: vec!["strategy: no".into(), "sticky: no".into()],
            last_good: true,
        });
        let failing = CheckReport { passing: false, output: "503".into(), at: String::new(), took_ms: 1 };
        let upkeep = Maintenance { reason: "new disks".into(), since: "2026-03-01T12:30:00Z".into() };
        let registrations = [
            Registration { maintenance: Some(upkeep.clone()), health: Some(Health::Draining), ..registration() },
            Registration { health: Some(Health::Critical), check: Some(failing), ..registration() },
            Registration { state: RegistrationState::Retrying, problem: Some("no quorum".into()), ..registration() },
            Registration { state: RegistrationState::Pending, health: None, check: None, ..registration() },
        ];
        let texts = |agent: &Status| -> Vec<String> {
            findings(agent, &registrations, &[]).into_iter().map(|finding| finding.text).collect()
        };
        let expected = [
            "etcd: /waypost/services/ is not followed for 1 min 12 s: cut off",
            "/waypost/policies/web is refused, the one before it stays in use: strategy: no; sticky: no",
            "web/host-a-8080 is in maintenance since 2026-03-01T12:30:00Z: new disks",
            "web/host-a-8080 is critical: 503",
            "web/host-a-8080 is not in etcd as intended: no quorum",
            "web/host-a-8080 is not registered yet: no cause is known",
        ];
        assert_eq!(texts(&agent), expected);
        agent.maintenance = Some(upkeep);
        agent.catalog = None;
        let texts = texts(&agent);
        assert!(texts[0].contains("no catalog") && texts[3].contains("this host is in maintenance"), "{texts:?}");
        assert_eq!(texts.len(), expected.len() + 1, "the host's maintenance is told once: {texts:?}");
    }
}
