//! In place of a service-governance component: services registered with ip, port and weight, their health reported and
//! their information updated; discovered into a local cache, with a full pull now and then; directories watched for
//! configuration; a lock that is renewed in the background.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;
use waypost_examples::PATIENCE;
use waypost_registry::{
    Format, HubOptions, Lock, NodeEvent, Registrar, RegistrarOptions, Registration, Registry, Shutdown, Strategy,
    catalog::Protocol,
};

/// What `Format::Waypost` reads, as far as it is used here.
#[derive(Serialize)]
struct Info {
    address: IpAddr,
    port: u16,
    weight: u32,
    health: &'static str,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let connector = waypost_examples::connector()?;

    // Register: tried in the background until etcd has it, and again whenever it is lost.
    let registrar = Registrar::start(connector.clone(), RegistrarOptions::default());
    let info = |ip: [u8; 4], health| Info { address: ip.into(), port: 8080, weight: 1, health };
    let one = registrar.register(Registration::json("/services/orders/1", &info([10, 0, 0, 5], "passing"))?);
    let two = registrar.register(Registration::json("/services/orders/2", &info([10, 0, 0, 6], "passing"))?);
    one.registered(PATIENCE).await?;
    two.registered(PATIENCE).await?;

    // Discover: a cache that follows etcd, pulled whole once a minute besides.
    let options = HubOptions { refresh: Some(Duration::from_secs(60)), ..HubOptions::default() };
    let registry = Registry::with_options(connector.clone(), options);
    let services = registry.discover("/services/", Format::Waypost, Protocol::Http1)?;
    services.ready(PATIENCE).await?;
    println!("orders has {} nodes", services.nodes("orders").len());

    // Report health, update info: the new value, under the same lease.
    let mut changes = services.subscribe();
    one.update_json(&info([10, 0, 0, 5], "critical"))?;
    while let Some(event) = changes.next().await {
        if let NodeEvent::Changed { service, new, .. } = event {
            println!("{service}: {} is {:?}", new.address, new.health);
            break;
        }
    }
    // A random healthy node.
    if let Some(node) = services.pick("orders", Strategy::Random) {
        println!("picked {}", node.address);
    }

    // Configuration: typed, and the last good value stays when a new one is bad.
    let mut client = registry.client().await?;
    client.put("/config/orders/limit", "100", None).await?;
    let limit = registry.config::<u32>("/config/orders/limit")?;
    limit.ready(PATIENCE).await?;
    let mut settings = limit.changes();
    client.put("/config/orders/limit", "many", None).await?;
    settings.wait_for(|setting| setting.error.is_some()).await?;
    println!("limit {}", limit.value().map_or(10, |limit| *limit));

    // A lock, renewed until it is released or lost.
    let lock = Lock::new(connector, "locks/orders/import", Duration::from_secs(10))?;
    let held = lock.acquire(PATIENCE).await?;
    println!("imports alone: {}", held.check().is_ok());
    held.release().await?;

    registry.shutdown().await;
    registrar.shutdown(Shutdown::Deregister).await;
    Ok(())
}
