//! The world that faults are done to: etcd, a fault proxy before each member for each of its clients, agents, and users
//! of the library. What is done to it is said in the history at the same time.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use waypost_registry::{ConnectOptions, Connector};

use crate::agent::{Agent, AgentConfig, ServiceConfig};
use crate::chaos::checker::{Rule, Verdict, check};
use crate::chaos::history::{Log, SERVICES, Wanted, What};
use crate::chaos::recorder::{self, Recorder};
use crate::chaos::users::{Keys, Observer, REGISTRAR};
use crate::etcd::Etcd;
use crate::fault_proxy::{Fault, FaultProxy};
use crate::http::{self, AbortOnDrop};
use crate::process::Signal;
use crate::scene::Scene;
use crate::world::entry;

/// Time to live of everything that is registered.
pub const TTL: Duration = Duration::from_secs(3);
/// Within this everything has come to rest after the last fault: a link that is half-open is noticed after 12 s.
const SETTLE: Duration = Duration::from_secs(45);
const CATALOG_INTERVAL: Duration = Duration::from_millis(100);
/// A request under way on a link that was broken is given up within this, a quarter of the time to live.
const GRACE: Duration = Duration::from_millis(750);

/// So many breaches are shown; the others are in the history.
const BREACHES: usize = 12;

/// How large a world is.
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
}

impl Default for Plan {
    fn default() -> Self {
        Self { members: 1, agents: 2, services: 3, keys: 20, pace: Duration::from_millis(20) }
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
    observers: Vec<Observer>,
    recorder: Recorder,
    links: Vec<Link>,
    marker: AtomicU16,
    scene: Scene,
}

/// An agent, and what it is told to register.
pub struct Seat {
    /// Its process.
    pub agent: Agent,
    config: AgentConfig,
    _poll: AbortOnDrop<()>,
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
        let etcd = Arc::new(Etcd::start_cluster(&scene, plan.members).await?);
        let recorder = Recorder::start(etcd.clone(), log.clone());
        log.add(What::Answering { answering: true });
        let mut links = Vec::new();
        let mut agents = Vec::new();
        for number in 0..plan.agents {
            let name = format!("host-{number}");
            let link = Link::start(&etcd, &name).await?;
            agents.push(Seat::start(&scene, &log, &name, &link, number, plan.services).await?);
            links.push(link);
        }
        let link = Link::start(&etcd, REGISTRAR).await?;
        let connector = link.connector()?;
        links.push(link);
        let observe = |name: &str, prefix, pace| Observer::start(connector.clone(), log.clone(), name, prefix, pace);
        let observers = vec![
            observe("mirror of services", "/waypost/", Duration::ZERO),
            observe("mirror of keys", "/app/", Duration::ZERO),
            observe("slow mirror", "/", plan.pace),
        ];
        let keys = Keys::start(connector, log.clone(), plan.keys, TTL);
        let marker = AtomicU16::new(1);
        let world = Self { log, etcd, agents, keys, observers, recorder, links, marker, scene };
        world.bystanders().await?;
        let verdict = world.settle().await?;
        if verdict.violations.is_empty() { Ok(world) } else { Err(world.kept(&verdict)?) }
    }

    /// Keys of others, on a lease of their own and on none, that nobody may touch.
    pub async fn bystanders(&self) -> Result<()> {
        let nodes: Vec<_> =
            (1..=5).map(|n| entry("legacy", &format!("l-{n}"), SocketAddr::from(([127, 0, 9, n], 80)), 1)).collect();
        self.put_many(&nodes).await?;
        let lease = self.etcd.grant(600).await?;
        self.announce("/app/foreign", Some("theirs"));
        self.etcd.put_with_lease("/app/foreign", "theirs", lease).await
    }

    /// Somebody else puts a key.
    pub async fn put(&self, key: &str, value: &str) -> Result<i64> {
        self.announce(key, Some(value));
        self.etcd.put(key, value).await
    }

