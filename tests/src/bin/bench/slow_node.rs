//! How long requests take while one of ten nodes is ten times as slow as the others: by Envoy's own policies and by
//! Waypost's strategies, in short interleaved runs.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use waypost_tests::{Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Scene, ServiceConfig, Upstream};

use crate::{
    Effort, cpu,
    native::{self, LEAST_REQUEST, ROUND_ROBIN},
    table::{self, median},
};

const NODES: usize = 10;
const USUAL: Duration = Duration::from_millis(4);
const SLOW: Duration = Duration::from_millis(40);
const CONNECTIONS: usize = 16;
const OTHER_CPU: usize = 1;
/// Services of the same nodes, each with a policy of its own.
const POLICIES: [(&str, &str); 3] = [
    ("weighted-round-robin", "{}"),
    ("least-request", r#"{"strategy":"least-request"}"#),
    ("peak-ewma", r#"{"strategy":"peak-ewma"}"#),
];

struct Variant {
    name: String,
    listen: SocketAddr,
    host: &'static str,
    p50: Vec<f64>,
    p99: Vec<f64>,
    mean: Vec<f64>,
    slow: Vec<f64>,
}

pub async fn run(effort: Effort) -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let mut config = AgentConfig::new("host", &etcd.endpoints());
    let mut upstreams = Vec::new();
    for node in 0..NODES {
        let name = format!("n{node}");
        let upstream = Upstream::start(&name).await?;
        upstream.set_delay(if node == 0 { SLOW } else { USUAL });
        for (service, _) in POLICIES {
            let instance = format!("{service}-{name}");
            config = config.service(ServiceConfig::new(service, &instance, upstream.address()).weight(1));
        }
        upstreams.push(upstream);
    }
    for (service, policy) in POLICIES {
        etcd.put(&format!("/waypost/policies/{service}"), policy).await?;
    }
    let agent = Agent::start(&scene, &config).await?;
    let services = POLICIES.map(|(service, _)| service);
    let waypost = Envoy::start(&scene, &agent, &EnvoyOptions::new(&services)).await?;
    let weighted: Vec<_> = upstreams.iter().map(|upstream| (upstream, 1)).collect();
    let natives = [ROUND_ROBIN, LEAST_REQUEST];
    let (native, native_listen) = native::start(&scene, "native", &natives, &weighted, None).await?;
    for process in [waypost.process(), &native] {
        cpu::pin(process.pid().context("Envoy does not run")?, 0)?;
    }
    cpu::pin(std::process::id(), OTHER_CPU)?;

    let variant = |name: String, listen, host| {
        let [p50, p99, mean, slow] = [const { Vec::new() }; 4];
        Variant { name, listen, host, p50, p99, mean, slow }
    };
    let mut variants: Vec<_> = natives
        .iter()
        .map(|policy| variant(format!("Envoy's {}", policy.name.replace('-', " ")), native_listen, policy.name))
        .collect();
    variants.extend(services.map(|service| variant(service.replace('-', " "), waypost.listen(), service)));
    let requests = effort.requests / 2;
    for round in 0..=effort.rounds.div_ceil(3) {
        for variant in &mut variants {
            let plan = LoadPlan::new(variant.listen, variant.host).connections(CONNECTIONS).total(requests);
            let report = Load::run(plan).await?;
            report.ensure_no_failure()?;
            // The first round is for getting acquainted.
            if round == 0 {
                continue;
            }
            let mean = report.latencies.iter().sum::<Duration>().as_secs_f64() / report.latencies.len() as f64;
            variant.p50.push(report.percentile(0.5).as_secs_f64() * 1e3);
            variant.p99.push(report.percentile(0.99).as_secs_f64() * 1e3);
            variant.mean.push(mean * 1e3);
            variant.slow.push(report.share("n0") * 100.0);
        }
    }
    let rows: Vec<Vec<String>> = variants
        .iter()
        .map(|variant| {
            vec![
                variant.name.clone(),
                format!("{:.1} ms", median(&variant.p50)),
                format!("{:.1} ms", median(&variant.mean)),
                format!("{:.1} ms", median(&variant.p99)),
                format!("{:.1} %", median(&variant.slow)),
            ]
        })
        .collect();
    table::print(
        &format!(
            "{NODES} nodes that take {USUAL:?}, one of them {SLOW:?}; {CONNECTIONS} requests at a time, {requests} in a run"
        ),
        &["", "p50", "mean", "p99", "to the slow node"],
        &rows,
    );
    scene.close()
}
