//! Strategies by hand: written, packed and tried. The components are those that `cargo xtask test` has built.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use crate::support::{json, printed, status, waypost};

const NODES: &str = r#"{"nodes":[
    {"service":"web","share":0.5,"address":"10.0.0.1:8080","weight":1,"health":"passing","protocol":"http1","id":"host-a",
     "zone":"eu-1","version":"2.0","tags":[],"metadata":{"capacity":"3"}},
    {"service":"web","share":0.5,"address":"10.0.0.2:8080","weight":1,"health":"passing","protocol":"http1","id":"host-b",
     "zone":"eu-2","version":"2.1","tags":[],"metadata":{"capacity":"little"}},
    {"service":"web","share":0.0,"address":"10.0.0.3:8080","weight":2,"health":"draining","protocol":"http1","id":"host-c",
     "zone":"eu-2","version":"2.1","tags":[],"metadata":{}}]}"#;

/// A component that `cargo xtask test` has built.
fn built(name: &str) -> String {
    let target = PathBuf::from(env!("CARGO_BIN_EXE_waypost")).ancestors().nth(2).unwrap().to_path_buf();
    let path = target.join("waypost/strategies").join(format!("{name}.wasm"));
    assert!(path.is_file(), "{} is not there: run cargo xtask build", path.display());
    path.display().to_string()
}

struct Nodes {
    file: String,
    directory: tempfile::TempDir,
}

impl Nodes {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nodes.json");
        fs::write(&file, NODES).unwrap();
        Self { file: file.display().to_string(), directory }
    }

    /// What a component decides, as JSON.
    fn decided(&self, component: &str, more: &[&str]) -> Value {
        json(waypost(&["strategy", "test", component, "--nodes", &self.file]).args(more))
    }
}

fn weights(document: &Value) -> Vec<u64> {
    document["decisions"].as_array().unwrap().iter().map(|row| row["weight"].as_u64().unwrap()).collect()
}

#[test]
fn a_trial_prints_decisions_and_what_they_took() {
    let nodes = Nodes::new();
    let text =
        printed(waypost(&["strategy", "test", &built("capacity"), "--nodes", &nodes.file]).args(["--runs", "3"]));
    let (facts, table) = text.split_once("\n\n").unwrap();
    for fact in ["component  ", "\nsha256 ", "\ncompiled   in ", "\nasked      3 times; the first in ", " of 64.0 MiB"]
    {
        assert!(facts.contains(fact), "{text}");
    }
    let expected = "\
ADDRESS        HEALTH    REGISTERED  WEIGHT  PRIORITY   SHARE  ID
10.0.0.1:8080  passing            1     300         0  75.0 %  host-a
10.0.0.2:8080  passing            1     100         0  25.0 %  host-b
10.0.0.3:8080  draining           2     200         0   0.0 %  host-c

warning: host-b: capacity: \"little\" is no capacity
warning: host-b: capacity: \"little\" is no capacity
warning: host-b: capacity: \"little\" is no capacity
";
    assert_eq!(table, expected);

    let document = nodes.decided(&built("capacity"), &["--runs", "2"]);
    assert_eq!(document["runs_ms"].as_array().unwrap().len(), 2);
    assert_eq!(document["decisions"][0]["share"], 0.75);
    assert_eq!((&document["error"], &document["log"][1]["level"]), (&Value::Null, &json!("warning")));
    assert!(document["memory_bytes"].as_u64().unwrap() > 1 << 16);
}