    /// Somebody else puts many.
    pub async fn put_many(&self, entries: &[(String, String)]) -> Result<()> {
        for (key, value) in entries {
            self.announce(key, Some(value));
        }
        self.etcd.put_many(entries).await
    }

    /// Somebody else deletes a key.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.announce(key, None);
        self.etcd.delete(key).await
    }

    fn announce(&self, key: &str, value: Option<&str>) {
        self.log.add(What::Foreign { key: key.to_owned(), value: value.map(str::to_owned) });
    }

    /// Every member is killed.
    pub async fn stop_etcd(&self) -> Result<()> {
        self.log.note("every member of etcd is killed");
        self.log.add(What::Answering { answering: false });
        self.etcd.kill_all().await
    }

    /// Every member is started, and answers.
    pub async fn start_etcd(&self) -> Result<()> {
        self.etcd.start_all().await?;
        recorder::answers(&self.etcd).await?;
        self.log.note("every member of etcd runs again");
        self.log.add(What::Answering { answering: true });
        Ok(())
    }

    /// Every member is killed and loses its data.
    pub async fn wipe_etcd(&self) -> Result<()> {
        self.stop_etcd().await?;
        self.recorder.data_replaced();
        self.etcd.forget_all()?;
        self.log.note("etcd's data is wiped");
        self.start_etcd().await
    }

    /// A member is killed; the others go on once they have a leader.
    pub async fn kill_member(&self, index: usize) -> Result<()> {
        self.log.note(format!("member {index} is killed"));
        self.log.add(What::Answering { answering: false });
        self.etcd.kill_member(index).await?;
        recorder::answers(&self.etcd).await?;
        self.log.add(What::Answering { answering: true });
        Ok(())
    }

    /// A member runs again.
    pub async fn start_member(&self, index: usize) -> Result<()> {
        self.etcd.start_member(index).await?;
        self.log.note(format!("member {index} runs again"));
        Ok(())
    }

    /// Changes every link of one client: an agent's by its number, the library users' behind them.
    pub fn fault(&self, client: usize, fault: Fault) -> Result<()> {
        let link = self.links.get(client).with_context(|| format!("no client {client}"))?;
        self.log.note(format!("links of {}: {fault:?}", link.owner));
        let linked = matches!(fault, Fault::Pass | Fault::Delay(_) | Fault::Throttle(_));
        if !linked {
            self.log.add(What::Linked { owner: link.owner.clone(), linked, grace: Duration::ZERO });
        }
        for proxy in &link.proxies {
            proxy.set(fault);
        }
        if linked {
            self.log.add(What::Linked { owner: link.owner.clone(), linked, grace: GRACE });
        }
        Ok(())
    }

    /// Every connection of one client that is open now is half-open for good.
    pub fn half_open(&self, client: usize) -> Result<()> {
        let link = self.links.get(client).with_context(|| format!("no client {client}"))?;
        self.log.note(format!("open connections of {} are half-open", link.owner));
        for proxy in &link.proxies {
            proxy.half_open();
        }
        Ok(())
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.links.len()
    }

    fn seat(&self, index: usize) -> Result<&Seat> {
        self.agents.get(index).with_context(|| format!("no agent {index}"))
    }

    /// An agent is killed.
    pub async fn kill_agent(&self, index: usize) -> Result<()> {
        let seat = self.seat(index)?;
        seat.agent.kill().await?;
        self.alive(seat, false);
        Ok(())
    }

    /// An agent is started again.
    pub async fn start_agent(&self, index: usize) -> Result<()> {
        let seat = self.seat(index)?;
        seat.agent.restart().await?;
        self.alive(seat, true);
        Ok(())
    }

    /// An agent is frozen: it does nothing, and its connections stay open.
    pub fn freeze_agent(&self, index: usize) -> Result<()> {
        let seat = self.seat(index)?;
        seat.agent.process().signal(Signal::STOP)?;
        self.alive(seat, false);
        Ok(())
    }

    /// A frozen agent goes on.
    pub fn thaw_agent(&self, index: usize) -> Result<()> {
        let seat = self.seat(index)?;
        seat.agent.process().signal(Signal::CONT)?;
        self.alive(seat, true);
        Ok(())
    }

    fn alive(&self, seat: &Seat, alive: bool) {
        let owner = seat.config.node.clone();
        self.log.note(format!("{owner} {}", if alive { "runs" } else { "does not run" }));
        self.log.add(What::Alive { owner, alive });
    }

    /// Gives the first service of an agent another weight.
    pub fn reweigh(&mut self, index: usize, weight: u32) -> Result<()> {
        let seat = self.agents.get_mut(index).with_context(|| format!("no agent {index}"))?;
        if let Some(service) = seat.config.services.first_mut() {
            service.weight = weight;
        }
        seat.intend(&self.log)?;
        seat.agent.configure(&seat.config)
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

    fn endpoints(&self) -> Vec<String> {
        self.proxies.iter().map(|proxy| format!("http://{}", proxy.address())).collect()
    }

    fn connector(&self) -> Result<Connector> {
        Ok(Connector::new(ConnectOptions { endpoints: self.endpoints(), ..ConnectOptions::default() })?)
    }
}

