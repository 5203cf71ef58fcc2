//! Rounds drawn from a seed: a world, and several faults done to it, one on the heels of the other.
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;

use crate::chaos::access::Security;
use crate::chaos::checker::Verdict;
use crate::chaos::scenarios::{ALL, Scenario};
use crate::chaos::world::{Plan, World};
use crate::scene::Scene;

/// Who is cut off while a value is good never had it as the last good one: with other faults beside it, there is no
/// saying what is to be served.
const ONLY_ALONE: &str = "values-malformed";

/// A round.
#[derive(Debug, Clone)]
pub struct Round {
    /// What it was drawn from.
    pub seed: u64,
    /// Its world.
    pub plan: Plan,
    /// What is done to it, in order.
    pub scenarios: Vec<&'static Scenario>,
}

impl Round {
    /// Draws one; of a single scenario, if it is named.
    pub fn draw(seed: u64, only: Option<&'static Scenario>) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut plan = Plan {
            members: if random.bool() { 3 } else { 1 },
            pace: Duration::from_millis(random.u64(2..40)),
            security: match random.u8(..10) {
                0..2 => Security::Password,
                2..4 => Security::Certificate,
                _ => Security::Open,
            },
            stepped: random.u8(..4) == 0,
            ..Plan::default()
        };
        if let Some(only) = only {
            if !only.needs.are_met_by(&plan) {
                plan = only.needs.plan();
            }
            return Self { seed, plan, scenarios: vec![only] };
        }
        let mut fitting: Vec<_> = ALL.iter().filter(|scenario| scenario.needs.are_met_by(&plan)).collect();
        random.shuffle(&mut fitting);
        fitting.truncate(random.usize(2..=5));
        fitting.retain(|scenario| scenario.name != ONLY_ALONE);
        Self { seed, plan, scenarios: fitting }
    }

    /// The round after this one.
    pub fn next_seed(&self) -> u64 {
        u64::from(Rng::with_seed(self.seed.wrapping_add(1)).u32(..))
    }

    /// Its world, in a few words.
    pub fn world(&self) -> String {
        let members = if self.plan.members == 1 { "1 member" } else { "3 members" };
        let security = match self.plan.security {
            Security::Open => "open",
            Security::Password => "passwords",
            Security::Certificate => "certificates",
        };
        format!("{members}, {security}")
    }

    /// Runs it, and says which scenario is under way.
    pub async fn run(&self, mut says: impl FnMut(&str)) -> Result<Verdict> {
        let mut random = Rng::with_seed(self.seed);
        says("start");
        let world = World::start(Scene::new()?, self.plan).await?;
        world.log.note(format!("seed {}", self.seed));
        for scenario in &self.scenarios {
            says(scenario.name);
            let done = scenario.inflict(&world, &mut random).await;
            done.with_context(|| format!("seed {}", self.seed))?;
            tokio::time::sleep(Duration::from_millis(random.u64(..1500))).await;
        }
        says("settle");
        world.finish().await.with_context(|| format!("seed {}", self.seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_round() {
        let names = |seed| -> Vec<_> { Round::draw(seed, None).scenarios.iter().map(|one| one.name).collect() };
        for seed in 0..50 {
            assert_eq!(names(seed), names(seed));
        }
        assert!((0..50).any(|seed| names(seed) != names(0)));
        assert_eq!(Round::draw(7, None).next_seed(), Round::draw(7, None).next_seed());
    }

    #[test]
    fn every_scenario_is_drawn_and_only_into_a_world_that_does_for_it() {
        let rounds: Vec<_> = (0..500).map(|seed| Round::draw(seed, None)).collect();
        for scenario in ALL.iter().filter(|scenario| scenario.name != ONLY_ALONE) {
            let drawn = rounds.iter().filter(|round| round.scenarios.iter().any(|one| one.name == scenario.name));
            assert!(drawn.count() > 0, "{}", scenario.name);
        }
        for round in &rounds {
            assert!(round.scenarios.iter().all(|scenario| scenario.needs.are_met_by(&round.plan)), "{round:?}");
        }
    }

    #[test]
    fn a_named_scenario_comes_alone_in_a_world_that_does_for_it() {
        for scenario in ALL {
            let round = Round::draw(3, Some(scenario));
            assert_eq!(round.scenarios.len(), 1);
            assert!(scenario.needs.are_met_by(&round.plan), "{round:?}");
        }
    }
}