#[test]
fn a_strategy_in_python_decides_as_the_one_in_rust_does() {
    let nodes = Nodes::new();
    let parameters = ["--parameters", r#"{"default": 0.5}"#, "--deadline", "20s"];
    let rust = nodes.decided(&built("capacity"), &parameters);
    let python = nodes.decided(&built("capacity-python"), &parameters);
    assert_eq!(weights(&rust), [300, 50, 100]);
    assert_eq!(rust["decisions"], python["decisions"]);
    assert_eq!(rust["log"].as_array().unwrap().len(), python["log"].as_array().unwrap().len());
}

#[test]
fn a_canary_has_its_share_by_the_clock_and_asks_to_be_asked_again() {
    let nodes = Nodes::new();
    let ramp = |begin: u64| format!(r#"{{"version":"2.1","begin":{begin},"minutes":1e6,"from_percent":10}}"#);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let canary = built("canary");
    let document = nodes.decided(&canary, &["--parameters", &ramp(now)]);
    assert_eq!(document["ask_again_seconds"], 5);
    assert_eq!(weights(&document), [900_000, 100_000, 200_000]);
    let document = nodes.decided(&canary, &["--parameters", &ramp(0)]);
    assert!(weights(&document)[0] < 900_000, "{document}");
}

#[test]
fn what_is_known_of_outcomes_may_be_made_up() {
    let nodes = Nodes::new();
    let failing =
        r#""outcomes":{"window_seconds":10,"requests":100,"failures":100,"rate":10,"in_flight":0},"id":"host-a""#;
    fs::write(&nodes.file, NODES.replace(r#""id":"host-a""#, failing)).unwrap();
    let once = nodes.decided(&built("outcomes"), &["--runs", "1"]);
    assert_eq!(weights(&once), [550, 1000, 2000]);
    let often = nodes.decided(&built("outcomes"), &["--runs", "20"]);
    assert_eq!(weights(&often), [101, 1000, 2000], "each question tells what the one before decided");
}

#[test]
fn a_new_strategy_works_as_it_is() {
    let nodes = Nodes::new();
    let document = nodes.decided(&built("fresh"), &["--zone", "eu-1", "--parameters", r#"{"same_zone": 4}"#]);
    assert_eq!(weights(&document), [4, 1, 2]);

    let directory = nodes.directory.path().join("by-zone");
    let said = printed(waypost(&["strategy", "new", "by-zone", "--directory"]).arg(&directory));
    assert!(said.contains("by-zone: written"), "{said}");
    assert!(directory.join("wit/strategy.wit").is_file());
    let (code, errors) = status(&waypost(&["strategy", "new", "x", "--directory"]).arg(&directory).output().unwrap());
    assert!(code == 1 && errors.contains("not empty"), "{errors}");
}

#[test]
fn what_cannot_be_asked_or_does_not_answer_is_told_with_its_reason() {
    let nodes = Nodes::new();
    let failure = |arguments: &[&str]| {
        let output = waypost(arguments).output().unwrap();
        (status(&output), String::from_utf8(output.stdout).unwrap())
    };
    let test = |component: &str, more: &[&str]| {
        failure(&[&["strategy", "test", component, "--nodes", &nodes.file], more].concat())
    };
    let capacity = built("capacity");
    let ((code, errors), facts) = test(&capacity, &["--parameters", r#"{"feild":"cpus"}"#]);
    assert!(code == 1 && errors.contains("refused") && errors.contains("feild"), "{errors}");
    assert!(facts.contains("sha256"), "what it took is told all the same: {facts}");
    let ((code, errors), _) = test(&capacity, &["--parameters", "cpus"]);
    assert!(code == 1 && errors.contains("the parameters are no JSON"), "{errors}");
    let ((code, errors), _) = test(&capacity, &["--memory", "1"]);
    assert!(code == 1 && errors.contains("wanted more than its 1 MiB of memory"), "{errors}");
    let ((code, errors), _) = test(&nodes.file, &[]);
    assert!(code == 1 && errors.contains("nodes.json: this is no WebAssembly"), "{errors}");
    let ((code, errors), _) = test(&capacity, &["--service", "mail"]);
    assert!(code == 1 && errors.contains("there is no node of service mail"), "{errors}");

    let output = nodes.directory.path().join("again.wasm").display().to_string();
    let ((code, errors), _) = failure(&["strategy", "pack", &capacity, "--output", &output]);
    assert!(code == 1 && errors.contains("this is a component already"), "{errors}");
    let module = nodes.directory.path().join("module.wasm");
    fs::write(&module, b"\0asm\x01\0\0\0").unwrap();
    let ((code, errors), _) = test(&module.display().to_string(), &[]);
    assert!(code == 1 && errors.contains("waypost strategy pack"), "{errors}");
    let module = module.display().to_string();
    let ((code, errors), _) = failure(&["strategy", "pack", &module, "--output", &output]);
    assert!(code == 1 && errors.contains("it exports no function `weigh`"), "{errors}");
    assert!(!fs::exists(&output).unwrap());
}