impl Seat {
    async fn start(scene: &Scene, log: &Log, name: &str, link: &Link, number: usize, services: usize) -> Result<Self> {
        let ip = [127, 0, 8, u8::try_from(number + 1)?];
        let mut config = AgentConfig::new(name, &link.endpoints()).guard(0.5, "2s");
        for service in 0..services {
            let address = SocketAddr::from((ip, 8_000 + u16::try_from(service)?));
            config = config.service(ServiceConfig::new(&format!("svc-{service}"), name, address).ttl("3s"));
        }
        log.owner(name, TTL);
        log.agent(name);
        let agent = Agent::prepare(scene, &config)?;
        let poll = AbortOnDrop(tokio::spawn(poll(agent.admin(), name.to_owned(), log.clone())));
        let seat = Self { agent, config, _poll: poll };
        seat.intend(log)?;
        seat.agent.restart().await?;
        Ok(seat)
    }

    fn intend(&self, log: &Log) -> Result<()> {
        for service in &self.config.services {
            let address = SocketAddr::new(service.address.parse()?, service.port);
            let wanted = Wanted::Node { address, weight: service.weight };
            let key = format!("{SERVICES}{}/{}", service.name, service.instance);
            log.add(What::Intended { owner: self.config.node.clone(), key, wanted });
        }
        Ok(())
    }
}

/// Records an agent's catalog whenever it is another one.
async fn poll(admin: SocketAddr, agent: String, log: Log) {
    let mut last = None;
    loop {
        // It may be frozen, or down.
        let asked = tokio::time::timeout(Duration::from_secs(1), catalog(admin)).await;
        if let Ok(Ok(services)) = asked
            && last.as_ref() != Some(&services)
        {
            log.add(What::Catalog { agent: agent.clone(), services: services.clone() });
            last = Some(services);
        }
        tokio::time::sleep(CATALOG_INTERVAL).await;
    }
}

async fn catalog(admin: SocketAddr) -> Result<BTreeMap<String, Vec<SocketAddr>>> {
    let catalog: serde_json::Value = serde_json::from_str(&http::get_text(admin, "/catalog").await?)?;
    let services = catalog.get("services").and_then(serde_json::Value::as_object).context("no services")?;
    let mut found = BTreeMap::new();
    for (name, nodes) in services {
        let nodes = nodes.as_array().context("no nodes")?.iter();
        let addresses =
            nodes.map(|node| Ok(node.get("address").and_then(|a| a.as_str()).context("no address")?.parse()?));
        found.insert(name.clone(), addresses.collect::<Result<_>>()?);
    }
    ensure!(!found.is_empty(), "nothing is served yet");
    Ok(found)
}
