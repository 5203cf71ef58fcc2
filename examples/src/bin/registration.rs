//! In place of an etcd registration library for Go programs: registered at start under `prefix/ip/pid` with the address
//! found automatically, gone when the program ends, and within the TTL when it crashes. It outlives the restart of one
//! etcd member and of all of them.

use waypost_examples::PATIENCE;
use waypost_registry::{
    KeyFields, KeyTemplate, Registrar, RegistrarOptions, Registration, Shutdown, address::AddressSource,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Start: the lease lasts 5 s unless it is renewed, which the registrar does.
    let registrar = Registrar::start(waypost_examples::connector()?, RegistrarOptions::default());
    // "auto", an address, "interface:eth0" or "cidr:10.0.0.0/8".
    let source: AddressSource = std::env::var("ADDRESS").as_deref().unwrap_or("auto").parse()?;
    let template: KeyTemplate = "/services/orders/{ip}/{pid}".parse()?;
    let key = template.fill(&KeyFields::local().address(&source)?)?;
    let handle = registrar.register(Registration::new(key, "any text"));
    println!("registered {}", handle.registered(PATIENCE).await?);

    // Here the program serves; whoever wants to know how the registration stands watches its state.
    let state = handle.state();
    println!("it is {}", *state.borrow());

    // Stop.
    registrar.shutdown(Shutdown::Deregister).await;
    println!("stopped: it is {}", *state.borrow());
    Ok(())
}
