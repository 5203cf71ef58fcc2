//! An agent in the world: what it is told to register, and the catalog that it publishes.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::TTL;
use crate::agent::{Agent, AgentConfig, ServiceConfig};
use crate::chaos::clock::WallClock;
use crate::chaos::history::{Log, SERVICES, Wanted, What};
use crate::http::{self, AbortOnDrop};
use crate::scene::Scene;

const CATALOG_INTERVAL: Duration = Duration::from_millis(100);

/// An agent, and what it is told to register.
pub struct Seat {
    /// Its process.
    pub agent: Agent,
    config: Mutex<AgentConfig>,
    _poll: AbortOnDrop<()>,
}

impl Seat {
    pub(super) async fn start(
        scene: &Scene,
        log: &Log,
        mut config: AgentConfig,
        clock: Option<&WallClock>,
        (number, services): (usize, usize),
    ) -> Result<Self> {
        let ip = [127, 0, 8, u8::try_from(number + 1)?];
        let name = config.node.clone();
        for service in 0..services {
            let address = SocketAddr::from((ip, 8_000 + u16::try_from(service)?));
            config = config.service(ServiceConfig::new(&format!("svc-{service}"), &name, address).ttl("3s"));
        }
        log.owner(&name, TTL);
        log.agent(&name);
        let agent = Agent::prepare_with(scene, &config, clock.map(WallClock::environment).unwrap_or_default())?;
        let poll = AbortOnDrop(tokio::spawn(poll(agent.admin(), name, log.clone())));
        intend(&config, log)?;
        agent.restart().await?;
        Ok(Self { agent, config: Mutex::new(config), _poll: poll })
    }

    pub(super) fn config(&self) -> MutexGuard<'_, AgentConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name in the history.
    pub fn name(&self) -> String {
        self.config().node.clone()
    }

    /// The key of one of its services.
    pub fn key(&self, service: usize) -> Result<String> {
        let config = self.config();
        Ok(key(config.services.get(service).with_context(|| format!("no service {service}"))?))
    }
}

fn key(service: &ServiceConfig) -> String {
    format!("{SERVICES}{}/{}", service.name, service.instance)
}

pub(super) fn intend(config: &AgentConfig, log: &Log) -> Result<()> {
    for service in &config.services {
        let address = SocketAddr::new(service.address.parse()?, service.port);
        let wanted = Wanted::Node { address, weight: service.weight };
        log.add(What::Intended { owner: config.node.clone(), key: key(service), wanted });
    }
    Ok(())
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
