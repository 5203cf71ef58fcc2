//! In place of an etcd registration and discovery with a gateway: services register under their name and renew their
//! lease; the gateway fetches the prefix, then follows it, and picks a node for each call. (Where the gateway is Envoy,
//! the Waypost agent and filter do this, and no program is needed.)

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use waypost_examples::PATIENCE;
use waypost_registry::{
    Discovery, Format, NodeEvent, Registrar, RegistrarOptions, Registration, RegistrationHandle, Registry, Shutdown,
    Strategy, catalog::Protocol,
};

/// A service that says its name to whoever connects, registered as long as the registrar lives.
async fn serve(registrar: &Registrar, name: &'static str) -> anyhow::Result<RegistrationHandle> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            // A caller who has gone needs no answer.
            let _ = caller.write_all(name.as_bytes()).await;
        }
    });
    let handle = registrar.register(Registration::new(format!("/services/users/{name}"), address.to_string()));
    handle.registered(PATIENCE).await?;
    Ok(handle)
}

/// A call through the gateway: one node, in turn.
async fn call(services: &Discovery) -> anyhow::Result<String> {
    let node = services.pick("users", Strategy::RoundRobin);
    let address: SocketAddr = node.ok_or_else(|| anyhow::anyhow!("users has no healthy node"))?.address;
    let mut answer = String::new();
    TcpStream::connect(address).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// How many of six calls each node answers.
async fn six_calls(services: &Discovery) -> anyhow::Result<String> {
    let mut answers = BTreeMap::<String, u32>::new();
    for _ in 0..6 {
        *answers.entry(call(services).await?).or_default() += 1;
    }
    Ok(answers.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", "))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let connector = waypost_examples::connector()?;
    let registrar = Registrar::start(connector.clone(), RegistrarOptions::default());
    let first = serve(&registrar, "users-1").await?;
    serve(&registrar, "users-2").await?;

    // The gateway; a service that wants to find another one does the same.
    let registry = Registry::new(connector);
    let services = registry.discover("/services/", Format::EndpointValue, Protocol::Http1)?;
    services.ready(PATIENCE).await?;
    println!("{}", six_calls(&services).await?);

    let mut changes = services.subscribe();
    first.deregister().await?;
    while let Some(event) = changes.next().await {
        if let NodeEvent::Removed { service, node } = event {
            println!("{service}: {} went", node.id);
            break;
        }
    }
    serve(&registrar, "users-3").await?;
    while let Some(event) = changes.next().await {
        if let NodeEvent::Added { service, node } = event {
            println!("{service}: {} came", node.id);
            break;
        }
    }
    println!("{}", six_calls(&services).await?);

    registry.shutdown().await;
    registrar.shutdown(Shutdown::Deregister).await;
    Ok(())
}
