//! What etcd itself says of its members, and what is kept in it.

use std::time::{Duration, Instant};

use serde::Serialize;
use waypost_registry::{Connector, etcd_client::StatusResponse};

use super::{Finding, Severity, of_services, verdict};
use crate::{
    api::{catalog::summaries, types::ServiceSummary},
    cli::{
        output::{
            self, Align, Cell, Paint, Table, Tone,
            text::{bytes, count},
        },
        source::{Straight, unread},
    },
    config::Etcd,
    etcd,
};

/// Members whose revisions are that far apart are not merely a few writes behind.
const BEHIND: i64 = 1000;

#[derive(Debug, Serialize)]
struct Document {
    problems: Vec<String>,
    notices: Vec<String>,
    members: Vec<Member>,
    services: Vec<ServiceSummary>,
}

/// An endpoint, and the member that answers there.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Member {
    endpoint: String,
    #[serde(flatten)]
    answer: Option<Answer>,
    error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Answer {
    version: String,
    leader: bool,
    revision: i64,
    db_size: i64,
    took_ms: u64,
    alarms: Vec<String>,
}

pub(super) async fn run(settings: &Etcd, straight: &Straight, json: bool) -> anyhow::Result<()> {
    let mut members = Vec::new();
    for endpoint in &settings.endpoints {
        let alone = etcd::connector(&Etcd { endpoints: vec![endpoint.clone()], ..settings.clone() })?;
        members.push(member(endpoint, &alone).await);
    }
    let reached = members.iter().any(|member| member.answer.is_some());
    if !reached {
        let cause = members.iter().find_map(|member| member.error.as_deref());
        return Err(unread(cause));
    }
    let services = summaries(&straight.catalog(None).await?);
    let findings = findings(&members, &services);
    if !json {
        output::print(&render(&members, &services, &straight.layout.prefix, &findings, Paint::stdout()))?;
        return Ok(());
    }
    let of = |severity| {
        let found = findings.iter().filter(move |finding| finding.severity == severity);
        found.map(|finding| finding.text.clone()).collect()
    };
    let (problems, notices) = (of(Severity::Problem), of(Severity::Notice));
    output::print_json(&Document { problems, notices, members, services })?;
    Ok(())
}

async fn member(endpoint: &str, connector: &Connector) -> Member {
    let failed = |error: String| Member { endpoint: endpoint.to_owned(), answer: None, error: Some(error) };
    let mut client = match connector.connect().await {
        Ok(client) => client,
        Err(error) => return failed(error.to_string()),
    };
    let (asked, limit) = (Instant::now(), connector.request_timeout());
    match tokio::time::timeout(limit, client.status()).await {
        Ok(Ok(status)) => {
            let answer = Some(Answer::new(&status, asked.elapsed()));
            Member { endpoint: endpoint.to_owned(), answer, error: None }
        }
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed(format!("no answer within {limit:?}")),
    }
}

impl Answer {
    fn new(status: &StatusResponse, took: Duration) -> Self {
        let header = status.header();
        Self {
            version: status.version().to_owned(),
            leader: header.is_some_and(|header| header.member_id() == status.leader()),
            revision: header.map_or(0, waypost_registry::etcd_client::ResponseHeader::revision),
            db_size: status.db_size(),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            alarms: status.errors().to_vec(),
        }
    }
}

fn findings(members: &[Member], services: &[ServiceSummary]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let newest = members.iter().filter_map(|member| member.answer.as_ref()).map(|answer| answer.revision).max();
    for Member { endpoint, answer, error } in members {
        if let Some(error) = error {
            findings.push(Finding::problem(format!("etcd {endpoint}: {error}")));
        }
        let Some(answer) = answer else { continue };
        findings.extend(answer.alarms.iter().map(|alarm| Finding::problem(format!("etcd {endpoint}: {alarm}"))));
        let behind = newest.unwrap_or_default() - answer.revision;
        if behind > BEHIND {
            findings.push(Finding::notice(format!("etcd {endpoint} is {behind} revisions behind")));
        }
    }
    findings.extend(of_services(services));
    findings
}

fn render(members: &[Member], services: &[ServiceSummary], prefix: &str, findings: &[Finding], paint: Paint) -> String {
    let right = |name| (name, Align::Right);
    let left = |name| (name, Align::Left);
    let columns = [left("ETCD"), left("VERSION"), left("ROLE"), right("REVISION"), right("SIZE"), right("ANSWERED IN")];
    let mut table = Table::headed(columns);
    for Member { endpoint, answer, .. } in members {
        let Some(answer) = answer else {
            table.row([
                endpoint.into(),
                "".into(),
                Cell::toned("not reached", Tone::Bad),
                "".into(),
                "".into(),
                "".into(),
            ]);
            continue;
        };
        table.row([
            endpoint.into(),
            (&answer.version).into(),
            if answer.leader { Cell::toned("leader", Tone::Good) } else { "follower".into() },
            answer.revision.to_string().into(),
            bytes(u64::try_from(answer.db_size).unwrap_or_default()).into(),
            format!("{} ms", answer.took_ms).into(),
        ]);
    }
    let nodes = services.iter().map(|service| service.nodes).sum();
    let held = format!("{prefix} holds {}, {}", count(services.len(), "service"), count(nodes, "node"));
    format!("{}\n{}\n{held}\n", verdict(findings, paint), table.render(paint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_is_shown_and_what_is_wrong_with_it_is_said_first() {
        let answer = Answer {
            version: "3.5.1".into(),
            leader: true,
            revision: 5000,
            db_size: 20_480,
            took_ms: 2,
            alarms: vec![],
        };
        let member = |endpoint: &str, answer| Member { endpoint: endpoint.into(), answer, error: None };
        let members = [
            member("http://a:2379", Some(answer.clone())),
            member(
                "http://b:2379",
                Some(Answer { leader: false, revision: 3000, alarms: vec!["NOSPACE".into()], ..answer }),
            ),
            Member { error: Some("refused".into()), ..member("http://c:2379", None) },
        ];
        let findings = findings(&members, &[]);
        let expected = "\
2 problems
  ! etcd http://b:2379: NOSPACE
  ! etcd http://c:2379: refused
  - etcd http://b:2379 is 2000 revisions behind

ETCD           VERSION  ROLE         REVISION      SIZE  ANSWERED IN
http://a:2379  3.5.1    leader           5000  20.0 KiB         2 ms
http://b:2379  3.5.1    follower         3000  20.0 KiB         2 ms
http://c:2379           not reached

/s/ holds 0 services, 0 nodes
";
        assert_eq!(render(&members, &[], "/s/", &findings, Paint::PLAIN), expected);
        let line = serde_json::to_value(&members[0]).unwrap();
        assert_eq!((&line["leader"], &line["error"]), (&true.into(), &serde_json::Value::Null));
    }
}
