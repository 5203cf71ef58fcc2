//! In place of biregister: members of a group under one prefix, each with a name taken from etcd's revision, all of them
//! watched, the oldest of them the leader.

use waypost_examples::PATIENCE;
use waypost_registry::{IfHeld, KeyEvent, Registrar, RegistrarOptions, Registration, Registry, Shutdown};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let connector = waypost_examples::connector()?;
    let registrar = Registrar::start(connector.clone(), RegistrarOptions::default());

    // NewRegister: no name is given, so that the revision names it. NewRegisterWithName: an error if the name is taken.
    let first = registrar.register(Registration::numbered("/members", "10.0.0.5"));
    let my_key = first.registered(PATIENCE).await?;
    let named = Registration::new("/members/standby", "10.0.0.6").if_held(IfHeld::Fail);
    let second = registrar.register(named);
    second.registered(PATIENCE).await?;

    // NewWatcher. Changes: everything first, then each change in order.
    let registry = Registry::new(connector);
    let members = registry.keys("/members/")?;
    members.ready(PATIENCE).await?;
    let mut changes = members.subscribe();

    // GetAll, GetNames, GetValues, GetValueByName.
    println!("{} members, named {}", members.len(), members.names().join(", "));
    println!("standby is {}", String::from_utf8_lossy(&members.value("standby").unwrap_or_default()));
    // GetLeader, AmIMaster.
    let i_lead = members.leader().is_some_and(|leader| leader.key == my_key);
    println!("I lead: {i_lead}");

    first.deregister().await?;
    while let Some(event) = changes.next().await {
        match event {
            KeyEvent::Resynchronised { entries, .. } => {
                println!("changes from {} members on", entries.len());
            }
            KeyEvent::Removed { old, .. } => {
                println!("{} went", members.name_of(&old));
                break;
            }
            other => println!("{other:?}"),
        }
    }
    println!("leader: {}", members.leader().map_or_else(String::new, |leader| members.name_of(&leader).to_owned()));

    // EtcdClient, Close, Closed.
    registry.client().await?.put("/elsewhere", "by the raw client", None).await?;
    registry.shutdown().await;
    members.closed().await;
    registrar.shutdown(Shutdown::Deregister).await;
    println!("closed");
    Ok(())
}
