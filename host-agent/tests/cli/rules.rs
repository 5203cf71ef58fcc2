//! Policies and routes, straight in etcd.

use std::{io::Write as _, process::Stdio};

use serde_json::{Value, json};

use crate::support::{Etcd, json, printed, status, waypost};

const POLICY: &str = r#"{
  "subsets": {"v1": {"version": "1"}, "v2": {"version": "2"}},
  "subset_header": "x-subset",
  "split": {"arms": [{"subset": "v1", "weight": 75}, {"subset": "v2", "weight": 25}]}
}"#;

fn put_nodes(etcd: &Etcd) {
    for (instance, version, weight, health) in
        [("a", "1", 3, "passing"), ("b", "1", 1, "passing"), ("c", "1", 1, "draining"), ("d", "2", 1, "passing")]
    {
        let address = format!("10.0.0.{}", instance.as_bytes()[0] - b'a' + 1);
        let node = json!({"address": address, "port": 80, "weight": weight, "health": health, "version": version});
        etcd.ctl(&["put", &format!("/waypost/services/orders/{instance}"), &node.to_string()]);
    }
}

#[test]
fn a_document_is_set_read_listed_and_deleted() {
    let etcd = Etcd::start();
    for kind in ["policy", "route"] {
        let (code, errors) = status(&etcd.waypost(&[kind, "get", "orders"]).output().unwrap());
        assert!(code == 3 && errors.contains(&format!("there is no {kind} orders")), "{code}: {errors}");
    }
    assert_eq!(printed(&mut etcd.waypost(&["policy", "list"])), "no policies\n");
    assert_eq!(printed(&mut etcd.waypost(&["route", "list"])), "no routes\n");

    // From a file, from stdin, and as it stands there.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, POLICY).unwrap();
    let set = printed(&mut etcd.waypost(&["policy", "set", "orders", file.path().to_str().unwrap()]));
    assert!(set.starts_with("policy orders: set in revision "), "{set}");
    assert_eq!(printed(&mut etcd.waypost(&["policy", "get", "orders"])), format!("{POLICY}\n"));
    let route = r#"{"order": 10, "match": {"hosts": ["shop.x"]}, "service": "orders", "timeout": "2s"}"#;
    let mut stdin = etcd.waypost(&["route", "set", "shop", "-"]);
    let mut running = stdin.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    running.stdin.take().unwrap().write_all(route.as_bytes()).unwrap();
    assert!(running.wait().unwrap().success());
    let done = json(&mut etcd.waypost(&["route", "set", "rest", r#"{"order": 99, "match": {}, "service": "web"}"#]));
    assert_eq!((&done["id"], &done["key"]), (&"rest".into(), &"/waypost/routes/rest".into()));
    assert_eq!(json(&mut etcd.waypost(&["route", "get", "rest"]))["revision"], done["revision"]);
    assert_eq!(etcd.ctl(&["get", "--print-value-only", "/waypost/routes/shop"]), route);

    let revision = |entry: &Value| entry["revision"].as_i64().unwrap();
    let policies = json(&mut etcd.waypost(&["policy", "list"]));
    let [policy] = policies["policies"].as_array().unwrap().as_slice() else { panic!("{policies}") };
    assert_eq!((&policy["service"], &policy["valid"]), (&"orders".into(), &true.into()));
    assert_eq!(policy["document"], serde_json::from_str::<Value>(POLICY).unwrap());
    let lines = printed(&mut etcd.waypost(&["policy", "list"]));
    let expected = format!("orders   weighted-round-robin  2 subsets, split 75/25  {:>8}  yes", revision(policy));
    assert!(lines.lines().nth(1) == Some(&expected), "{lines}");
    let routes = json(&mut etcd.waypost(&["route", "list"]));
    let lines = printed(&mut etcd.waypost(&["route", "list"]));
    let of = |id: &str| revision(routes["routes"].as_array().unwrap().iter().find(|route| route["id"] == id).unwrap());
    let expected = format!(
        "ORDER  ID    MATCH   TARGET  TIMEOUT  REVISION  VALID\n   10  shop  shop.x  orders       2s  {:>8}  yes\n   \
         99  rest  all     web              {:>8}  yes\n",
        of("shop"),
        of("rest")
    );
    assert_eq!(lines, expected);

    assert_eq!(printed(&mut etcd.waypost(&["route", "delete", "rest"])), "route rest: deleted\n");
    let (code, _) = status(&etcd.waypost(&["route", "delete", "rest"]).output().unwrap());
    assert_eq!(code, 3);
    assert_eq!(json(&mut etcd.waypost(&["policy", "delete", "orders"]))["deleted"], true);
    assert_eq!(etcd.ctl(&["get", "--prefix", "--keys-only", "/waypost/policies/"]), "");
}

#[test]
fn a_bad_document_is_refused_with_the_field_named_and_shown_where_somebody_else_wrote_it() {
    let etcd = Etcd::start();
    let bad = r#"{"subsets": {"v1": {"version": "1"}}, "split": {"arms": [{"subset": "v3", "weight": 1}]}}"#;
    let said = "split.arms[0].subset: no subset is called \"v3\"; there are \"v1\"";
    let (code, errors) = status(&etcd.waypost(&["policy", "set", "orders", bad]).output().unwrap());
    assert_eq!((code, errors), (1, format!("waypost: policy orders is refused:\n  {said}\n")));
    let output = etcd.waypost(&["policy", "set", "orders", bad, "--json"]).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &told["problems"][0]["path"]), (Some(1), &"split.arms[0].subset".into()));
    assert_eq!(etcd.ctl(&["get", "--prefix", "--keys-only", "/waypost/policies/"]), "");
    for (arguments, code) in [
        (&["policy", "set", "a/b", "{}"][..], 2),
        (&["policy", "set", "orders", "/nowhere/orders.json"], 1),
        (&["route", "set", "r", "{}", "--if-revision", "-1"], 2),
        (&["route", "explain"], 2),
    ] {
        assert_eq!(status(&etcd.waypost(arguments).output().unwrap()).0, code, "{arguments:?}");
    }
    let (code, _) = status(&waypost(&["policy", "get", "x", "--etcd", "http://127.0.0.1:1"]).output().unwrap());
    assert_eq!(code, 69);

    etcd.ctl(&["put", "/waypost/policies/orders", bad]);
    let lines = printed(&mut etcd.waypost(&["policy", "list"]));
    assert!(lines.contains("  no\n") && lines.ends_with(&format!("\n! orders: {said}\n")), "{lines}");
    let output = etcd.waypost(&["policy", "get", "orders"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{bad}\n"));
    assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
}

#[test]
fn a_revision_keeps_writers_from_each_other() {
    let etcd = Etcd::start();
    let set = |document: &str, revision: i64| {
        let revision = revision.to_string();
        etcd.waypost(&["policy", "set", "orders", document, "--if-revision", &revision, "--json"]).output().unwrap()
    };
    let first = set("{}", 0);
    let first: Value = serde_json::from_slice(&first.stdout).unwrap();
    let revision = first["revision"].as_i64().unwrap();
    let (code, errors) = status(&set("{}", 0));
    assert!(code == 1 && errors.contains(&format!("was changed in revision {revision} meanwhile")), "{errors}");
    assert!(set(r#"{"strategy": "random"}"#, revision).status.success());
    let (code, errors) = status(&set("{}", revision));
    assert!(code == 1 && errors.contains("read it again"), "{errors}");
    let stale = revision.to_string();
    let (code, _) = status(&etcd.waypost(&["policy", "delete", "orders", "--if-revision", &stale]).output().unwrap());
    assert_eq!(code, 1);
    let document = printed(&mut etcd.waypost(&["policy", "get", "orders"]));
    assert_eq!(document, "{\"strategy\": \"random\"}\n");
    let absent = ["route", "delete", "r", "--if-revision", "1"];
    let (code, errors) = status(&etcd.waypost(&absent).output().unwrap());
    assert!(code == 1 && errors.contains("there is no route r"), "{errors}");
}

#[test]
fn an_explanation_goes_from_the_rule_to_the_nodes() {
    let etcd = Etcd::start();
    put_nodes(&etcd);
    printed(&mut etcd.waypost(&["policy", "set", "orders", POLICY]));
    let routes = [
        (
            "admin",
            r#"{"order": 10, "match": {"path": {"prefix": "/admin/"}, "headers": {"x-role": "admin"}}, "service": "admin"}"#,
        ),
        (
            "shop",
            r#"{"order": 20, "match": {"hosts": ["shop.x"], "methods": ["GET"]}, "service": "orders", "timeout": "2s"}"#,
        ),
    ];
    for (id, route) in routes {
        printed(&mut etcd.waypost(&["route", "set", id, route]));
    }
    let request = ["route", "explain", "--host", "Shop.x:80", "--path", "/admin/x?y=z", "--header", "X-Role: user"];
    let expected = "\
GET Shop.x:80/admin/x?y=z, x-role: user

ORDER  ROUTE  MET  BECAUSE
   10  admin  no   match.headers.x-role: wants admin, has user
   20  shop   yes

timeout 2s

75.0 % orders (v1), weighted-round-robin; service by the route, subset by the policy's split
ADDRESS      HEALTH    WEIGHT  ZONE  VERSION  LEVEL   SHARE  NONE SINCE         ID
10.0.0.1:80  passing        3        1            0  75.0 %                     a
10.0.0.2:80  passing        1        1            0  25.0 %                     b
10.0.0.3:80  draining       1        1            0   0.0 %  draining           c
10.0.0.4:80  passing        1        2            0   0.0 %  not in the subset  d

25.0 % orders (v2), weighted-round-robin; service by the route, subset by the policy's split
ADDRESS      HEALTH    WEIGHT  ZONE  VERSION  LEVEL    SHARE  NONE SINCE         ID
10.0.0.1:80  passing        3        1            0    0.0 %  not in the subset  a
10.0.0.2:80  passing        1        1            0    0.0 %  not in the subset  b
10.0.0.3:80  draining       1        1            0    0.0 %  not in the subset  c
10.0.0.4:80  passing        1        2            0  100.0 %                     d
";
    assert_eq!(printed(&mut etcd.waypost(&request)), expected);
    let told = json(&mut etcd.waypost(&request));
    assert_eq!(
        (&told["rule"], &told["rules"][0]["because"]["field"]),
        (&"shop".into(), &"match.headers.x-role".into())
    );
    assert_eq!(told["ways"][1]["nodes"][0]["excluded"], "other-subset");

    // What the request names itself, and a request that no route is for.
    let named = json(&mut etcd.waypost(&["policy", "explain", "orders", "--header", "x-subset:v2"]));
    assert_eq!((&named["ways"][0]["subset"], &named["ways"][0]["subset_by"]), (&"v2".into(), &"header".into()));
    assert_eq!(named["ways"].as_array().unwrap().len(), 1);
    let by_host = json(&mut etcd.waypost(&["route", "explain", "--host", "orders.internal", "--method", "PUT"]));
    assert_eq!((&by_host["rule"], &by_host["ways"][0]["service_by"]), (&Value::Null, &"host".into()));
    let nowhere = printed(&mut etcd.waypost(&["route", "explain", "--host", "nobody"]));
    assert!(nowhere.ends_with("no service is called like the host nobody or its first label\n"), "{nowhere}");
    let (code, errors) = status(&etcd.waypost(&["policy", "explain", "users"]).output().unwrap());
    assert!(code == 3 && errors.contains("service users"), "{errors}");
}

#[test]
fn the_agents_configuration_says_where_nodes_are_and_in_which_zone_the_host() {
    let etcd = Etcd::start();
    put_nodes(&etcd);
    etcd.ctl(&["put", "/legacy/orders/10.0.0.9:80", "x"]);
    let zoned = |zone: &str| json!({"address": "10.0.1.1", "port": 80, "zone": zone}).to_string();
    etcd.ctl(&["put", "/waypost/services/web/near", &zoned("eu-1")]);
    etcd.ctl(&["put", "/waypost/services/web/far", &zoned("eu-2").replace("10.0.1.1", "10.0.1.2")]);
    printed(&mut etcd.waypost(&["policy", "set", "web", r#"{"locality": {"min_nodes": 1}}"#]));
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "zone = \"eu-1\"\n[etcd]\nendpoints = [{:?}]\n[[watch]]\n[[watch]]\nprefix = \"/legacy/\"\nformat = \"endpoint-key\"\n",
        etcd.url
    );
    std::fs::write(&file, text).unwrap();
    let explain = |service: &str, more: &[&str]| {
        let mut command = waypost(&["policy", "explain", service, "--config"]);
        json(command.arg(file.path()).args(more))["ways"][0]["nodes"].as_array().unwrap().clone()
    };
    let orders: Vec<Value> = explain("orders", &[]).iter().map(|node| node["address"].clone()).collect();
    assert_eq!(orders, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.9:80"]);
    let shares = |nodes: Vec<Value>| nodes.iter().map(|node| node["probability"].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(shares(explain("web", &[])), [1.0, 0.0]);
    assert_eq!(shares(explain("web", &["--zone", "eu-2"])), [0.0, 1.0]);
    assert_eq!(shares(explain("web", &["--zone", ""])), [0.5, 0.5]);
}
