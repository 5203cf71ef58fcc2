//! What other frameworks keep in etcd is served as it is: keys and values here are those that they write.
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Report, Scene, Upstream, eventually,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until all requests succeed and exactly these nodes answer.
async fn served_by(plan: LoadPlan, expected: &[&str]) -> Result<Report> {
    eventually(DEADLINE, format!("{expected:?} to answer"), || async {
        let report: Report = Load::run(plan.clone().total(200)).await?;
        report.ensure_no_failure()?;
        let nodes: Vec<&str> = report.nodes.keys().map(String::as_str).collect();
        ensure!(nodes == expected, "{nodes:?} answer");
        Ok(report)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_other_frameworks_registered_are_served() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let config = [
        ("user.rpc/", "go-zero"),
        ("/microservices/", "kratos"),
        ("/micro/registry/", "go-micro"),
        ("grpc/", "grpc-naming"),
        ("kitex/registry-etcd/", "kitex"),
        ("hertz/registry-etcd/", "hertz"),
        ("/services/", "dubbo-app"),
        ("/dubbo/", "dubbo-interface"),
        ("/skydns/local/skydns/", "skydns"),
        ("/apisix/upstreams/", "apisix"),
        ("/shop/pairs/", "biregister"),
    ];
    let config = config.into_iter().fold(AgentConfig::new("host-a", &etcd.endpoints()), |config, (prefix, format)| {
        config.watch(prefix, format, "http1")
    });
    let agent = Agent::start(&scene, &config).await?;
    let node = Upstream::start("a").await?;
    let (address, ip, port) = (node.address(), node.address().ip(), node.address().port());
    let lease = etcd.grant(60).await?;
    let url = format!("tri%3A%2F%2F{ip}%3A{port}%2Forg.shop.Stock%3Fside%3Dprovider%26weight%3D100");
    let entries = [
        (format!("user.rpc/{lease}"), address.to_string()),
        (
            "/microservices/kratos/h1".to_owned(),
            json!({"id": "h1", "name": "kratos", "version": "v1", "metadata": {"weight": "100"},
                "endpoints": ["grpc://127.0.0.1:1?isSecure=false", format!("http://{address}")]})
            .to_string(),
        ),
        (
            "/micro/registry/greeter/greeter-1".to_owned(),
            json!({"name": "greeter", "version": "latest", "metadata": null, "endpoints": [],
                "nodes": [{"id": "greeter-1", "address": address, "metadata": {"protocol": "http"}}]})
            .to_string(),
        ),
        ("grpc/named/e1".to_owned(), json!({"Op": 0, "Addr": address, "Metadata": null}).to_string()),
        (
            format!("kitex/registry-etcd/kitex/{address}"),
            json!({"network": "tcp", "address": address, "weight": 10, "tags": {"zone": "a"}}).to_string(),
        ),
        (
            format!("hertz/registry-etcd/hertz/{address}"),
            json!({"network": "tcp", "address": address, "weight": 10, "tags": null}).to_string(),
        ),
        (
            format!("/services/user-app/{address}"),
            json!({"ID": address, "ServiceName": "user-app", "Host": ip, "Port": port, "Weight": 0, "Enable": true,
                "Healthy": true, "Metadata": {}, "ServiceMetadata": null, "Address": "", "GroupName": "", "Tag": ""})
            .to_string(),
        ),
        ("/dubbo/org.shop.Stock".to_owned(), String::new()),
        ("/dubbo/org.shop.Stock/providers".to_owned(), String::new()),
        (format!("/dubbo/org.shop.Stock/providers/{url}"), String::new()),
        (
            "/skydns/local/skydns/east/orders/1".to_owned(),
            json!({"host": ip, "port": port, "priority": 10, "weight": 100, "ttl": 30}).to_string(),
        ),
        ("/apisix/upstreams/".to_owned(), "init_dir".to_owned()),
        (
            "/apisix/upstreams/upstream".to_owned(),
            json!({"id": "upstream", "type": "roundrobin", "nodes": [
                {"host": ip, "port": port, "weight": 1, "priority": 0},
                {"host": "127.0.0.1", "port": 1, "weight": 0, "priority": 0},
                {"host": "127.0.0.1", "port": 2, "weight": 9, "priority": -1},
            ]})
            .to_string(),
        ),
        ("/shop/pairs/00000000000000000042".to_owned(), address.to_string()),
    ];
    for (key, value) in entries {
        etcd.put_with_lease(&key, value, lease).await?;
    }
    let services = [
        "user.rpc",
        "kratos",
        "greeter",
        "named",
        "kitex",
        "hertz",
        "user-app",
        "org.shop.Stock",
        "orders.east",
        "upstream",
        "pairs",
    ];
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&services)).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    for service in services {
        envoy.wait_picking(service).await?;
        served_by(envoy.load(service), &["a"]).await?;
    }
    ensure!(agent.metric("waypost_mirror_undecodable_total", &[]).await? == 0.0, "something could not be read");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_of_other_frameworks_are_kept_and_a_lease_that_ends_takes_the_node_along() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let config = AgentConfig::new("host-a", &etcd.endpoints()).watch("/microservices/", "kratos", "http1").watch(
        "kitex/registry-etcd/",
        "kitex",
        "http1",
    );
    let agent = Agent::start(&scene, &config).await?;
    let (light, heavy) = (Upstream::start("light").await?, Upstream::start("heavy").await?);
    let (stays, ends) = (etcd.grant(60).await?, etcd.grant(60).await?);
    // Neither says a weight where its framework's default is meant: 100 of Kratos, 10 of Kitex.
    for (node, metadata, lease) in [(&light, json!(null), ends), (&heavy, json!({"weight": "300"}), stays)] {
        let endpoint = format!("http://{}", node.address());
        let value = json!({"id": node.name(), "name": "shop", "metadata": metadata, "endpoints": [endpoint]});
        etcd.put_with_lease(&format!("/microservices/shop/{}", node.name()), value.to_string(), lease).await?;
    }
    for (node, weight, lease) in [(&light, 0, ends), (&heavy, 30, stays)] {
        let address = node.address();
        let value = json!({"network": "tcp", "address": address, "weight": weight, "tags": null});
        etcd.put_with_lease(&format!("kitex/registry-etcd/stock/{address}"), value.to_string(), lease).await?;
    }
    let services = ["shop", "stock"];
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&services)).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    for service in services {
        envoy.wait_picking(service).await?;
        let report = served_by(envoy.load(service), &["heavy", "light"]).await?;
        ensure!(report.nodes["heavy"] == 3 * report.nodes["light"], "{service}: {:?}", report.nodes);
    }
    etcd.revoke(ends).await?;
    for service in services {
        served_by(envoy.load(service), &["heavy"]).await?;
    }
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_watch_tells_formats_apart_and_finds_nodes_by_the_names_of_their_hosts() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let config = AgentConfig::new("host-a", &etcd.endpoints()).watch("/", "auto", "http1");
    let agent = Agent::start(&scene, &config).await?;
    let (node, other) = (Upstream::start("a").await?, Upstream::start("b").await?);
    let (address, port) = (node.address(), node.address().port());
    let lease = etcd.grant(60).await?;
    let by_name = format!("localhost:{port}");
    let entries = [
        (
            "/microservices/kratos/h1".to_owned(),
            json!({"id": "h1", "name": "kratos", "endpoints": [format!("http://{by_name}")]}).to_string(),
        ),
        (
            format!("/services/user-app/{address}"),
            json!({"Host": "localhost", "Port": port, "Weight": 0, "Enable": true, "Healthy": true}).to_string(),
        ),
        (format!("/services/keys/{by_name}"), String::new()),
        ("/services/values/1".to_owned(), by_name.clone()),
        ("/skydns/local/orders/1".to_owned(), json!({"host": "localhost", "port": port}).to_string()),
        ("/apisix/upstreams/upstream".to_owned(), json!({"type": "roundrobin", "nodes": {by_name: 1}}).to_string()),
        ("/waypost/services/own/1".to_owned(), json!({"address": "localhost", "port": port}).to_string()),
    ];
    for (key, value) in entries {
        etcd.put_with_lease(&key, value, lease).await?;
    }
    let services = ["kratos", "user-app", "keys", "values", "orders.local", "upstream", "own"];
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&services)).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    for service in services {
        envoy.wait_picking(service).await?;
        served_by(envoy.load(service), &["a"]).await?;
    }
    ensure!(agent.metric("waypost_mirror_undecodable_total", &[]).await? == 0.0, "something could not be read");
    // A name that is not to be found takes nothing away, and one key's nodes come and go with its value.
    let nodes = json!({address.to_string(): 1, other.address().to_string(): 1, "nowhere.invalid:80": 1});
    etcd.put("/apisix/upstreams/upstream", json!({"type": "roundrobin", "nodes": nodes}).to_string()).await?;
    served_by(envoy.load("upstream"), &["a", "b"]).await?;
    let nodes = json!([{"host": "localhost", "port": other.address().port(), "weight": 1}]);
    etcd.put("/apisix/upstreams/upstream", json!({"type": "roundrobin", "nodes": nodes}).to_string()).await?;
    served_by(envoy.load("upstream"), &["b"]).await?;
    scene.close()
}
