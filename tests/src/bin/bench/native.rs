//! Envoy without Waypost: clusters with its own load balancing policies, their endpoints with their weights in a file.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;
use waypost_tests::{Load, LoadPlan, Process, Scene, Upstream, eventually, http, ports, tools};

/// A load balancing policy of Envoy's.
#[derive(Clone, Copy)]
pub struct NativePolicy {
    /// The cluster's name, and the host by which it is reached.
    pub name: &'static str,
    /// Its extension.
    policy: &'static str,
    /// The type of its configuration.
    message: &'static str,
    hashes: bool,
}

pub const ROUND_ROBIN: NativePolicy =
    NativePolicy { name: "round-robin", policy: "round_robin", message: "round_robin.v3.RoundRobin", hashes: false };
pub const LEAST_REQUEST: NativePolicy = NativePolicy {
    name: "least-request",
    policy: "least_request",
    message: "least_request.v3.LeastRequest",
    hashes: false,
};
pub const RING_HASH: NativePolicy =
    NativePolicy { name: "ring-hash", policy: "ring_hash", message: "ring_hash.v3.RingHash", hashes: true };
pub const MAGLEV: NativePolicy =
    NativePolicy { name: "maglev", policy: "maglev", message: "maglev.v3.Maglev", hashes: true };

/// A node, and its weight.
pub type Weighted<'a> = (&'a Upstream, u32);

/// Starts one with a cluster of these nodes for each policy, and a filter if there is to be one.
pub async fn start(
    scene: &Scene,
    name: &str,
    policies: &[NativePolicy],
    nodes: &[Weighted<'_>],
    filter: Option<&Path>,
) -> Result<(Process, SocketAddr)> {
    let (listen, admin) = (ports::local()?, ports::local()?);
    let endpoints: String = nodes
        .iter()
        .map(|(node, weight)| {
            let (ip, port) = (node.address().ip(), node.address().port());
            format!(
                "    - load_balancing_weight: {weight}\n      endpoint: {{address: {{socket_address: {{address: {ip}, \
                 port_value: {port}}}}}}}\n"
            )
        })
        .collect();
    let (mut hosts, mut clusters) = (String::new(), String::new());
    for policy in policies {
        let eds = scene.path().join(format!("{name}-{}-eds.yaml", policy.name));
        let resource = "resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n";
        let assignment =
            format!("{resource}  cluster_name: {}\n  endpoints:\n  - lb_endpoints:\n{endpoints}", policy.name);
        std::fs::write(&eds, assignment)?;
        let hash = if policy.hashes { "[{header: {header_name: x-key}}]" } else { "[]" };
        hosts += &include_str!("native_host.yaml").replace("SERVICE", policy.name).replace("HASH", hash);
        clusters += &include_str!("native_cluster.yaml")
            .replace("SERVICE", policy.name)
            .replace("EDS_FILE", &eds.display().to_string())
            .replace("POLICY", policy.policy)
            .replace("TYPE", policy.message);
    }
    let filter = filter
        .map_or(String::new(), |wasm| include_str!("noop_filter.yaml").replace("PLUGIN", &wasm.display().to_string()));
    let bootstrap = include_str!("native.yaml")
        .replace("LISTEN_PORT", &listen.port().to_string())
        .replace("ADMIN_PORT", &admin.port().to_string())
        .replace("            # HOSTS\n", &hosts)
        .replace("  # CLUSTERS\n", &clusters)
        .replace("          # FILTER\n", &filter);
    let file = scene.path().join(format!("{name}.yaml"));
    std::fs::write(&file, bootstrap)?;
    let args = ["-c", &file.display().to_string(), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"];
    let process = scene.process(&format!("envoy-{name}"), tools::tool("envoy")?, args.map(str::to_owned));
    process.start()?;
    eventually(Duration::from_secs(30), format!("Envoy ({name}) to serve"), || async {
        process.ensure_running()?;
        http::get_text(admin, "/ready").await?;
        for policy in policies {
            Load::run(LoadPlan::new(listen, policy.name).total(1)).await?.ensure_no_failure()?;
        }
        Ok(())
    })
    .await?;
    Ok((process, listen))
}
