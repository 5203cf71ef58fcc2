//! The OpenAPI document against the server: what it says is there is there, and answers as it says.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value, json};
use waypost_agent::api::types::{Leadership, LockHeld, Problem, Registration, RegistrationState};

use super::world::{World, until};

const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];
const FILE: &str = "[[service]]\nname = \"web\"\nport = 8080\naddress = \"127.0.0.1\"\ninstance = \"web-1\"\n";

/// Every operation of the document, as method and path.
fn operations(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().unwrap().iter();
    let methods = |(path, item): (&String, &Value)| -> Vec<(String, String)> {
        METHODS
            .iter()
            .filter(|method| item.get(**method).is_some())
            .map(|method| ((*method).to_owned(), path.clone()))
            .collect()
    };
    paths.flat_map(methods).collect()
}

/// Makes calls, and holds every one of them to the document.
struct Held<'a> {
    world: &'a World,
    document: Value,
    /// Operations that were answered with success.
    seen: RefCell<BTreeSet<(String, String)>>,
}

impl Held<'_> {
    /// The path of the document that a call is of.
    fn template(&self, path: &str) -> String {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let (mut ours, mut theirs) = (path.split('/'), template.split('/'));
            loop {
                match (ours.next(), theirs.next()) {
                    (None, None) => return true,
                    (Some(_), Some(part)) if part.starts_with('{') => {}
                    (Some(our), Some(part)) if our == part => {}
                    _ => return false,
                }
            }
        };
        let found = self.document["paths"].as_object().unwrap().keys().filter(|template| fits(template));
        // Where a name and a fixed part both fit, the fixed one is meant.
        found.min_by_key(|template| template.matches('{').count()).expect(path).clone()
    }

    fn validate(&self, what: &str, schema: &Value, value: &Value) {
        let mut root = schema.as_object().cloned().unwrap_or_default();
        root.insert("components".into(), self.document["components"].clone());
        let validator = jsonschema::draft202012::new(&Value::Object(root)).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?}\n{value:#}");
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let template = self.template(path);
        let operation = &self.document["paths"][&template][method];
        let what = format!("{method} {path}");
        if let Some(body) = &body {
            let content = operation["requestBody"]["content"].as_object().unwrap().values().next().unwrap();
            self.validate(&what, &content["schema"], body);
        }
        let answer = self.world.socket.call(&method.to_uppercase(), path, body.as_ref()).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        let response = &operation["responses"][status.to_string()];
        assert!(response.is_object(), "{what}: {status} is not in the document");
        let value = match response["content"].as_object() {
            Some(content) => {
                let media = content.get(&answer.content_type);
                let media = media.unwrap_or_else(|| panic!("{what}: answered as {}", answer.content_type));
                let value: Value = answer.json();
                self.validate(&what, &media["schema"], &value);
                value
            }
            None => {
                assert!(answer.body.is_empty(), "{what}: {answer:?}");
                Value::Null
            }
        };
        if status < 300 {
            self.seen.borrow_mut().insert((method.to_owned(), template));
        }
        value
    }

    /// The first event of a stream.
    async fn event(&self, path: &str, event_and_data: bool) {
        let template = self.template(path);
        let content = &self.document["paths"][&template]["get"]["responses"]["200"]["content"]["text/event-stream"];
        let event = self.world.socket.follow(path, None).await.next().await;
        let value = if event_and_data { json!({ "event": event.name, "data": event.data }) } else { event.data };
        self.validate(path, &content["schema"], &value);
        self.seen.borrow_mut().insert(("get".to_owned(), template));
    }
}

