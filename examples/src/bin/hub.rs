//! In place of a service hub with strategies: one hub for the process, which never watches a service twice; endpoints
//! through a strategy that can be replaced, by as many threads as there are.

use std::{collections::BTreeMap, thread};

use waypost_examples::PATIENCE;
use waypost_registry::{
    Discovery, Format, Registrar, RegistrarOptions, Registration, Registry, Shutdown, Strategy, catalog::Protocol,
};

/// How often each endpoint is picked, by four threads at once.
fn picks(services: &Discovery, strategy: Strategy) -> BTreeMap<String, u32> {
    let pick = || (0..300).filter_map(|_| services.pick("cart", strategy)).map(|node| node.id.clone());
    let picked: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| pick().collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    picked.into_iter().fold(BTreeMap::new(), |mut counts, id| {
        *counts.entry(id).or_default() += 1;
        counts
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // GetServiceHub: made once, and cloned wherever it is wanted.
    let hub = Registry::new(waypost_examples::connector()?);

    // Register. The lease is kept alive, and asked for anew when etcd no longer knows it.
    let registrar = Registrar::start(hub.connector().clone(), RegistrarOptions::default());
    let value = |port: u16, weight: u32| format!(r#"{{"address":"10.0.0.5","port":{port},"weight":{weight}}}"#);
    let small = registrar.register(Registration::new("/hub/cart/small", value(8001, 1)));
    let large = registrar.register(Registration::new("/hub/cart/large", value(8002, 2)));
    small.registered(PATIENCE).await?;
    large.registered(PATIENCE).await?;
    println!("both under one lease: {}", registrar.lease().borrow().is_some());

    // GetServiceEndpoints. The second user shares the first one's watch.
    let services = hub.discover("/hub/", Format::Waypost, Protocol::Http1)?;
    let keys = hub.keys("/hub/")?;
    services.ready(PATIENCE).await?;
    keys.ready(PATIENCE).await?;
    println!("{} endpoints, {} keys", services.nodes("cart").len(), keys.len());

    // GetServiceEndpoint through a strategy: one of the code's, or one that a user has written.
    println!("round robin: {:?}", picks(&services, Strategy::RoundRobin));
    println!("weighted: {:?}", picks(&services, "weighted-round-robin".parse()?));

    // UnRegister, Close.
    small.deregister().await?;
    hub.shutdown().await;
    registrar.shutdown(Shutdown::Deregister).await;
    Ok(())
}
