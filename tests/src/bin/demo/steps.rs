//! What the demo does, one thing after the other, and what it states of each beforehand.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use waypost_tests::Signal;

use crate::model::{LEGACY, Model, State, WEB};
use crate::screen::{grouped, points, seconds};
use crate::series::Shares;
use crate::traffic::Traffic;
use crate::world::World;

/// Shares count as settled when the last answers of this span are as the weights say.
const SETTLED_OVER: Duration = Duration::from_secs(2);
/// How far a share may be off, of all requests.
const TOLERANCE: f64 = 0.02;
/// Traffic watched after a step, for failures that come late.
const AFTERWARDS: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
const OUTAGE: Duration = Duration::from_secs(10);

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Steady,
    Weight,
    Kill,
    Recover,
    Drain,
    Return,
    AgentRestart,
    EtcdDown,
    Policy,
}

impl Step {
    pub const ALL: [Self; 9] = [
        Self::Steady,
        Self::Weight,
        Self::Kill,
        Self::Recover,
        Self::Drain,
        Self::Return,
        Self::AgentRestart,
        Self::EtcdDown,
        Self::Policy,
    ];

    /// What happens.
    pub fn title(self) -> &'static str {
        match self {
            Self::Steady => "Traffic by the weights 1, 2 and 3",
            Self::Weight => "The weight of web-1 goes from 1 to 4, in host-a's TOML",
            Self::Kill => "web-2's server is killed (SIGKILL)",
            Self::Recover => "web-2's server is started again",
            Self::Drain => "host-b drains (SIGTERM to its agent), then its server stops",
            Self::Return => "host-b's server and agent are started again",
            Self::AgentRestart => "host-a's agent, which feeds Envoy, is killed (SIGKILL) and restarted",
            Self::EtcdDown => "etcd is killed for 10 s; meanwhile the weight of web-1 goes back to 1",
            Self::Policy => "A policy in etcd makes web go round robin whatever the weights, and is taken out again",
        }
    }

    /// How long it may take to show.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Steady => 0,
            Self::Drain | Self::Policy => 1,
            Self::Weight => 2,
            Self::Kill => 3,
            Self::Recover | Self::Return | Self::AgentRestart | Self::EtcdDown => 5,
        })
    }

    /// What must come of it.
    pub fn promise(self) -> String {
        let limit = self.limit().as_secs();
        let effect = match self {
            Self::Steady => format!("shares as the weights say (within {})", points(TOLERANCE)),
            Self::Weight | Self::Recover | Self::Return => format!("the shares follow within {limit} s"),
            Self::Kill => format!("no longer tried after {limit} s"),
            Self::Policy => format!("the shares follow within {limit} s, both times"),
            Self::Drain => format!("no new request for it after {limit} s"),
            Self::AgentRestart => format!("Envoy's streams back within {limit} s, no registration lost, shares hold"),
            Self::EtcdDown => format!("shares hold; the new weight shows within {limit} s of etcd's start"),
        };
        format!("{effect}; 0 requests failed")
    }
}

/// How a step went.
pub struct Verdict {
    pub what: &'static str,
    pub stated: String,
    pub seen: String,
    pub met: bool,
}

/// What a step saw, before failed requests are counted in.
struct Seen {
    text: String,
    met: bool,
}

/// Runs the steps.
pub struct Steps {
    world: Arc<World>,
    traffic: Arc<Traffic>,
    model: Arc<Mutex<Model>>,
}

impl Steps {
    pub fn new(world: Arc<World>, traffic: Arc<Traffic>, model: Arc<Mutex<Model>>) -> Self {
        Self { world, traffic, model }
    }

