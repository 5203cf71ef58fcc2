//! `waypost config check`: what a configuration means, for people and for programs.

use std::{path::Path, process::ExitCode};

use hyper::Method;
use serde_json::{Value, json};

use super::output::{self, Align, Cell, Paint, Table};
use crate::config::{
    self, Check, CheckKind, Config, ConfigError, GrpcProbe, HttpProbe, Probe, Probing, format_duration,
};

/// Reads a configuration and says what it means, or what is wrong with it.
pub(super) fn run(file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let outcome = config::load(file);
    let code = if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match (json, outcome) {
        (true, outcome) => _ = output::print(&as_json(file, outcome)?)?,
        (false, Ok(config)) => _ = output::print(&summary(file, &config, Paint::stdout()))?,
        (false, Err(error)) => eprintln!("{error}"),
    }
    Ok(code)
}

/// The configuration in a few aligned lines.
fn summary(file: &Path, config: &Config, paint: Paint) -> String {
    let mut out = format!("{}: ok\n\n", file.display());
    let guard = &config.guard;
    let guard = match guard.enabled {
        true => format!(
            "{} of a service within {}, kept for {}",
            guard.max_loss,
            format_duration(guard.window),
            format_duration(guard.grace)
        ),
        false => "off".to_owned(),
    };
    let api = match config.api {
        Some(address) => format!("on the socket, and http://{address}"),
        None => "on the socket".to_owned(),
    };
    let facts = [
        ["node", &config.node],
        ["etcd", &config.etcd.endpoints.join(", ")],
        ["socket", &config.socket.display().to_string()],
        ["api", &api],
        ["admin", &format!("http://{}", config.admin)],
        ["state", &config.state_dir.display().to_string()],
        ["clusters", &config.xds.services.join(", ")],
        ["guard", &guard],
    ];
    let mut table = Table::new([Align::Left; 2]);
    facts.into_iter().for_each(|row| table.row(row.map(Cell::from)));
    out.push_str(&table.render(paint));

    out.push('\n');
    let mut table = Table::headed(["WATCH", "FORMAT", "PROTOCOL"].map(|name| (name, Align::Left)));
    for watch in &config.watches {
        table.row([watch.prefix.as_str(), watch.format.as_str(), watch.protocol.as_str()].map(Cell::from));
    }
    out.push_str(&table.render(paint));

    if !config.services.is_empty() {
        out.push('\n');
        let columns = ["SERVICE", "INSTANCE", "ADDRESS", "PORT", "WEIGHT", "CHECK", "UNDER"];
        let mut table = Table::headed(columns.map(|name| (name, Align::Left)));
        for service in &config.services {
            let under = format!("{} ({})", service.root, service.format);
            let check = service.check.as_ref().map_or_else(|| "none".to_owned(), describe);
            let (port, weight) = (service.port.to_string(), service.weight.to_string());
            let (name, address) = (service.name.to_string(), service.address.to_string());
            table.row([name, service.instance.clone(), address, port, weight, check, under].map(Cell::from));
        }
        out.push_str(&table.render(paint));
    }
    out
}

fn describe(check: &Check) -> String {
    match &check.kind {
        CheckKind::Reported { ttl } => format!("ttl {}", format_duration(*ttl)),
        CheckKind::Asked(Probing { probe, interval, .. }) => {
            format!("{} every {}", describe_probe(probe), format_duration(*interval))
        }
    }
}

fn describe_probe(probe: &Probe) -> String {
    let at = |port: &Option<u16>| port.map(|port| format!(" at port {port}")).unwrap_or_default();
    match probe {
        Probe::Http(probe) => {
            let HttpProbe { port, tls, method, path, .. } = &**probe;
            let scheme = if tls.is_some() { "https" } else { "http" };
            let method = if *method == Method::GET { String::new() } else { format!("{method} ") };
            format!("{scheme} {method}{path}{}", at(port))
        }
        Probe::Tcp { port } => format!("tcp{}", at(port)),
        Probe::Grpc(GrpcProbe { port, tls, service }) => {
            let over = if tls.is_some() { " over TLS" } else { "" };
            let service = if service.is_empty() { String::new() } else { format!(" {service}") };
            format!("grpc{service}{over}{}", at(port))
        }
        Probe::Exec { command } => format!("exec {}", command.join(" ")),
    }
}

