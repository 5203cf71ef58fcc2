//! A policy as filters get it: with what only the agent knows of the host and of the callers.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use waypost_balance::{self as balance, Algorithm, Settings};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Policy, Problems, Strategy};

/// A policy, and what zone aware routing needs to know besides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// The policy.
    pub policy: Policy,
    /// Failure domain of the host that requests come through; empty if unknown.
    pub zone: String,
    /// How many of the callers are in each zone; empty if the policy names none, or they are not known.
    pub callers: BTreeMap<String, u64>,
    /// What it was parsed from, to see whether another document says anything new; empty if it was not.
    pub document: Vec<u8>,
}

#[derive(Deserialize)]
struct Document {
    policy: Value,
    zone: String,
    callers: BTreeMap<String, u64>,
}

/// What stands for a zone in settings and selectors: 0 for an unknown one.
pub fn zone_number(zone: &str) -> u32 {
    // Two of a handful of zones share a number once in a thousand million services.
    if zone.is_empty() { 0 } else { (xxh3_64(zone.as_bytes()) as u32).max(1) }
}

impl Compiled {
    /// A policy for a host in this zone, whose service is called by nodes in these zones.
    pub fn new<'z>(policy: Policy, zone: String, callers: impl IntoIterator<Item = &'z str>) -> Self {
        let mut counted = BTreeMap::new();
        for zone in callers.into_iter().filter(|zone| !zone.is_empty()) {
            *counted.entry(zone.to_owned()).or_default() += 1;
        }
        Self { policy, zone, callers: counted, document: Vec::new() }
    }

    /// Reads what [`Compiled::to_json`] has written.
    ///
    /// # Errors
    /// [`Problems`] if that was no agent of this version.
    pub fn parse(json: &[u8]) -> Result<Self, Problems> {
        let unreadable = |error: serde_json::Error| Problems::whole(error.to_string());
        let Document { policy, zone, callers } = serde_json::from_slice(json).map_err(unreadable)?;
        let policy = Policy::parse(policy.to_string().as_bytes())?;
        Ok(Self { policy, zone, callers, document: json.to_vec() })
    }

    /// The one text of it.
    pub fn to_json(&self) -> String {
        let Self { policy, zone, callers, .. } = self;
        // Neither a text nor a map of numbers can fail.
        let zone = serde_json::to_string(zone).unwrap_or_default();
        let callers = serde_json::to_string(callers).unwrap_or_default();
        format!(r#"{{"callers":{callers},"policy":{},"zone":{zone}}}"#, policy.to_json())
    }

    /// What selectors are to be told.
    pub fn settings(&self) -> Settings {
        let policy = &self.policy;
        let ejection = policy.ejection.as_ref().map(|ejection| balance::Ejection {
            consecutive_failures: (ejection.consecutive_failures > 0).then_some(ejection.consecutive_failures),
            interval: ejection.interval,
            base_time: ejection.base_time,
            max_time: ejection.max_time,
            max_share: ejection.max_share,
            success_rate: ejection.success_rate.as_ref().map(|rate| balance::SuccessRate {
                min_nodes: rate.min_nodes,
                min_requests: rate.min_requests,
                stdev_factor: rate.stdev_factor,
            }),
        });
        let locality = policy.locality.as_ref().filter(|locality| locality.zone_aware);
        let locality = locality.map(|locality| balance::Locality {
            zone: zone_number(&self.zone),
            callers: self.callers.iter().map(|(zone, callers)| (zone_number(zone), *callers)).collect(),
            min_nodes: locality.min_nodes,
        });
        Settings {
            algorithm: policy.strategy.algorithm(),
            panic_threshold: (policy.panic_threshold > 0).then_some(policy.panic_threshold),
            ejection,
            locality,
            overprovisioning: policy.overprovisioning.into(),
        }
    }
}

impl Strategy {
    /// The strategy as selectors know it.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Random => Algorithm::Random,
            Self::RoundRobin => Algorithm::RoundRobin,
            Self::WeightedRandom => Algorithm::WeightedRandom,
            Self::WeightedRoundRobin => Algorithm::WeightedRoundRobin,
            Self::LeastRequest { choices } => Algorithm::LeastRequest { choices: *choices },
            Self::PeakEwma { decay, default_latency } => {
                Algorithm::PeakEwma { decay: *decay, default_latency: *default_latency }
            }
            Self::ConsistentHash(hash) => {
                Algorithm::ConsistentHash { table_size: hash.table_size, bounded_load: hash.bounded_load }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_writes_a_filter_reads() {
        let policy = Policy::parse(br#"{"strategy":"least-request","locality":{"callers":"front"}}"#).unwrap();
        let compiled = Compiled::new(policy, "eu-\"1".into(), ["a", "b", "", "a"]);
        let json = compiled.to_json();
        let read = Compiled::parse(json.as_bytes()).unwrap();
        assert_eq!(read.to_json(), json);
        assert_eq!((&read.policy, &read.zone, &read.callers), (&compiled.policy, &compiled.zone, &compiled.callers));
        assert_eq!(read.callers, BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 1)]));
        assert_eq!(read.document, json.as_bytes());
        let locality = read.settings().locality.unwrap();
        assert_eq!((locality.zone, locality.callers.len()), (zone_number("eu-\"1"), 2));
        assert!(Compiled::parse(b"{}").is_err() && Compiled::parse(b"x").is_err());
    }

    #[test]
    fn what_is_off_is_not_there() {
        let policy = br#"{"panic_threshold":0,"locality":{"zone_aware":false}}"#;
        let settings = Compiled::new(Policy::parse(policy).unwrap(), "a".into(), []).settings();
        assert_eq!((settings.panic_threshold, settings.locality), (None, None));
        assert_eq!(Compiled::default().settings(), Settings::default());
    }
}
