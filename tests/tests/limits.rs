//! What policies bound: the load of a key's node, a node that fails more than the others, a zone's callers.
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use waypost_tests::world::SERVICE;
use waypost_tests::{EnvoyOptions, Fleet, Load, Member, Scene, Upstream, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_more_than_the_others_is_ejected_by_its_success_rate() -> Result<()> {
    let scene = Scene::new()?;
    let members = Member::all(["a", "b", "c", "d", "e", "f"]);
    let fleet = Fleet::start(&scene, &members, EnvoyOptions::new(&[SERVICE])).await?;
    fleet
        .set_policy(json!({
            "ejection": {
                "consecutive_failures": 0, "interval": "1s", "base_time": "60s", "max_share": 20,
                "success_rate": { "min_nodes": 5, "min_requests": 10, "stdev_factor": 1.5 }
            }
        }))
        .await?;
    fleet.node("a")?.set_status(503);
    let load = Load::start(fleet.load().rate(300.0));
    eventually(DEADLINE, "a to be ejected", || async {
        let known = fleet.outcomes("a").await?;
        ensure!(known["ejected_by"] == 1, "{known}");
        Ok(())
    })
    .await?;
    load.stop().await?;
    let report = Load::run(fleet.load().total(300)).await?;
    report.ensure_no_failure()?;
    ensure!(report.count("a") == 0, "{:?}", report.nodes);
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_overflows_to_other_nodes_once_its_own_has_more_than_the_bound() -> Result<()> {
    let scene = Scene::new()?;
    let names = ["a", "b", "c", "d"];
    let fleet = Fleet::start(&scene, &Member::all(names), EnvoyOptions::new(&[SERVICE])).await?;
    for name in names {
        fleet.node(name)?.set_delay(Duration::from_millis(20));
    }
    let hash = |bound: serde_json::Value| json!({ "strategy": { "name": "consistent-hash", "key": "path", "bounded_load": bound } });
    let plan = fleet.load().connections(16).total(600);
    fleet.set_policy(json!({ "strategy": { "name": "consistent-hash", "key": "path" } })).await?;
    // The table is built between requests: until it is there, keys go by weight alone, and load is not bounded.
    eventually(DEADLINE, "the key to have one node", || async {
        let report = Load::run(plan.clone()).await?;
        report.ensure_no_failure()?;
        ensure!(report.nodes.len() == 1, "{:?}", report.nodes);
        Ok(())
    })
    .await?;
    // Of 16 under way, a quarter of the nodes may have 1.25 x 4.
    fleet.set_policy(hash(json!(1.25))).await?;
    eventually(DEADLINE, "no node to have much more than its share", || async {
        let report = Load::run(plan.clone()).await?;
        report.ensure_no_failure()?;
        let most = names.iter().map(|name| report.share(name)).fold(0.0, f64::max);
        ensure!(report.nodes.len() == 4 && most < 0.40, "{:?}", report.nodes);
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_with_more_callers_than_nodes_sends_the_rest_elsewhere() -> Result<()> {
    let scene = Scene::new()?;
    let member = |name: &str| Member::new(name).zone(if name == "a" { "z1" } else { "z2" });
    let options = EnvoyOptions::new(&[SERVICE]);
    let fleet = Fleet::start_with(&scene, &["a", "b"].map(member), options, |config| config.zone("z1")).await?;
    // Three quarters of the callers are in z1, which has half of the nodes: a third of its requests go to z2.
    let caller = Upstream::start("caller").await?;
    for (name, zone) in [("1", "z1"), ("2", "z1"), ("3", "z1"), ("4", "z2")] {
        let port = caller.address().port();
        let value = format!(r#"{{"address":"127.0.1.{name}","port":{port},"zone":"{zone}"}}"#);
        fleet.etcd.put(&format!("/waypost/services/front/{name}"), value).await?;
    }
    fleet.set_policy(json!({ "locality": { "callers": "front", "min_nodes": 1 } })).await?;
    eventually(DEADLINE, "shares of two thirds and one third", || async {
        let report = Load::run(fleet.load().total(3_000)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&[("a", 2), ("b", 1)], 0.035)
    })
    .await?;
    scene.close()
}
