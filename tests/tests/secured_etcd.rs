//! An etcd that wants certificates, or a user and a password: the whole agent with each, and with both.
use std::time::Duration;

use anyhow::{Result, ensure};
use etcd_client::Permission;
use waypost_tests::world::{SERVICE, WEIGHTS, entry, registering, upstreams};
use waypost_tests::{
    Agent, AgentConfig, Authority, Envoy, EnvoyOptions, Etcd, EtcdOptions, Load, Scene, Upstream, eventually,
};

const DEADLINE: Duration = Duration::from_secs(30);
const USER: &str = "waypost";
const PASSWORD: &str = "s3cret";
const ROOT: &str = "/waypost/services/";

/// The user that the agent signs in as; it may do no more than the documentation says that it must.
async fn add_agents_user(etcd: &Etcd) -> Result<()> {
    etcd.enable_auth("root's own").await?;
    etcd.add_user(USER, PASSWORD, vec![Permission::read_write(ROOT).with_prefix()]).await
}

/// Registers three upstreams, has Envoy serve them and one of somebody else's, has the agent killed and started again,
/// and stopped.
async fn registers_mirrors_and_leaves(
    scene: &Scene,
    etcd: &Etcd,
    config: AgentConfig,
    nodes: &[Upstream],
) -> Result<()> {
    let agent = Agent::start(scene, &config).await?;
    let envoy = Envoy::start(scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    let foreign = Upstream::start("d").await?;
    let (key, value) = entry(SERVICE, "d", foreign.address(), 6);
    etcd.put(&key, value).await?;
    let addresses: Vec<_> = nodes.iter().chain([&foreign]).map(Upstream::address).collect();
    agent.wait_nodes(SERVICE, &addresses).await?;
    eventually(DEADLINE, "every node to have its share", || async {
        let report = Load::run(envoy.load(SERVICE).total(1_200)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&[("a", 1), ("b", 2), ("c", 3), ("d", 6)], 0.01)
    })
    .await?;

    let before = etcd.list(ROOT).await?;
    agent.kill().await?;
    agent.restart().await?;
    eventually(DEADLINE, "the agent to be in step with etcd again", || async {
        let synced = agent.metric("waypost_mirror_synced", &[]).await?;
        let registered = agent.metric("waypost_registrations", &[("state", "registered")]).await?;
        ensure!(synced == 1.0 && registered == WEIGHTS.len() as f64, "synced: {synced}, registered: {registered}");
        Ok(())
    })
    .await?;
    for (then, now) in before.iter().zip(etcd.list(ROOT).await?) {
        ensure!((then.lease, then.create_revision) == (now.lease, now.create_revision), "{then:?} became {now:?}");
    }
    ensure!(agent.terminate().await?.success());
    let left = etcd.list(ROOT).await?;
    ensure!(left.len() == 1 && left[0].key == key, "the agent deletes its own keys and no other: {left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_certificate_works_with_an_etcd_that_wants_one() -> Result<()> {
    let scene = Scene::new()?;
    let authority = Authority::new(&scene, "etcd-authority")?;
    let etcd = Etcd::start_with(&scene, EtcdOptions::members(1).tls(&authority)).await?;
    let nodes = upstreams().await?;
    let config = registering(&etcd.endpoints(), &nodes).tls(&authority, &authority.issue("agent")?);
    registers_mirrors_and_leaves(&scene, &etcd, config, &nodes).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_password_works_with_what_its_user_may_do() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    add_agents_user(&etcd).await?;
    let nodes = upstreams().await?;
    let file = scene.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n"))?;
    let config = registering(&etcd.endpoints(), &nodes).user(USER, &file);
    registers_mirrors_and_leaves(&scene, &etcd, config, &nodes).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_go_together() -> Result<()> {
    let scene = Scene::new()?;
    let authority = Authority::new(&scene, "etcd-authority")?;
    let etcd = Etcd::start_with(&scene, EtcdOptions::members(3).tls(&authority)).await?;
    add_agents_user(&etcd).await?;
    let nodes = upstreams().await?;
    let file = scene.path().join("password");
    std::fs::write(&file, PASSWORD)?;
    let config = registering(&etcd.endpoints(), &nodes).tls(&authority, &authority.issue("agent")?).user(USER, &file);
    registers_mirrors_and_leaves(&scene, &etcd, config, &nodes).await?;
    scene.close()
}
