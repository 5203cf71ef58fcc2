//! A service that is registered at run time: JSON with the keys of `[[service]]`, read by the same code.

use serde_json::{Map, Value};
use toml::de::DeTable;

use super::{
    Service,
    reader::{Found, Problems, Section},
    service,
};

/// What is wrong with a JSON document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misplaced {
    /// Names and indices from the document down; none for the document as a whole.
    pub path: Vec<String>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// The service that a JSON object describes. `node` names instances that have no name.
///
/// # Errors
/// Everything that is wrong with it.
pub fn service_from_json(object: &Map<String, Value>, node: &str) -> Result<Service, Vec<Misplaced>> {
    let mut nulls = Vec::new();
    for (key, value) in object {
        find_nulls(value, std::slice::from_ref(key), &mut nulls);
    }
    if !nulls.is_empty() {
        return Err(nulls);
    }
    let whole = |message: String| vec![Misplaced { path: Vec::new(), message }];
    // As TOML, so that one parser decides what a service may be.
    let text = toml::to_string(object).map_err(|error| whole(error.to_string()))?;
    let document = DeTable::parse(&text).map_err(|error| whole(error.message().to_owned()))?;
    let problems = Problems::new(&text);
    let read = service::service(&Section::root(&document, &problems), node);
    match read {
        Some(service) if problems.is_empty() => Ok(service),
        _ => Err(problems.into_found().into_iter().map(Misplaced::from).collect()),
    }
}

fn find_nulls(value: &Value, path: &[String], found: &mut Vec<Misplaced>) {
    let below = |name: String| [path, &[name]].concat();
    match value {
        Value::Null => {
            found.push(Misplaced { path: path.to_vec(), message: "null is no value: leave the key out".to_owned() })
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| find_nulls(item, &below(index.to_string()), found))
        }
        Value::Object(members) => members.iter().for_each(|(key, item)| find_nulls(item, &below(key.clone()), found)),
        _ => {}
    }
}

impl From<Found> for Misplaced {
    fn from(Found { mut keys, index, message, at: _ }: Found) -> Self {
        keys.extend(index.map(|index| index.to_string()));
        Self { path: keys, message }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config;

    fn read(value: Value) -> Result<Service, Vec<String>> {
        let Value::Object(object) = value else { panic!("an object") };
        let told = |Misplaced { path, message }: Misplaced| format!("{}: {message}", path.join("/"));
        service_from_json(&object, "host-a").map_err(|wrong| wrong.into_iter().map(told).collect())
    }

    #[test]
    fn json_and_the_file_mean_the_same() {
        let text = "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n[[service]]\nname = \"web\"\nport = 80\nweight = 3\n\
                    tags = [\"a\", \"b\"]\nmetadata = { \"x.y\" = \"z\" }\nttl = \"9s\"\n[service.check]\ntype = \"http\"\n";
        let of_file = config::parse("agent.toml", text, "host-a").unwrap().services.remove(0);
        let of_json = read(json!({
            "check": { "type": "http" }, "name": "web", "port": 80, "weight": 3, "tags": ["a", "b"],
            "metadata": { "x.y": "z" }, "ttl": "9s",
        }));
        assert_eq!(of_json, Ok(of_file));
    }

    #[test]
    fn each_thing_that_is_wrong_is_named_with_its_place() {
        let wrong = read(json!({
            "name": "web", "port": 0, "tags": ["a", 1], "metadata": { "x.y": 2 },
            "check": { "type": "http", "interval": "2x" }, "chek": {},
        }));
        let mut wrong = wrong.unwrap_err();
        wrong.sort();
        let expected = [
            "check/interval: \"2x\" is no duration: write a number and ms, s or m, such as \"2s\"",
            "chek: unknown key; did you mean \"check\"?",
            "metadata/x.y: expected text in quotes, found the number 2",
            "port: expected a whole number from 1 to 65535, found the number 0",
            "tags/1: expected text in quotes, found the number 1",
        ];
        assert_eq!(wrong, expected);
    }

    #[test]
    fn what_is_no_value_of_the_file_is_refused() {
        let wrong = read(json!({ "name": "web", "port": 80, "check": { "type": null } })).unwrap_err();
        assert_eq!(wrong, ["check/type: null is no value: leave the key out"]);
        assert_eq!(read(json!({ "name": "web", "port": u64::MAX })).unwrap_err().len(), 1);
    }
}
