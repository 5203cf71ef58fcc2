//! Who gets how many requests.
use std::time::Duration;

use anyhow::{Result, ensure};
use waypost_tests::world::{SERVICE, WEIGHTS, World};
use waypost_tests::{EnvoyOptions, Load, Scene, eventually};

/// One percentage point of all requests.
const TOLERANCE: f64 = 0.01;
const REQUESTS: u64 = 6_000;
const DEADLINE: Duration = Duration::from_secs(30);

async fn shares_match_with(workers: usize) -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start_with(&scene, EnvoyOptions::new(&[SERVICE]).workers(workers)).await?;
    let before = world.envoy.picks().await?;
    let report = Load::run(world.load().connections(8 * workers).total(REQUESTS)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&WEIGHTS, TOLERANCE)?;
    assert_eq!(world.envoy.picks().await? - before, REQUESTS, "the filter picks for every request");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_match_the_weights_with_one_worker() -> Result<()> {
    shares_match_with(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_match_the_weights_with_four_workers() -> Result<()> {
    shares_match_with(4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_weight_shows_and_weight_zero_gets_no_request() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    for weights in [[("a", 4), ("b", 2), ("c", 2)], [("a", 0), ("b", 1), ("c", 3)], WEIGHTS] {
        let mut config = world.config.clone();
        for (service, (_, weight)) in config.services.iter_mut().zip(weights) {
            service.weight = weight;
        }
        world.agent.configure(&config)?;
        eventually(DEADLINE, format!("shares to be {weights:?}"), || async {
            let report = Load::run(world.load().total(REQUESTS)).await?;
            report.ensure_no_failure()?;
            report.ensure_shares(&weights, TOLERANCE)?;
            ensure!(weights[0].1 > 0 || report.count("a") == 0, "a node of weight 0 answered: {:?}", report.nodes);
            Ok(())
        })
        .await?;
    }
    scene.close()
}
