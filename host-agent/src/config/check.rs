//! A service's check: which types there are, which keys go with which, and when it decides what.

use std::time::Duration;

use super::{
    probe::{Probe, probe},
    reader::Section,
    values::{self, MS, SECOND},
};

/// A health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Who speaks first.
    pub kind: CheckKind,
    /// What a service is that is new in the registry.
    pub initial: Initial,
    /// Passes in a row that make a critical service pass.
    pub rise: u32,
    /// Failures in a row that make a passing service critical.
    pub fall: u32,
}

/// Who speaks first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// The agent asks, again and again.
    Asked(Probing),
    /// The application reports, and silence is failure.
    Reported {
        /// How long a report counts.
        ttl: Duration,
    },
}

/// What is asked, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probing {
    /// What is asked.
    pub probe: Probe,
    /// Time from one probe to the next.
    pub interval: Duration,
    /// How much earlier or later a probe may come.
    pub jitter: Duration,
    /// Deadline of a probe.
    pub timeout: Duration,
}

/// What a service is that is new in the registry, until its check has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// Not there.
    Undecided,
    /// There, and picked.
    Passing,
    /// There, and not picked.
    Critical,
}

impl Check {
    /// The most that it takes to find out that a service fails.
    pub fn time_to_fail(&self) -> Duration {
        self.fall
            * match &self.kind {
                CheckKind::Asked(probing) => probing.interval + probing.jitter + probing.timeout,
                CheckKind::Reported { ttl } => *ttl,
            }
    }
}

const TYPES: [&str; 5] = ["http", "tcp", "grpc", "exec", "ttl"];
const ASKED: &[&str] = &["http", "tcp", "grpc", "exec"];
const TLS: &[&str] = &["http", "grpc"];
/// The keys that not every type has.
const KEYS: [(&str, &[&str]); 17] = [
    ("interval", ASKED),
    ("jitter", ASKED),
    ("timeout", ASKED),
    ("port", &["http", "tcp", "grpc"]),
    ("tls", TLS),
    ("ca_file", TLS),
    ("server_name", TLS),
    ("verify", TLS),
    ("method", &["http"]),
    ("path", &["http"]),
    ("headers", &["http"]),
    ("expect_status", &["http"]),
    ("expect_body", &["http"]),
    ("expect_pattern", &["http"]),
    ("service", &["grpc"]),
    ("command", &["exec"]),
    ("ttl", &["ttl"]),
];