#[tokio::test]
async fn every_operation_answers_as_the_document_says() {
    let world = World::start(FILE).await;
    let document: Value = world.socket.read("/v1/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let api = Held { world: &world, document, seen: RefCell::default() };
    world.ctl(&["put", "/config/a", "1"]);

    api.call("get", "/v1/openapi.json", None, 200).await;
    until("web", async || (world.socket.get("/v1/services/web/pick").await.status == 200).then_some(())).await;
    let users = "/v1/registrations/users/users-1";
    let check = json!({ "type": "ttl", "ttl": "60s" });
    let definition =
        json!({ "port": 9000, "address": "127.0.0.1", "tags": ["a"], "metadata": { "b": "c" }, "check": check });
    api.call("put", users, Some(definition.clone()), 201).await;
    api.call("put", users, Some(definition), 200).await;
    api.call("patch", users, Some(json!({ "weight": 2, "tags": null })), 200).await;
    api.call("put", &format!("{users}/heartbeat"), Some(json!({ "passing": true, "output": "up" })), 204).await;
    until("registered, with a report", async || {
        let found: Registration = world.socket.read(users).await;
        (found.state == RegistrationState::Registered && found.check.is_some()).then_some(())
    })
    .await;
    api.call("put", &format!("{users}/maintenance"), Some(json!({ "reason": "disks" })), 200).await;
    api.call("put", "/v1/maintenance", Some(json!({ "reason": "kernel" })), 200).await;
    for path in ["/v1/registrations", users, "/v1/status", "/v1/services", "/v1/services/web/nodes?healthy=false"] {
        api.call("get", path, None, 200).await;
    }
    api.call("delete", &format!("{users}/maintenance"), None, 204).await;
    api.call("delete", "/v1/maintenance", None, 204).await;
    until("web again", async || (world.socket.get("/v1/services/web/pick").await.status == 200).then_some(())).await;
    api.call("get", "/v1/services/web/pick?strategy=random", None, 200).await;
    api.call("get", "/v1/nodes", None, 200).await;
    api.call("get", "/v1/outcomes", None, 200).await;
    api.event("/v1/events", true).await;

    let (lock, election) = ("/v1/locks/jobs%2Fnightly", "/v1/elections/scheduler");
    let held = api.call("post", lock, Some(json!({ "ttl": "5s", "wait": "1s" })), 201).await;
    let held = format!("{lock}/{}", serde_json::from_value::<LockHeld>(held).unwrap().id);
    api.call("post", lock, Some(json!({})), 409).await;
    api.call("get", lock, None, 200).await;
    api.call("put", &held, None, 200).await;
    api.call("delete", &held, None, 204).await;
    api.call("delete", &held, None, 404).await;
    let led = api.call("post", election, Some(json!({ "value": "a", "ttl": "5s" })), 201).await;
    let led = format!("{election}/{}", serde_json::from_value::<Leadership>(led).unwrap().id);
    api.call("post", election, Some(json!({ "value": "b" })), 409).await;
    api.call("get", election, None, 200).await;
    api.event(&format!("{election}/events"), false).await;
    api.call("put", &led, Some(json!({ "value": "c" })), 200).await;
    api.call("delete", &led, None, 204).await;
    api.call("get", election, None, 200).await;
    api.call("get", "/v1/values?prefix=/config/", None, 200).await;
    api.event("/v1/values/events?key=/config/a", true).await;

    api.call("get", "/v1/values", None, 400).await;
    api.call("get", "/v1/services/none/nodes", None, 404).await;
    api.call("get", "/v1/services/web/pick?zone=none", None, 503).await;
    api.call("put", "/v1/registrations/web/web-1", Some(json!({ "port": 1 })), 409).await;
    api.call("put", "/v1/registrations/web/web-1/heartbeat", Some(json!({})), 409).await;
    api.call("put", "/v1/registrations/web/web-2", Some(json!({ "port": 0 })), 422).await;
    api.call("put", "/v1/registrations/no/no/maintenance", Some(json!({})), 404).await;
    api.call("delete", &format!("{users}?drain=0s"), None, 204).await;
    api.call("delete", users, None, 404).await;
    assert_eq!(*api.seen.borrow(), operations(&api.document), "every operation was called");
}

#[tokio::test]
async fn a_path_takes_the_methods_of_the_document_and_no_others() {
    let world = World::start("").await;
    let document: Value = world.socket.read("/v1/openapi.json").await;
    let documented = operations(&document);
    for path in document["paths"].as_object().unwrap().keys() {
        for method in METHODS {
            let is_documented = documented.contains(&(method.to_owned(), path.clone()));
            if method == "get" && is_documented {
                // A stream would not end; every other test makes such calls.
                continue;
            }
            // Names that are none, and a body that is none, so that nothing is done.
            let (path, method) = (path.replace('{', "%20").replace('}', ""), method.to_uppercase());
            let answer = world.socket.call(&method, &path, Some(&json!([]))).await;
            assert_eq!(answer.status != 405, is_documented, "{method} {path}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn the_reference_names_every_operation_and_the_definition_every_key() {
    let world = World::start("").await;
    let document: Value = world.socket.read("/v1/openapi.json").await;
    let reference = include_str!("../../../docs/api.md");
    for (method, path) in operations(&document) {
        let lines =
            reference.lines().filter(|line| line.contains(&format!("{path}`")) || line.contains(&format!("{path}?")));
        let named = lines.filter(|line| {
            line.contains(&format!("{} ", method.to_uppercase()))
                || line.contains(&format!("`{}`", method.to_uppercase()))
        });
        assert!(named.count() > 0, "docs/api.md says nothing of {} {path}", method.to_uppercase());
    }
    let wrong = json!({ "port": 1, "no-such-key-at-all": 1 });
    let answer = world.socket.call("PUT", "/v1/registrations/a/b", Some(&wrong)).await;
    let detail = answer.json::<Problem>().errors.remove(0).detail;
    let allowed: BTreeSet<_> = detail.split_once("allowed here: ").unwrap().1.split(", ").collect();
    let properties = document["components"]["schemas"]["ServiceDefinition"]["properties"].as_object();
    let described: BTreeSet<_> = properties.map(Map::keys).into_iter().flatten().map(String::as_str).collect();
    assert_eq!(described, allowed);
}
