//! A policy's document.

use std::{ops::RangeInclusive, time::Duration};

use serde_json::Value;

use super::{
    Component, ComponentSource, ConsistentHash, Ejection, Locality, Policy, SlowStart, Strategy, SubsetArm, SuccessRate,
};
use crate::{
    Arm, HashKey, MAX_ARMS, Priority, Split, Sticky, StickyCookie, Subsets,
    duration::format_duration,
    json::Json,
    names,
    reader::{Fields, Place, listed},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
/// Of a table: enough slots for a few nodes, and 4 MiB.
const TABLE: RangeInclusive<u32> = 101..=1_048_573;
const STRATEGIES: [&str; 7] = [
    "random",
    "round-robin",
    "weighted-random",
    "weighted-round-robin",
    "least-request",
    "peak-ewma",
    "consistent-hash",
];

/// What is wrong is noted where it stands: whatever is made of it is not used.
pub(super) fn policy(fields: &mut Fields<'_>) -> Option<Policy> {
    let default = Policy::default();
    let subsets = fields.get("subsets").map(|subsets| Subsets::read(&subsets));
    let known = match &subsets {
        // Which there would have been is not known: whoever names one is not to blame.
        Some(None) => None,
        Some(Some(subsets)) => Some(subsets),
        None => Some(&default.subsets),
    };
    Some(Policy {
        split: fields.get("split").and_then(|place| split(&place, known)),
        strategy: fields.get("strategy").and_then(|place| strategy(&place)).unwrap_or_default(),
        panic_threshold: percent(fields, "panic_threshold", 0, default.panic_threshold),
        ejection: fields.get("ejection").and_then(|place| ejection(&place)),
        slow_start: fields.get("slow_start").and_then(|place| slow_start(&place)),
        locality: fields.get("locality").and_then(|place| locality(&place)),
        priority: fields.get("priority").and_then(|place| Priority::read(&place)),
        overprovisioning: {
            let percent = fields.get("overprovisioning").and_then(|place| place.integer(100..=1_000));
            percent.and_then(|percent| u16::try_from(percent).ok()).unwrap_or(default.overprovisioning)
        },
        subset_header: fields.get("subset_header").and_then(|name| name.parsed(names::header)),
        sticky: {
            let sticky =
                fields.get("sticky").and_then(|place| place.fields("an object, such as {\"cookie\": \"node\"}"));
            sticky.and_then(StickyCookie::read)
        },
        component: fields.get("component").and_then(|place| component(&place)),
        outcomes: fields.get("outcomes").and_then(|place| place.boolean()).unwrap_or(default.outcomes),
        strict_subsets: {
            fields.get("strict_subsets").and_then(|place| place.boolean()).unwrap_or(default.strict_subsets)
        },
        subsets: subsets.flatten().unwrap_or_default(),
    })
}

fn percent(fields: &mut Fields<'_>, key: &'static str, least: u32, default: u8) -> u8 {
    let percent = fields.get(key).and_then(|place| place.integer(least..=100));
    percent.and_then(|percent| u8::try_from(percent).ok()).unwrap_or(default)
}

fn duration(
    fields: &mut Fields<'_>,
    key: &'static str,
    allowed: RangeInclusive<Duration>,
    default: Duration,
) -> Duration {
    fields.get(key).and_then(|place| place.duration(allowed)).unwrap_or(default)
}

fn strategy(place: &Place<'_>) -> Option<Strategy> {
    if !place.is_object() {
        return match place.json() {
            Json::Text(name) if name == "consistent-hash" => place.refuse(
                "what makes requests equal is missing: write {\"name\": \"consistent-hash\", \"key\": {\"header\": NAME}}",
            ),
            Json::Text(name) => by_name(place, name),
            other => place.refuse(format!(
                "expected a strategy's name, or an object such as {{\"name\": \"least-request\", \"choices\": 3}}, \
                 found {}",
                other.described()
            )),
        };
    }
    let mut fields = place.fields("an object")?;
    let name = fields.require("name", "a strategy's name, such as \"least-request\"");
    let strategy = name.and_then(|place| by_name(&place, place.text()?));
    let strategy = strategy.map(|strategy| match strategy {
        Strategy::LeastRequest { choices } => {
            let given = fields.get("choices").and_then(|place| place.integer(2..=10));
            let given = given.and_then(|choices| u8::try_from(choices).ok());
            Strategy::LeastRequest { choices: given.unwrap_or(choices) }
        }
        Strategy::PeakEwma { decay, default_latency } => Strategy::PeakEwma {
            decay: duration(&mut fields, "decay", MS..=HOUR, decay),
            default_latency: duration(&mut fields, "default_latency", MS..=SECOND * 60, default_latency),
        },
        Strategy::ConsistentHash(default) => {
            let key = fields.require("key", "what makes requests equal, such as {\"header\": \"x-user\"}");
            let key = key.and_then(|place| HashKey::read(&place));
            let table_size = fields.get("table_size").and_then(|place| table_size(&place));
            let bounded_load = fields.get("bounded_load").and_then(|place| place.number(1.0..100.0));
            Strategy::ConsistentHash(ConsistentHash {
                key: key.unwrap_or(default.key),
                table_size: table_size.unwrap_or(default.table_size),
                bounded_load,
            })
        }
        other => other,
    });
    // With an unknown name, which settings it has is not known either.
    if strategy.is_some() {
        fields.finish();
    }
    strategy
}

fn by_name(place: &Place<'_>, name: &str) -> Option<Strategy> {
    let decay = SECOND * 10;
    match name {
        "random" => Some(Strategy::Random),
        "round-robin" => Some(Strategy::RoundRobin),
        "weighted-random" => Some(Strategy::WeightedRandom),
        "weighted-round-robin" => Some(Strategy::WeightedRoundRobin),
        "least-request" => Some(Strategy::LeastRequest { choices: 2 }),
        "peak-ewma" => Some(Strategy::PeakEwma { decay, default_latency: MS * 30 }),
        "consistent-hash" => Some(Strategy::ConsistentHash(ConsistentHash {
            key: HashKey::Source,
            table_size: 65_537,
            bounded_load: None,
        })),
        other => place.unknown_word("strategy", other, STRATEGIES.into_iter()),
    }
}

fn table_size(place: &Place<'_>) -> Option<u32> {
    let size = place.integer(TABLE)?;
    if is_prime(size) {
        return Some(size);
    }
    let next = (size..=*TABLE.end()).find(|size| is_prime(*size)).unwrap_or(*TABLE.end());
    place.refuse(format!("{size} is no prime number, which the table needs: the next one is {next}"))
}

fn is_prime(number: u32) -> bool {
    let up_to_root = (2..).take_while(|divisor: &u32| divisor.saturating_mul(*divisor) <= number);
    number > 1 && up_to_root.into_iter().all(|divisor| !number.is_multiple_of(divisor))
}

fn ejection(place: &Place<'_>) -> Option<Ejection> {
    let mut fields = place.fields("an object, such as {\"consecutive_failures\": 5}")?;
    let failures = fields.get("consecutive_failures").and_then(|place| place.integer(0..=1_000_000));
    let times = MS * 100..=HOUR * 24;
    let ejection = Ejection {
        consecutive_failures: failures.unwrap_or(5),
        interval: duration(&mut fields, "interval", MS * 100..=HOUR, SECOND * 10),
        base_time: duration(&mut fields, "base_time", times.clone(), SECOND * 30),
        max_time: duration(&mut fields, "max_time", times, SECOND * 300),
        max_share: percent(&mut fields, "max_share", 1, 10),
        success_rate: fields.get("success_rate").and_then(|place| success_rate(&place)),
    };
    if ejection.base_time > ejection.max_time {
        let (base, max) = (format_duration(ejection.base_time), format_duration(ejection.max_time));
        fields.problem("base_time", format!("{base} is longer than max_time, {max}: the two may be equal at most"));
    }
    fields.finish();
    Some(ejection)
}

fn success_rate(place: &Place<'_>) -> Option<SuccessRate> {
    let mut fields = place.fields("an object, such as {\"stdev_factor\": 1.9}")?;
    let rate = SuccessRate {
        min_nodes: fields.get("min_nodes").and_then(|place| place.integer(1..=1_000_000)).unwrap_or(5),
        min_requests: fields.get("min_requests").and_then(|place| place.integer(1..=1_000_000_000)).unwrap_or(100),
        stdev_factor: fields.get("stdev_factor").and_then(|place| place.number(0.0..100.0)).unwrap_or(1.9),
    };
    fields.finish();
    Some(rate)
}

fn slow_start(place: &Place<'_>) -> Option<SlowStart> {
    let mut fields = place.fields("an object, such as {\"window\": \"30s\"}")?;
    let window = fields.require("window", "how long it takes, such as \"30s\"");
    let window = window.and_then(|place| place.duration(SECOND..=HOUR * 24));
    let aggression = fields.get("aggression").and_then(|place| place.number(0.0..100.0));
    let min_share = percent(&mut fields, "min_share", 0, 10);
    fields.finish();
    Some(SlowStart { window: window?, aggression: aggression.unwrap_or(1.0), min_share })
}

fn locality(place: &Place<'_>) -> Option<Locality> {
    let mut fields = place.fields("an object, such as {\"zone_aware\": true}")?;
    let locality = Locality {
        zone_aware: fields.get("zone_aware").and_then(|place| place.boolean()).unwrap_or(true),
        callers: fields.get("callers").and_then(|place| place.parsed(names::service)),
        min_nodes: fields.get("min_nodes").and_then(|place| place.integer(1..=1_000_000)).unwrap_or(6),
    };
    fields.finish();
    Some(locality)
}

fn split(place: &Place<'_>, subsets: Option<&Subsets>) -> Option<Split<SubsetArm>> {
    const EXAMPLE: &str = "[{\"subset\": \"v1\", \"weight\": 95}, {\"subset\": \"v2\", \"weight\": 5}]";
    let mut fields = place.fields(&format!("an object, such as {{\"arms\": {EXAMPLE}}}"))?;
    let arms = fields.require("arms", EXAMPLE).and_then(|place| place.items(EXAMPLE, 1..=MAX_ARMS));
    let sticky = fields.get("sticky").map(|place| Sticky::read(&place));
    let mut read: Vec<Arm<SubsetArm>> = Vec::new();
    let mut all = arms.is_some();
    for place in arms.unwrap_or_default() {
        match arm(&place, subsets, &read) {
            Some(arm) => read.push(arm),
            None => all = false,
        }
    }
    let split = all.then(|| Split::new(read, sticky.flatten())).inspect(|split| {
        if split.is_none() {
            fields.problem("arms", "their weights are all 0: one at least has to get requests");
        }
    });
    fields.finish();
    split.flatten()
}

fn arm(place: &Place<'_>, subsets: Option<&Subsets>, before: &[Arm<SubsetArm>]) -> Option<Arm<SubsetArm>> {
    let mut fields = place.fields("an object, such as {\"subset\": \"v1\", \"weight\": 95}")?;
    let target = fields.require("subset", "the subset's name").and_then(|place| {
        let name = place.parsed(names::subset)?;
        if before.iter().any(|arm| arm.target.name == name) {
            return place.refuse("has an arm already: add up the weights");
        }
        // Unknown ones are no index: nothing of this document will be used.
        let Some(subsets) = subsets else { return Some(SubsetArm { name, index: 0 }) };
        match subsets.index(&name) {
            Some(index) => Some(SubsetArm { name, index }),
            None => place.refuse(no_such_subset(&name, subsets)),
        }
    });
    let weight = fields.require("weight", "its share, such as 95").and_then(|place| place.integer(0..=u32::MAX));
    fields.finish();
    Some(Arm { target: target?, weight: weight? })
}

/// What to say of a subset that a policy does not have.
fn no_such_subset(name: &str, subsets: &Subsets) -> String {
    if subsets.is_empty() {
        return format!("no subset is called {name:?}; there are none");
    }
    format!("no subset is called {name:?}; there are {}", listed(subsets.iter().map(|(name, _)| name)))
}

fn component(place: &Place<'_>) -> Option<Component> {
    let mut fields = place.fields("an object, such as {\"name\": \"capacity\"}")?;
    let (name, sha256) = (fields.get("name"), fields.get("sha256"));
    let source = match (name, sha256) {
        (Some(name), None) => name.parsed(names::component).map(ComponentSource::Name),
        (None, Some(hash)) => hash.parsed(names::sha256).map(ComponentSource::Sha256),
        _ => fields.refuse("one of the two is needed: write {\"name\": NAME} or {\"sha256\": HASH}"),
    };
    let parameters = match fields.get("parameters") {
        Some(place) => place.value(),
        None => Some(Value::Null),
    };
    fields.finish();
    Some(Component { source: source?, parameters: parameters? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_other_numbers() {
        let primes: Vec<u32> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(*TABLE.start()) && is_prime(*TABLE.end()) && !is_prime(65_536));
    }
}