/// `"a", "b" and "c"`.
fn names(types: &[&str], conjunction: &str) -> String {
    let quoted: Vec<_> = types.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {conjunction} {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// The table `check` of a service. `None` only if something was noted as wrong.
pub(super) fn check(section: Section<'_>) -> Option<Check> {
    let kind = section.require("type", &names(&TYPES, "or"), |value| {
        let given = values::text(value)?;
        let known = TYPES.into_iter().find(|known| *known == given);
        known.ok_or_else(|| format!("{given:?} is no type of check: allowed are {}", names(&TYPES, "and")))
    });
    let initial = section.get("initial", initial).unwrap_or(Initial::Critical);
    let rise = section.get("rise", values::integer(1..=100));
    let fall = section.get("fall", values::integer(1..=100));
    let probing = probing(&section, kind);
    let ttl = section.get("ttl", values::duration(SECOND..=24 * 3600 * SECOND));
    if kind == Some("ttl") && !section.has("ttl") {
        section.problem("ttl", "missing: write how long a report counts, such as \"10s\"");
    }
    for (key, types) in
        KEYS.into_iter().filter(|(key, types)| section.has(key) && kind.is_some_and(|kind| !types.contains(&kind)))
    {
        section.problem(key, format!("is for checks of type {}", names(types, "and")));
    }
    section.finish();
    let (kind, rise_by_default, fall_by_default) = match kind? {
        // The application decides for itself.
        "ttl" => (CheckKind::Reported { ttl: ttl? }, 1, 1),
        _ => (CheckKind::Asked(probing?), 2, 3),
    };
    Some(Check { kind, initial, rise: rise.unwrap_or(rise_by_default), fall: fall.unwrap_or(fall_by_default) })
}

fn initial(value: &toml::de::DeValue<'_>) -> Result<Initial, String> {
    match values::text(value)?.as_str() {
        "undecided" => Ok(Initial::Undecided),
        "passing" => Ok(Initial::Passing),
        "critical" => Ok(Initial::Critical),
        other => Err(format!("{other:?} is no status: allowed are \"undecided\", \"passing\" and \"critical\"")),
    }
}

fn probing(section: &Section<'_>, kind: Option<&str>) -> Option<Probing> {
    let interval = section.get("interval", values::duration(100 * MS..=3600 * SECOND)).unwrap_or(2 * SECOND);
    let jitter = section.get("jitter", values::duration(Duration::ZERO..=3600 * SECOND));
    let timeout = section.get("timeout", values::duration(10 * MS..=60 * SECOND));
    for (key, given) in [("jitter", jitter), ("timeout", timeout)] {
        if let Some(given) = given.filter(|given| *given > interval) {
            let (given, interval) = (values::format_duration(given), values::format_duration(interval));
            section.problem(
                key,
                format!("{given} is longer than the interval of {interval}: the two may be equal at most"),
            );
        }
    }
    let probe = probe(section, kind)?;
    let timeout = timeout.unwrap_or_else(|| SECOND.min(interval));
    Some(Probing { probe, interval, jitter: jitter.unwrap_or(interval / 10), timeout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CheckTls, ExpectedBody, GrpcProbe, Verify, parse};

    fn text(keys: &str) -> String {
        let keys = keys.replace("; ", "\n");
        format!(
            "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n[[service]]\nname = \"a\"\nport = 80\n[service.check]\n{keys}\n"
        )
    }

    #[track_caller]
    fn check(keys: &str) -> Check {
        parse("agent.toml", &text(keys), "host-a").unwrap().services.remove(0).check.unwrap()
    }

    #[track_caller]
    fn probe(keys: &str) -> Probe {
        match check(keys).kind {
            CheckKind::Asked(probing) => probing.probe,
            kind => panic!("{kind:?}"),
        }
    }

    /// What is wrong, without file and line.
    #[track_caller]
    fn problems(keys: &str) -> Vec<String> {
        let invalid = parse("agent.toml", &text(keys), "host-a").unwrap_err();
        let said = |message: &str| message.strip_prefix("service.check.").unwrap_or(message).to_owned();
        invalid.problems.iter().map(|problem| said(&problem.message)).collect()
    }

    #[test]
    fn each_type_takes_its_own_keys() {
        let Probe::Http(http) = probe(
            "type = \"http\"; method = \"HEAD\"; path = \"/up\"; headers = { Host = \"shop.example\", x-key = \"k\" }; \
             expect_status = [204, \"300-308\"]; port = 8081",
        ) else {
            panic!()
        };
        assert_eq!((http.method.as_str(), &*http.path, http.port), ("HEAD", "/up", Some(8081)));
        assert_eq!(
            (http.host.unwrap().as_str(), http.headers["x-key"].as_bytes(), http.headers.len()),
            ("shop.example", &b"k"[..], 1)
        );
        assert_eq!(http.expect_status, [204..=204, 300..=308]);
        let tls = "tls = true; ca_file = \"/ca.pem\"; server_name = \"shop.example\"";
        let grpc = probe(&format!("type = \"grpc\"; service = \"shop.Orders\"; {tls}"));
        let server_name = Some("shop.example".try_into().unwrap());
        let tls = Some(CheckTls { verify: Verify::Authority("/ca.pem".into()), server_name });
        assert_eq!(grpc, Probe::Grpc(GrpcProbe { port: None, tls, service: "shop.Orders".into() }));
        let exec = probe("type = \"exec\"; command = [\"/bin/true\", \"a b\"]");
        assert_eq!(exec, Probe::Exec { command: vec!["/bin/true".into(), "a b".into()] });
        assert_eq!(probe("type = \"tcp\"; port = 81"), Probe::Tcp { port: Some(81) });
        let ttl = check("type = \"ttl\"; ttl = \"10s\"; initial = \"passing\"");
        let kind = CheckKind::Reported { ttl: 10 * SECOND };
        assert_eq!(ttl, Check { kind, initial: Initial::Passing, rise: 1, fall: 1 });
        assert_eq!(ttl.time_to_fail(), 10 * SECOND);
    }

    #[test]
    fn the_body_is_a_part_or_a_pattern() {
        let body = |keys: &str| match probe(keys) {
            Probe::Http(http) => http.expect_body,
            other => panic!("{other:?}"),
        };
        assert_eq!(body("type = \"http\"; expect_body = \"ok\""), Some(ExpectedBody::Holding("ok".into())));
        let Some(ExpectedBody::Matching(pattern)) = body("type = \"http\"; expect_pattern = '^o.$'") else { panic!() };
        assert!(pattern.is_match("ok") && !pattern.is_match("not ok"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (keys, expected) in [
            (
                "type = \"icmp\"",
                "type: \"icmp\" is no type of check: allowed are \"http\", \"tcp\", \"grpc\", \"exec\" and \"ttl\"",
            ),
            (
                "type = \"exec\"",
                "command: missing: write a program and its arguments, such as [\"/usr/lib/checks/disk\", \"--free\", \"10%\"]",
            ),
            (
                "type = \"exec\"; command = [\"\"]",
                "command: names no program: write a program and its arguments, such as [\"/usr/lib/checks/disk\", \"--free\", \"10%\"]",
            ),
            (
                "type = \"exec\"; command = \"true\"",
                "command: expected an array, such as [\"a\", \"b\"], found the text \"true\"",
            ),
            ("type = \"tcp\"; command = [\"true\"]", "command: is for checks of type \"exec\""),
            ("type = \"tcp\"; tls = true", "tls: is for checks of type \"http\" and \"grpc\""),
            (
                "type = \"tcp\"; jitter = \"3s\"",
                "jitter: 3s is longer than the interval of 2s: the two may be equal at most",
            ),
            (
                "type = \"http\"; tls = true",
                "ca_file: missing: write the certificate of the authority to trust, or verify = false to trust any",
            ),
            (
                "type = \"http\"; tls = true; verify = false; ca_file = \"/ca\"",
                "ca_file: beside verify = false, which trusts any certificate: write one of the two",
            ),
            ("type = \"grpc\"; server_name = \"a\"", "server_name: is for TLS: write tls = true, or leave it out"),
            (
                "type = \"grpc\"; tls = true; verify = false; server_name = \"a b\"",
                "server_name: \"a b\" is neither a host's name nor an IP address",
            ),
            (
                "type = \"http\"; method = \"get\"",
                "method: \"get\" is no method: write one in capitals, such as \"GET\" or \"HEAD\"",
            ),
            (
                "type = \"http\"; method = \"HEAD\"; expect_body = \"ok\"",
                "method: \"HEAD\" is answered without a body, of which something is expected",
            ),
            ("type = \"http\"; expect_status = []", "expect_status: is empty: no answer could pass"),
            (
                "type = \"http\"; expect_status = [\"299-200\"]",
                "expect_status: expected a status from 100 to 599, such as 200, or a range of them, such as \"200-299\", found the text \"299-200\"",
            ),
            (
                "type = \"http\"; expect_status = [99]",
                "expect_status: expected a status from 100 to 599, such as 200, or a range of them, such as \"200-299\", found the number 99",
            ),
            (
                "type = \"http\"; expect_pattern = \"(\"",
                "expect_pattern: \"(\" is no regular expression: error: unclosed group",
            ),
            (
                "type = \"http\"; expect_pattern = \"a\"; expect_body = \"a\"",
                "expect_pattern: beside expect_body: write one of the two",
            ),
            (
                "type = \"http\"; headers = { \"a b\" = \"c\" }",
                "headers: \"a b\" is no header's name: write one such as \"x-api-key\"",
            ),
            (
                "type = \"http\"; headers = { host = \"a b\" }",
                "headers: host: \"a b\" is no host, such as \"shop.example\" or \"shop.example:8080\"",
            ),
            ("type = \"ttl\"; ttl = \"100ms\"", "ttl: \"100ms\" is out of range: allowed is 1s to 1440m"),
        ] {
            assert_eq!(problems(keys), [expected], "{keys}");
        }
    }
}
