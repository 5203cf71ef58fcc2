//! What a request costs Envoy: native EDS weighted round robin, a stock no-op filter before it, and Waypost in both
//! modes. One binary, one CPU, short interleaved runs, and medians of the ratios within each round.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Process, Scene, ServiceConfig, Upstream, eventually,
    http, ports, tools,
};

use crate::{
    Effort, cpu,
    table::{self, median, quantile},
};

const SERVICE: &str = "web";
const CONNECTIONS: usize = 8;
/// Envoy has this one to itself; everything else runs on the other.
const ENVOY_CPU: usize = 0;
const OTHER_CPU: usize = 1;

/// One Envoy of the comparison.
struct Variant {
    name: &'static str,
    listen: SocketAddr,
    pid: u32,
    /// CPU per request in each round, in microseconds.
    cost: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

pub async fn run(effort: Effort) -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let mut config = AgentConfig::new("host", &etcd.endpoints());
    let mut upstreams = Vec::new();
    for weight in 1..=3 {
        let name = format!("n{weight}");
        let upstream = Upstream::start(&name).await?;
        config = config.service(ServiceConfig::new(SERVICE, &name, upstream.address()).weight(weight));
        upstreams.push(upstream);
    }
    let agent = Agent::start(&scene, &config).await?;
    let override_host = Envoy::start(&scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    let original_dst = EnvoyOptions { name: "envoy-original-dst".into(), ..EnvoyOptions::new(&[SERVICE]) };
    let original_dst = Envoy::start(&scene, &agent, &original_dst.mode("original_dst")).await?;
    let (native, native_listen) = plain(&scene, "native", &upstreams, None).await?;
    let (noop, noop_listen) = plain(&scene, "noop", &upstreams, Some(&tools::noop_wasm()?)).await?;

    let variant = |name, listen, process: &Process| -> Result<Variant> {
        let pid = process.pid().with_context(|| format!("{name} does not run"))?;
        cpu::pin(pid, ENVOY_CPU)?;
        Ok(Variant { name, listen, pid, cost: Vec::new(), p50: Vec::new(), p99: Vec::new() })
    };
    let mut variants = [
        variant("native EDS, weighted round robin", native_listen, &native)?,
        variant("native + stock no-op filter", noop_listen, &noop)?,
        variant("Waypost, override_host", override_host.listen(), override_host.process())?,
        variant("Waypost, original_dst", original_dst.listen(), original_dst.process())?,
    ];
    cpu::pin(std::process::id(), OTHER_CPU)?;
    cpu::pin(agent.process().pid().context("the agent does not run")?, OTHER_CPU)?;

    for variant in &variants {
        send(variant.listen, effort.requests).await?;
    }
    for round in 0..effort.rounds {
        for turn in 0..variants.len() {
            // Each round begins with another one, so that none always follows the same.
            let index = (round + turn) % variants.len();
            let variant = &mut variants[index];
            let before = cpu::nanoseconds(variant.pid)?;
            let report = send(variant.listen, effort.requests).await?;
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
                variant.name.to_owned(),
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

async fn send(target: SocketAddr, requests: u64) -> Result<waypost_tests::Report> {
    let report = Load::run(LoadPlan::new(target, SERVICE).connections(CONNECTIONS).total(requests)).await?;
    report.ensure_no_failure()?;
    Ok(report)
}

/// An Envoy without Waypost, its endpoints with their weights in a file.
async fn plain(
    scene: &Scene,
    name: &str,
    upstreams: &[Upstream],
    filter: Option<&Path>,
) -> Result<(Process, SocketAddr)> {
    let (listen, admin) = (ports::local()?, ports::local()?);
    let endpoints: String = upstreams
        .iter()
        .enumerate()
        .map(|(index, upstream)| {
            format!(
                "    - load_balancing_weight: {}\n      endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}\n",
                index + 1,
                upstream.address().ip(),
                upstream.address().port()
            )
        })
        .collect();
    let eds = scene.path().join(format!("{name}-eds.yaml"));
    let resource = "resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n";
    std::fs::write(&eds, format!("{resource}  cluster_name: {SERVICE}\n  endpoints:\n  - lb_endpoints:\n{endpoints}"))?;
    let filter = filter
        .map_or(String::new(), |wasm| include_str!("noop_filter.yaml").replace("PLUGIN", &wasm.display().to_string()));
    let bootstrap = include_str!("native.yaml")
        .replace("LISTEN_PORT", &listen.port().to_string())
        .replace("ADMIN_PORT", &admin.port().to_string())
        .replace("SERVICE", SERVICE)
        .replace("EDS_FILE", &eds.display().to_string())
        .replace("          # FILTER\n", &filter);
    let file = scene.path().join(format!("{name}.yaml"));
    std::fs::write(&file, bootstrap)?;
    let args = ["-c", &file.display().to_string(), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
    let process = scene.process(&format!("envoy-{name}"), tools::tool("envoy")?, args.map(str::to_owned));
    process.start()?;
    eventually(std::time::Duration::from_secs(30), format!("Envoy ({name}) to serve"), || async {
        process.ensure_running()?;
        http::get_text(admin, "/ready").await?;
        send(listen, 1).await.map(drop)
    })
    .await?;
    Ok((process, listen))
}
