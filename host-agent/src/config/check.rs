//! A service's check: which types there are, and which keys go with which.

use std::time::Duration;

use super::{
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

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether a `GET` of this path answers with a status of 200 to 399.
    Http {
        /// The path, beginning with `/`.
        path: String,
    },
    /// Whether the port accepts a connection.
    Tcp,
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

const TYPES: [&str; 3] = ["http", "tcp", "ttl"];
const ASKED: &[&str] = &["http", "tcp"];
/// The keys that not every type has.
const KEYS: [(&str, &[&str]); 5] =
    [("interval", ASKED), ("jitter", ASKED), ("timeout", ASKED), ("path", &["http"]), ("ttl", &["ttl"])];

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
    let path = section.get("path", values::request_path);
    let probe = match kind? {
        "http" => Probe::Http { path: path.unwrap_or_else(|| "/".to_owned()) },
        _ => Probe::Tcp,
    };
    let timeout = timeout.unwrap_or_else(|| SECOND.min(interval));
    Some(Probing { probe, interval, jitter: jitter.unwrap_or(interval / 10), timeout })
}