    /// Does one step and judges it.
    pub async fn run(&self, step: Step) -> Result<Verdict> {
        let start = self.traffic.now();
        let (requests, failed) = self.traffic.totals();
        let seen = match step {
            Step::Steady => self.steady().await?,
            Step::Weight => self.change_weight().await?,
            Step::Kill => self.kill_node().await?,
            Step::Recover => self.recover_node().await?,
            Step::Drain => self.drain().await?,
            Step::Return => self.bring_back().await?,
            Step::AgentRestart => self.restart_agent().await?,
            Step::EtcdDown => self.stop_etcd().await?,
            Step::Policy => self.set_policy().await?,
        };
        sleep(AFTERWARDS).await;
        let totals = self.traffic.totals();
        let (requests, failed) = (totals.0 - requests, totals.1 - failed);
        // Whatever happens to `web`, the service beside it goes on as before.
        let legacy_off = self.deviation(LEGACY, start);
        let mut text = format!("{}; {} of {} requests failed", seen.text, grouped(failed), grouped(requests));
        if legacy_off > TOLERANCE {
            text += &format!("; legacy's shares were off by {}", points(legacy_off));
        }
        let met = seen.met && failed == 0 && requests > 0 && legacy_off <= TOLERANCE;
        Ok(Verdict { what: step.title(), stated: step.promise(), seen: text, met })
    }

    async fn steady(&self) -> Result<Seen> {
        let start = self.traffic.now();
        sleep(Duration::from_secs(8)).await;
        let off = self.deviation(WEB, start);
        Ok(Seen { text: format!("worst share off by {}", points(off)), met: off <= TOLERANCE })
    }

    async fn change_weight(&self) -> Result<Seen> {
        let old = self.expected();
        self.model().change("web-1", |node| node.weight = 4);
        let start = self.traffic.now();
        let model = self.model().clone();
        self.world.configure_host_a(&model)?;
        Ok(self.takes_effect(&old, start, Step::Weight.limit()).await)
    }

    async fn kill_node(&self) -> Result<Seen> {
        let address = {
            let mut model = self.model();
            model.change("web-2", |node| node.state = State::Down);
            model.nodes.iter().find(|node| node.name == "web-2").map(|node| node.address.to_string())
        };
        let address = address.unwrap_or_default();
        let start = self.traffic.now();
        let before = self.traffic.tries(|tries| tries.failed(&address));
        self.world.server("web-2")?.kill().await?;
        let settled = self.settle(start, Step::Kill.limit()).await;
        let (tries, last) = self.traffic.tries(|tries| (tries.failed(&address) - before, tries.last(&address)));
        let last = last.map_or(Duration::ZERO, |last| last.saturating_sub(start));
        // Until then, its requests went to the candidates behind it, whatever their weights.
        let off = self.deviation(WEB, start + last);
        let text = format!(
            "last tried after {} ({} tries repeated elsewhere), then worst share off by {}",
            seconds(last),
            grouped(tries),
            points(off)
        );
        Ok(Seen { text, met: settled && last <= Step::Kill.limit() && off <= TOLERANCE })
    }

    async fn recover_node(&self) -> Result<Seen> {
        let old = self.expected();
        self.model().change("web-2", |node| node.state = State::Serving);
        let start = self.traffic.now();
        self.world.server("web-2")?.start().await?;
        Ok(self.takes_effect(&old, start, Step::Recover.limit()).await)
    }

    async fn drain(&self) -> Result<Seen> {
        let old = self.expected();
        self.model().change("web-3", |node| node.state = State::Drained);
        let start = self.traffic.now();
        self.world.agent_b.process().signal(Signal::TERM)?;
        let seen = self.takes_effect(&old, start, Step::Drain.limit()).await;
        self.world.agent_b.process().wait(Duration::from_secs(20)).await?;
        self.world.server("web-3")?.terminate().await?;
        Ok(seen)
    }

    async fn bring_back(&self) -> Result<Seen> {
        let old = self.expected();
        self.world.server("web-3")?.start().await?;
        self.model().change("web-3", |node| node.state = State::Serving);
        let start = self.traffic.now();
        self.world.agent_b.restart().await?;
        Ok(self.takes_effect(&old, start, Step::Return.limit()).await)
    }