/// The outcome as one line of JSON.
fn as_json(file: &Path, outcome: Result<Config, ConfigError>) -> serde_json::Result<String> {
    let file = file.display().to_string();
    let value = match outcome {
        Ok(config) => json!({
            "file": file,
            "ok": true,
            "node": config.node,
            "watches": config.watches.iter().map(|watch| json!({
                "prefix": watch.prefix,
                "format": watch.format.as_str(),
                "protocol": watch.protocol.as_str(),
            })).collect::<Vec<_>>(),
            "services": config.services.iter().map(|service| json!({
                "name": service.name.as_str(),
                "instance": service.instance,
                "address": service.address.to_string(),
                "port": service.port,
                "weight": service.weight,
                "check": service.check.as_ref().map(describe),
                "root": service.root,
                "format": service.format.as_str(),
            })).collect::<Vec<_>>(),
        }),
        Err(ConfigError::Invalid(invalid)) => json!({ "file": file, "ok": false, "problems": invalid.problems }),
        Err(error @ ConfigError::Unreadable { .. }) => {
            json!({ "file": file, "ok": false, "problems": [{ "line": Value::Null, "message": error.to_string() }] })
        }
    };
    Ok(serde_json::to_string(&value)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n[[service]]\nname = \"orders\"\nport = 8080\n\
                        check = { type = \"http\", path = \"/up\" }\n[[service]]\nname = \"db\"\nport = 5432\nweight = 10\n";

    #[test]
    fn the_summary_is_aligned() {
        let config = config::parse("agent.toml", TEXT, "host-a").unwrap();
        let expected = "\
agent.toml: ok

node      host-a
etcd      http://127.0.0.1:2379
socket    /run/waypost/agent.sock
api       on the socket
admin     http://127.0.0.1:9180
state     /var/lib/waypost
clusters  *
guard     0.5 of a service within 10s, kept for 30s

WATCH               FORMAT   PROTOCOL
/waypost/services/  waypost  http1

SERVICE  INSTANCE     ADDRESS  PORT  WEIGHT  CHECK              UNDER
orders   host-a-8080  auto     8080  1       http /up every 2s  /waypost/services/ (waypost)
db       host-a-5432  auto     5432  10      none               /waypost/services/ (waypost)
";
        assert_eq!(summary(Path::new("agent.toml"), &config, Paint::PLAIN), expected);
    }

    #[test]
    fn each_check_is_told_in_a_few_words() {
        for (keys, told) in [
            ("type = \"http\", method = \"HEAD\", port = 81", "http HEAD / at port 81 every 2s"),
            ("type = \"http\", path = \"/up\", tls = true, verify = false", "https /up every 2s"),
            ("type = \"tcp\", interval = \"500ms\"", "tcp every 500ms"),
            ("type = \"grpc\", service = \"shop.Orders\"", "grpc shop.Orders every 2s"),
            ("type = \"grpc\", tls = true, verify = false", "grpc over TLS every 2s"),
            ("type = \"exec\", command = [\"/bin/check\", \"-v\"]", "exec /bin/check -v every 2s"),
            ("type = \"ttl\", ttl = \"10s\"", "ttl 10s"),
        ] {
            let text = TEXT.replace("type = \"http\", path = \"/up\"", keys);
            let service = config::parse("agent.toml", &text, "host-a").unwrap().services.remove(0);
            assert_eq!(describe(&service.check.unwrap()), told);
        }
    }

    #[test]
    fn problems_are_given_to_programs_with_line_and_column() {
        let invalid = config::parse("agent.toml", "nod = 1", "host-a").unwrap_err();
        let printed = as_json(Path::new("agent.toml"), Err(ConfigError::Invalid(invalid))).unwrap();
        let value: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!((&value["problems"][0]["line"], &value["problems"][0]["column"]), (&json!(1), &json!(1)));
    }
}
