//! docs/robustness.md names tests and scenarios that exist, and every scenario.
use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use waypost_tests::chaos::scenarios::ALL;
use waypost_tests::tools;

/// What stands between backticks in the lines of tables.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_test_that_is_named_exists() -> Result<()> {
    let text = std::fs::read_to_string(tools::root().join("docs/robustness.md"))?;
    let mut count = 0;
    for (file, test) in named(&text).filter_map(|name| name.split_once("::")) {
        let path = tools::root().join(format!("tests/tests/{file}.rs"));
        let source = std::fs::read_to_string(&path).with_context(|| format!("{file}::{test}"))?;
        let defined = source.contains(&format!("async fn {test}()")) || source.contains(&format!("    {test}: \""));
        ensure!(defined, "there is no test {test} in {}", path.display());
        count += 1;
    }
    ensure!(count > ALL.len(), "only {count} tests are named");
    Ok(())
}

#[test]
fn every_scenario_is_named_with_a_test_that_runs_it() -> Result<()> {
    let text = std::fs::read_to_string(tools::root().join("docs/robustness.md"))?;
    let tests = std::fs::read_to_string(tools::root().join("tests/tests/chaos.rs"))?;
    let named: BTreeSet<&str> = named(&text).collect();
    for scenario in ALL {
        ensure!(named.contains(scenario.name), "{} is not in the table", scenario.name);
        let line = tests.lines().find(|line| line.contains(&format!(": \"{}\"", scenario.name)));
        let test = line.and_then(|line| line.trim().split(':').next()).context(scenario.name)?;
        ensure!(
            named.contains(&*format!("chaos::{test}")),
            "{test}, which runs {}, is not in the table",
            scenario.name
        );
    }
    Ok(())
}
