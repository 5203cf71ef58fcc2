//! The world that faults are done to: etcd, a fault proxy before each member for each of its clients, agents, and users
//! of the library. What is done to it is said in the history at the same time.
mod deeds;
mod seat;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use waypost_registry::{Connector, HubOptions, Registry};

pub use self::seat::Seat;
use crate::agent::AgentConfig;
use crate::chaos::access::{Access, Security};
use crate::chaos::checker::{Rule, Verdict, check};
use crate::chaos::clock::WallClock;
use crate::chaos::history::{Log, What};
use crate::chaos::recorder::Recorder;
use crate::chaos::users::{Keys, Observer, REGISTRAR};
use crate::etcd::Etcd;
use crate::fault_proxy::FaultProxy;
use crate::scene::Scene;
use crate::world::entry;

/// Time to live of everything that is registered.
pub const TTL: Duration = Duration::from_secs(3);
/// Within this everything has come to rest after the last fault: a link that is half-open is noticed after 12 s.
const SETTLE: Duration = Duration::from_secs(45);

/// So many breaches are shown; the others are in the history.
const BREACHES: usize = 12;
/// Messages of etcd that wait for a subscriber: few, so that a slow one falls behind.
const QUEUE: usize = 8;
/// More than services are kept here.
const SERVICES_AND_MORE: &str = "/waypost/";

/// How large a world is, and how it is secured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Members of etcd.
    pub members: usize,
    /// Agents.
    pub agents: usize,
    /// Services of each of them.
    pub services: usize,
    /// Keys kept through the library.
    pub keys: usize,
    /// How long the slow one among the mirrors' consumers takes for each event.
    pub pace: Duration,
    /// What etcd asks for.
    pub security: Security,
    /// Whether the agents' wall clock can be stepped.
    pub stepped: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let pace = Duration::from_millis(20);
        Self { members: 1, agents: 2, services: 3, keys: 20, pace, security: Security::Open, stepped: false }
    }
}

/// The world.
pub struct World {
    /// What happened.
    pub log: Log,
    /// etcd itself.
    pub etcd: Arc<Etcd>,
    /// Agents, in order.
    pub agents: Vec<Seat>,
    /// Keys kept through the library.
    pub keys: Keys,
    /// What it was made from.
    pub plan: Plan,
    observers: Vec<Observer>,
    recorder: Recorder,
    links: Vec<Link>,
    marker: AtomicU16,
    access: Access,
    clock: Option<WallClock>,
    /// What the users of the library connect with.
    connector: Connector,
    scene: Scene,
}

/// One client's ways to every member.
struct Link {
    owner: String,
    proxies: Vec<FaultProxy>,
}

impl World {
    /// Starts everything, and waits until it is at rest.
    pub async fn start(scene: Scene, plan: Plan) -> Result<Self> {
        let log = Log::default();
        let access = Access::new(&scene, plan.security)?;
        let etcd = Arc::new(access.start_etcd(&scene, plan.members).await?);
        let recorder = Recorder::start(etcd.clone(), log.clone());
        log.add(What::Answering { answering: true });
        let clock = plan.stepped.then(|| WallClock::new(&scene)).transpose()?;
        let mut links = Vec::new();
        let mut agents = Vec::new();
        for number in 0..plan.agents {
            let name = format!("host-{number}");
            let link = Link::start(&etcd, &name).await?;
            let config = AgentConfig::new(&name, &[]).guard(0.5, "2s");
            let config = AgentConfig { etcd: access.agents(link.endpoints(&access)), ..config };
            agents.push(Seat::start(&scene, &log, config, clock.as_ref(), (number, plan.services)).await?);
            links.push(link);
        }
        let link = Link::start(&etcd, REGISTRAR).await?;
        let connector = Connector::new(access.users(link.endpoints(&access))?)?;
        links.push(link);
        let registry = Registry::with_options(connector.clone(), HubOptions { queue: QUEUE, ..HubOptions::default() });
        let mirror = |name, prefix, pace| Observer::mirror(connector.clone(), log.clone(), name, prefix, pace);
        let subscriber = |name, prefix, pace| Observer::subscriber(&registry, log.clone(), name, prefix, pace);
        let observers = vec![
            mirror("mirror of services", SERVICES_AND_MORE, Duration::ZERO),
            mirror("slow mirror", "/", plan.pace),
            subscriber("subscriber", "/app/", Duration::ZERO)?,
            subscriber("slow subscriber", "/app/", plan.pace)?,
            subscriber("subscriber of all", "/", Duration::ZERO)?,
        ];
        let keys = Keys::start(connector.clone(), log.clone(), plan.keys, TTL);
        let marker = AtomicU16::new(1);
        let world =
            Self { log, etcd, agents, keys, plan, observers, recorder, links, marker, access, clock, connector, scene };
        world.bystanders().await?;
        let verdict = world.settle().await?;
        if verdict.violations.is_empty() { Ok(world) } else { Err(world.kept(&verdict)?) }
    }

