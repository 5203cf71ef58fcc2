//! One fault each, by name: what the world has to be for it, and what is done to it.
mod access;
mod agents;
mod keys;
mod links;
mod members;

use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use futures::future::BoxFuture;

use crate::chaos::access::Security;
use crate::chaos::checker::Verdict;
use crate::chaos::world::{Plan, World};
use crate::scene::Scene;

/// Does something to a world; what is left open is drawn from the generator. Afterwards nothing is broken any more.
type Deed = for<'a> fn(&'a World, &'a mut Rng) -> BoxFuture<'a, Result<()>>;

/// A fault.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What happens, in words.
    pub fault: &'static str,
    /// The world that it needs.
    pub needs: Needs,
    deed: Deed,
}

/// What a fault asks of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any world.
    Any,
    /// Data that may be lost: users and passwords would be lost with it.
    NoPasswords,
    /// Agents whose wall clock can be stepped.
    Clock,
    /// Three members of etcd.
    ThreeMembers,
    /// Users and passwords.
    Passwords,
    /// Certificates.
    Certificates,
}

impl Needs {
    /// The smallest world that does.
    pub fn plan(self) -> Plan {
        match self {
            Self::Any | Self::NoPasswords => Plan::default(),
            Self::Clock => Plan { stepped: true, ..Plan::default() },
            Self::ThreeMembers => Plan { members: 3, ..Plan::default() },
            Self::Passwords => Plan { security: Security::Password, ..Plan::default() },
            Self::Certificates => Plan { security: Security::Certificate, ..Plan::default() },
        }
    }

    /// Whether a world does.
    pub fn are_met_by(self, plan: &Plan) -> bool {
        match self {
            Self::Any => true,
            Self::NoPasswords => plan.security != Security::Password,
            Self::Clock => plan.stepped,
            Self::ThreeMembers => plan.members == 3,
            Self::Passwords => plan.security == Security::Password,
            Self::Certificates => plan.security == Security::Certificate,
        }
    }
}

impl Scenario {
    /// Does it to a world.
    pub async fn inflict(&self, world: &World, random: &mut Rng) -> Result<()> {
        world.log.note(format!("--- {}: {}", self.name, self.fault));
        (self.deed)(world, random).await.with_context(|| format!("scenario {}", self.name))
    }
}

macro_rules! scenarios {
    ($($name:literal, $needs:ident, $deed:path, $fault:literal;)*) => {
        /// Every one of them.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: $name,
            fault: $fault,
            needs: Needs::$needs,
            deed: |world, random| Box::pin($deed(world, random)),
        }),*];
    };
}

scenarios! {
    "leader-killed", ThreeMembers, members::leader_killed, "the leader of three members is killed";
    "rolling-restart", ThreeMembers, members::rolling_restart, "three members are restarted one after the other";
    "etcd-stopped", Any, members::stopped, "all members are stopped for longer than the TTL";
    "data-wiped", NoPasswords, members::wiped, "etcd comes back without its data";
    "snapshot-restored", Any, members::restored, "etcd comes back with an older snapshot";
    "compacted-during-cut", Any, keys::compacted_during_cut, "history is compacted away while links are cut";
    "compacted-before-watch", Any, keys::compacted_before_watch, "history is compacted away between range and watch";
    "key-deleted", Any, keys::deleted, "own keys are deleted, or overwritten, by somebody else";
    "lease-revoked", Any, keys::revoked, "the leases of own keys are revoked by somebody else";
    "token-expired", Passwords, access::token_expired, "tokens end while connections stand";
    "password-changed", Passwords, access::password_changed, "the password is changed";
    "auth-restarted", Passwords, access::restarted, "a member with authentication is restarted, and its tokens are gone";
    "certificates-replaced", Certificates, access::certificates_replaced, "authority and certificates are replaced";
    "link-half-open", Any, links::half_open, "connections are half-open";
    "link-half-closed", Any, links::half_closed, "connections are closed in one direction";
    "link-cut", Any, links::cut, "connections are reset, and refused for longer than the TTL";
    "link-silent", Any, links::silent, "links swallow every byte for longer than the TTL";
    "link-slow", Any, links::slow, "links are late and narrow";
    "agent-killed", Any, agents::killed, "an agent is killed and stays away for longer than the TTL";
    "agent-frozen", Any, agents::frozen, "an agent is frozen for longer than the TTL, and goes on";
    "clock-stepped", Clock, agents::clock_stepped, "the wall clock is stepped, forwards and back";
    "many-keys", Any, keys::many, "10,000 keys are put and deleted at once";
    "slow-subscriber", Any, keys::slow_subscriber, "a consumer of events is slower than etcd";
    "service-vanishes", Any, keys::vanishing, "90 % of a service vanishes";
    "values-malformed", Any, keys::malformed, "values are no nodes";
}

/// The scenario of that name.
pub fn find(name: &str) -> Result<&'static Scenario> {
    let names = || ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
    ALL.iter().find(|scenario| scenario.name == name).with_context(|| format!("no scenario {name:?}: {}", names()))
}

/// Does one to a world of its own, and judges.
pub async fn run(name: &str) -> Result<Verdict> {
    let scenario = find(name)?;
    let world = World::start(Scene::new()?, scenario.needs.plan()).await?;
    let mut random = Rng::with_seed(1);
    scenario.inflict(&world, &mut random).await?;
    world.finish().await
}

/// Somewhere between the two.
fn between(random: &mut Rng, from: f64, to: f64) -> Duration {
    Duration::from_secs_f64(from + random.f64() * (to - from))
}

/// Changes a few of the things that are wanted.
fn churn(world: &World, random: &mut Rng) -> Result<()> {
    for _ in 0..4 {
        let number = random.usize(..world.plan.keys);
        match random.u8(..5) {
            0 => world.keys.withdraw(number),
            _ => world.keys.want(number, &random.u32(..).to_string()),
        }
    }
    world.reweigh(random.usize(..world.agents.len()), random.u32(1..100))
}

/// One of the clients of etcd, by its number.
fn client(world: &World, random: &mut Rng) -> usize {
    random.usize(..world.clients())
}