    async fn restart_agent(&self) -> Result<Seen> {
        let before = self.world.registrations().await?;
        let start = self.traffic.now();
        self.world.agent_a.kill().await?;
        // Long enough for requests to be answered without it.
        sleep(Duration::from_secs(1)).await;
        let started = self.traffic.now();
        self.world.agent_a.restart().await?;
        let ready = self.traffic.now() - started;
        self.world.wait_streams().await?;
        let streams = self.traffic.now() - started;
        sleep(AFTERWARDS).await;
        let kept = self.world.registrations().await? == before;
        let off = self.deviation(WEB, start);
        let text = format!(
            "agent ready after {}, streams back after {}, registrations {}, worst share off by {}",
            seconds(ready),
            seconds(streams),
            if kept { "never gone" } else { "LOST" },
            points(off)
        );
        Ok(Seen { text, met: kept && streams <= Step::AgentRestart.limit() && off <= TOLERANCE })
    }

    async fn stop_etcd(&self) -> Result<Seen> {
        let old = self.expected();
        let start = self.traffic.now();
        self.world.etcd.kill().await?;
        let mut next = self.model().clone();
        next.change("web-1", |node| node.weight = 1);
        self.world.configure_host_a(&next)?;
        sleep(OUTAGE.saturating_sub(self.traffic.now() - start)).await;
        let off = self.deviation(WEB, start);
        *self.model() = next;
        let back = self.traffic.now();
        self.world.etcd.restart().await?;
        let seen = self.takes_effect(&old, back, Step::EtcdDown.limit()).await;
        let text = format!("without etcd worst share off by {}; the new weight {}", points(off), seen.text);
        Ok(Seen { text, met: seen.met && off <= TOLERANCE })
    }

    async fn set_policy(&self) -> Result<Seen> {
        let key = format!("/waypost/policies/{WEB}");
        let mut seen = Vec::new();
        for even in [true, false] {
            let old = self.expected();
            self.model().even = even;
            let start = self.traffic.now();
            match even {
                true => _ = self.world.etcd.put(&key, r#"{"strategy": "round-robin"}"#).await?,
                false => self.world.etcd.delete(&key).await?,
            }
            seen.push(self.takes_effect(&old, start, Step::Policy.limit()).await);
        }
        let text = seen.iter().map(|seen| seen.text.as_str()).collect::<Vec<_>>().join("; taken out: ");
        Ok(Seen { text, met: seen.iter().all(|seen| seen.met) })
    }

    /// Waits until `web`'s shares are what the model expects, and tells when they went over from `old`.
    async fn takes_effect(&self, old: &Shares, start: Duration, limit: Duration) -> Seen {
        let settled = self.settle(start, limit).await;
        let new = self.expected();
        let after = self.traffic.read(WEB, |series| series.switched_at(start, old, &new)) - start;
        let off = self.deviation(WEB, start + after);
        let text = format!("after {}, then worst share off by {}", seconds(after), points(off));
        Seen { text, met: settled && after <= limit && off <= TOLERANCE }
    }

    /// Waits until `web`'s shares of late are what the model expects; false when that takes much longer than `limit`.
    async fn settle(&self, start: Duration, limit: Duration) -> bool {
        let expected = self.expected();
        loop {
            let now = self.traffic.now();
            let off = || self.traffic.read(WEB, |series| series.deviation(now - SETTLED_OVER, &expected)).0;
            if now >= start + SETTLED_OVER && off() <= TOLERANCE {
                return true;
            }
            if now > start + limit + 3 * SETTLED_OVER {
                return false;
            }
            sleep(POLL).await;
        }
    }

    /// How far a service's worst share after `from` is from what the model expects.
    fn deviation(&self, service: &str, from: Duration) -> f64 {
        let expected = self.model().expected(service);
        self.traffic.read(service, |series| series.deviation(from, &expected)).0
    }

    fn expected(&self) -> Shares {
        self.model().expected(WEB)
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