    /// Waits until all is as it should be, and everybody has been told the very last of it; the verdict if it never is.
    pub async fn settle(&self) -> Result<Verdict> {
        // A change after the last fault, which every mirror and catalog has to take in: a deaf watch is not at rest.
        let port = self.marker.fetch_add(1, Ordering::Relaxed);
        let (key, value) = entry("marker", "m", SocketAddr::from(([127, 0, 9, 9], port)), 1);
        self.put(&key, &value).await?;
        self.put("/app/marker", &port.to_string()).await?;
        let since = Instant::now();
        loop {
            let history = self.log.history();
            let verdict = check(&history);
            let end = history.records.last().map_or(Duration::ZERO, |record| record.at);
            // Some breaches only say that it is not over yet; one that is as old as this stays.
            let final_one = verdict.violations.iter().any(|violation| {
                matches!(violation.rule, Rule::Registered | Rule::Outlived | Rule::Touched) && violation.at < end
            });
            if verdict.violations.is_empty() || final_one || since.elapsed() > SETTLE {
                return Ok(verdict);
            }
            for seat in &self.agents {
                // Frozen or killed on purpose, it does not run, and says so in the history.
                if seat.agent.process().pid().is_some() {
                    seat.agent.ensure_running()?;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Settles, judges, and ends everything; with a breach the history is kept, and named in the error.
    pub async fn finish(self) -> Result<Verdict> {
        let verdict = self.settle().await?;
        if !verdict.violations.is_empty() {
            return Err(self.kept(&verdict)?);
        }
        let Self { scene, keys, observers, agents, .. } = self;
        keys.shutdown().await;
        drop((observers, agents));
        scene.close()?;
        Ok(verdict)
    }

    /// Keeps the history, and says what is wrong with it.
    fn kept(&self, verdict: &Verdict) -> Result<anyhow::Error> {
        let path = self.scene.path().join("history.jsonl");
        self.log.history().write(std::io::BufWriter::new(std::fs::File::create(&path)?))?;
        let count = verdict.violations.len();
        let said: Vec<String> = verdict.violations.iter().take(BREACHES).map(ToString::to_string).collect();
        Ok(anyhow!("{count} breaches; the history is {}\n{}", path.display(), said.join("\n")))
    }
}

impl Link {
    async fn start(etcd: &Etcd, owner: &str) -> Result<Self> {
        let mut proxies = Vec::new();
        for member in 0..etcd.endpoints().len() {
            proxies.push(FaultProxy::start(etcd.address(member)?).await?);
        }
        Ok(Self { owner: owner.to_owned(), proxies })
    }

    fn endpoints(&self, access: &Access) -> Vec<String> {
        self.proxies.iter().map(|proxy| format!("{}://{}", access.scheme(), proxy.address())).collect()
    }
}
