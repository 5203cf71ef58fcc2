//! What a request costs Envoy: with its own policies, with a stock no-op filter before them, and with Waypost, by module,
//! mode and strategy. One binary, one CPU, short interleaved runs, and medians of the ratios within each round.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Process, Scene, ServiceConfig, Upstream, tools,
};

use crate::{
    Effort, cpu,
    native::{self, LEAST_REQUEST, MAGLEV, RING_HASH, ROUND_ROBIN},
    table::{self, median, quantile},
};

/// Services of the same nodes, each with a policy of its own.
const POLICIES: [(&str, &str); 9] = [
    // The default: what becomes of requests is reported.
    ("weighted-round-robin", "{}"),
    ("unreported", r#"{"outcomes":false}"#),
    ("round-robin", r#"{"strategy":"round-robin"}"#),
    ("random", r#"{"strategy":"random"}"#),
    ("weighted-random", r#"{"strategy":"weighted-random"}"#),
    ("least-request", r#"{"strategy":"least-request"}"#),
    ("peak-ewma", r#"{"strategy":"peak-ewma"}"#),
    ("consistent-hash", r#"{"strategy":{"name":"consistent-hash","key":{"header":"x-key"}}}"#),
    ("sticky", r#"{"strategy":"least-request","ejection":{},"sticky":{"cookie":"node"}}"#),
];
const DEFAULT: &str = POLICIES[0].0;
const CONNECTIONS: usize = 8;
/// Envoy has this one to itself; everything else runs on the other.
const ENVOY_CPU: usize = 0;
const OTHER_CPU: usize = 1;

/// One way through an Envoy.
struct Variant {
    name: String,
    listen: SocketAddr,
    host: &'static str,
    pid: u32,
    /// CPU per request in each round, in microseconds.
    cost: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Variant {
    fn new(name: impl Into<String>, process: &Process, listen: SocketAddr, host: &'static str) -> Result<Self> {
        let name = name.into();
        let pid = process.pid().with_context(|| format!("{name} does not run"))?;
        cpu::pin(pid, ENVOY_CPU)?;
        Ok(Self { name, listen, host, pid, cost: Vec::new(), p50: Vec::new(), p99: Vec::new() })
    }
}

pub async fn run(effort: Effort) -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let mut config = AgentConfig::new("host", &etcd.endpoints());
    let mut upstreams = Vec::new();
    for weight in 1..=3 {
        let name = format!("n{weight}");
        let upstream = Upstream::start(&name).await?;
        for (service, _) in POLICIES {
            let instance = format!("{service}-{name}");
            config = config.service(ServiceConfig::new(service, &instance, upstream.address()).weight(weight));
        }
        upstreams.push(upstream);
    }
    for (service, policy) in POLICIES {
        etcd.put(&format!("/waypost/policies/{service}"), policy).await?;
    }
    let agent = Agent::start(&scene, &config).await?;
    let services = POLICIES.map(|(service, _)| service);
    let full = Envoy::start(&scene, &agent, &EnvoyOptions::new(&services)).await?;
    let lean_wasm = tools::lean_wasm()?;
    let lean = EnvoyOptions::new(&services).plugin(lean_wasm.clone()).name("envoy-lean");
    let lean = Envoy::start(&scene, &agent, &lean).await?;
    let original_dst = EnvoyOptions::new(&services).plugin(lean_wasm).name("envoy-original-dst").mode("original_dst");
    let original_dst = Envoy::start(&scene, &agent, &original_dst).await?;
    let weighted: Vec<_> = upstreams.iter().zip(1..).collect();
    let natives = [ROUND_ROBIN, LEAST_REQUEST, RING_HASH, MAGLEV];
    let (native, native_listen) = native::start(&scene, "native", &natives, &weighted, None).await?;
    let noop_wasm = tools::noop_wasm()?;
    let (noop, noop_listen) = native::start(&scene, "noop", &[ROUND_ROBIN], &weighted, Some(&noop_wasm)).await?;

    let mut variants = vec![
        Variant::new("Envoy's weighted round robin", &native, native_listen, ROUND_ROBIN.name)?,
        Variant::new("the same with a stock no-op filter", &noop, noop_listen, ROUND_ROBIN.name)?,
        Variant::new("Envoy's least request", &native, native_listen, LEAST_REQUEST.name)?,
        Variant::new("Envoy's ring hash", &native, native_listen, RING_HASH.name)?,
        Variant::new("Envoy's Maglev", &native, native_listen, MAGLEV.name)?,
        Variant::new("lean, weighted round robin", lean.process(), lean.listen(), DEFAULT)?,
        Variant::new("lean, original_dst", original_dst.process(), original_dst.listen(), DEFAULT)?,
        Variant::new("lean, consistent hash", lean.process(), lean.listen(), "consistent-hash")?,
    ];
    for (service, _) in POLICIES {
        let name = match service {
            "unreported" => "weighted round robin, not reported".to_owned(),
            "sticky" => "least request, ejection, sticky cookie".to_owned(),
            service => service.replace('-', " "),
        };
        variants.push(Variant::new(name, full.process(), full.listen(), service)?);
    }
    cpu::pin(std::process::id(), OTHER_CPU)?;
    cpu::pin(agent.process().pid().context("the agent does not run")?, OTHER_CPU)?;

    for variant in &variants {
        send(variant, effort.requests).await?;
    }
    for round in 0..effort.rounds {
        for turn in 0..variants.len() {
            // Each round begins with another one, so that none always follows the same.
            let index = (round + turn) % variants.len();
            let variant = &mut variants[index];
            let before = cpu::nanoseconds(variant.pid)?;
            let report = send(variant, effort.requests).await?;
            let spent = cpu::nanoseconds(variant.pid)? - before;
            variant.cost.push(spent as f64 / effort.requests as f64 / 1e3);
            variant.p50.push(report.percentile(0.5).as_secs_f64() * 1e6);
            variant.p99.push(report.percentile(0.99).as_secs_f64() * 1e6);
        }
    }

    let ratios = |variant: &Variant, to: &Variant| -> Vec<f64> {
        variant.cost.iter().zip(&to.cost).map(|(cost, base)| cost / base).collect()
    };
    let rows: Vec<Vec<String>> = variants
        .iter()
        .map(|variant| {
            let (to_native, to_noop) = (ratios(variant, &variants[0]), ratios(variant, &variants[1]));
            vec![
                variant.name.clone(),
                format!("{:.1} us", median(&variant.cost)),
                format!(
                    "{:.3} ({:.3} to {:.3})",
                    median(&to_native),
                    quantile(&to_native, 0.25),
                    quantile(&to_native, 0.75)
                ),
                format!("{:.3}", median(&to_noop)),
                format!("{:.0} us", median(&variant.p50)),
                format!("{:.0} us", median(&variant.p99)),
            ]
        })
        .collect();
    table::print(
        &format!(
            "A request through Envoy, one worker, {} rounds of {} requests (budget: at most the no-op filter, at most 1.15 x native)",
            effort.rounds, effort.requests
        ),
        &["", "CPU per request", "x native (middle half)", "x no-op", "p50", "p99"],
        &rows,
    );
    scene.close()
}

async fn send(variant: &Variant, requests: u64) -> Result<waypost_tests::Report> {
    let mut plan = LoadPlan::new(variant.listen, variant.host).connections(CONNECTIONS).total(requests);
    plan.headers = vec![("x-key".to_owned(), "somebody".to_owned())];
    let report = Load::run(plan).await?;
    report.ensure_no_failure()?;
    Ok(report)
}
