//! A service as the command line describes it: the keys of `[[service]]`, as JSON.

use std::{fs, io::Read as _, net::SocketAddr};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use waypost_catalog::Node;

use super::exit::Exit;

/// What can be said of an instance, also later.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Fields {
    /// Share of new requests, relative to the other instances; 0 for none
    #[arg(long, value_name = "NUMBER")]
    weight: Option<u32>,
    /// Failure domain
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Version of what runs
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    /// A label; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Data by name; may be repeated
    #[arg(long = "meta", value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
}

/// What only an agent looks after.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "With an agent")]
pub(super) struct Checked {
    /// Its check: http, tcp, grpc, exec or ttl, and keys of [service.check], such as http,path=/healthz,interval=2s
    #[arg(long, value_name = "TYPE[,KEY=VALUE...]", value_parser = check)]
    check: Option<Value>,
    /// A file with a JSON object of the keys of [[service]], - for stdin; what else is given here counts before it
    #[arg(long, value_name = "FILE")]
    from: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write NAME=VALUE".to_owned())
}

fn check(text: &str) -> Result<Value, String> {
    let mut parts = text.split(',');
    let mut check = Map::new();
    check.insert("type".to_owned(), parts.next().unwrap_or_default().into());
    for part in parts {
        let (key, value) = pair(part).map_err(|_| format!("{part:?} is no KEY=VALUE; lists need --from FILE"))?;
        check.insert(key, value.parse::<u32>().map_or_else(|_| value.into(), Value::from));
    }
    Ok(check.into())
}

impl Fields {
    /// As the keys that they are.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        let Self { weight, zone, version, tags, metadata } = self;
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("weight", weight.map(Value::from));
        put("zone", zone.clone().map(Value::from));
        put("version", version.clone().map(Value::from));
        put("tags", (!tags.is_empty()).then(|| json!(tags)));
        let metadata: Map<String, Value> =
            metadata.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        put("metadata", (!metadata.is_empty()).then(|| metadata.into()));
        object
    }

    /// Whether nothing is said.
    pub(super) fn is_empty(&self) -> bool {
        self.to_json().is_empty()
    }

    /// The node with what is said of it.
    pub(super) fn change(&self, mut node: Node) -> Node {
        let Self { weight, zone, version, tags, metadata } = self.clone();
        node.weight = weight.unwrap_or(node.weight);
        node.zone = zone.unwrap_or(node.zone);
        node.version = version.unwrap_or(node.version);
        if !tags.is_empty() {
            node.tags = tags;
        }
        node.metadata.extend(metadata);
        node
    }
}

impl Checked {
    /// Whether anything is said that needs an agent.
    pub(super) fn check_is_given(&self) -> bool {
        self.check.is_some()
    }

    /// The keys of the file, and over them the check and those given.
    pub(super) fn under(&self, given: Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
        let mut object = match self.from.as_deref() {
            None => Map::new(),
            Some(from) => read(from)?,
        };
        object.extend(given);
        object.extend(self.check.clone().map(|check| ("check".to_owned(), check)));
        Ok(object)
    }
}

fn read(from: &str) -> anyhow::Result<Map<String, Value>> {
    let text = match from {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
            text
        }
        path => fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
    };
    match serde_json::from_str(&text).with_context(|| format!("{from} is no JSON"))? {
        Value::Object(object) => Ok(object),
        _ => bail!("{from} holds no JSON object"),
    }
}

/// What describes the instance's address in a message.
pub(super) fn at(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "an address not found yet".to_owned(), |address| address.to_string())
}

/// Nothing is said that could be changed.
pub(super) fn nothing_given() -> anyhow::Error {
    Exit::usage("nothing to change is given: see waypost update --help")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        fields: Fields,
        #[command(flatten)]
        checked: Checked,
    }

    fn parsed(args: &[&str]) -> Result<Line, clap::Error> {
        Line::try_parse_from(std::iter::once(&"x").chain(args))
    }

    #[test]
    fn what_is_given_becomes_the_keys_of_a_service() {
        let line = parsed(&[
            "--weight",
            "3",
            "--zone",
            "a",
            "--tag",
            "x",
            "--tag",
            "y",
            "--meta",
            "owner=me",
            "--check",
            "http,path=/up,interval=2s,rise=1",
        ]);
        let line = line.unwrap();
        let object = Value::from(line.checked.under(line.fields.to_json()).unwrap());
        let expected = json!({
            "weight": 3, "zone": "a", "tags": ["x", "y"], "metadata": {"owner": "me"},
            "check": {"type": "http", "path": "/up", "interval": "2s", "rise": 1},
        });
        assert_eq!(object, expected);
        assert!(parsed(&["--meta", "=x"]).is_err() && parsed(&["--check", "http,path"]).is_err());
    }

    #[test]
    fn the_command_line_counts_before_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, r#"{"weight": 7, "zone": "b"}"#).unwrap();
        let line = parsed(&["--weight", "3", "--from", file.path().to_str().unwrap()]).unwrap();
        let object = Value::from(line.checked.under(line.fields.to_json()).unwrap());
        assert_eq!(object, json!({"weight": 3, "zone": "b"}));
        fs::write(&file, "[1]").unwrap();
        assert!(line.checked.under(Map::new()).unwrap_err().to_string().contains("no JSON object"));
    }

    #[test]
    fn a_node_keeps_what_is_not_said_of_it() {
        let node = Node { zone: "a".into(), tags: vec!["x".into()], ..Node::at(([10, 0, 0, 1], 80).into()) };
        let changed = parsed(&["--weight", "5", "--meta", "k=v"]).unwrap().fields.change(node.clone());
        let metadata = [("k".to_owned(), "v".to_owned())].into();
        assert_eq!(changed, Node { weight: 5, metadata, ..node });
    }
}
