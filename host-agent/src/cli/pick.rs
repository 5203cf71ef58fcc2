//! `waypost pick`: one healthy node of a service.

use clap::Args;
use waypost_balance::{CHOICES, Picker, Strategy, UnknownStrategy};
use waypost_catalog::{Catalog, Node, ServiceName};

use super::{
    exit::Exit,
    nodes::Conditions,
    output,
    source::{Source, SourceOptions, told},
    values,
};
use crate::{
    api::{
        filter::Filter,
        types::{Pick as Picked, PickQuery},
    },
    client::Path,
};

#[derive(Debug, Args)]
pub(super) struct Pick {
    /// The service
    #[arg(value_name = "SERVICE", value_parser = values::service_name)]
    service: ServiceName,
    /// How to choose: random, weighted-random, round-robin or weighted-round-robin
    #[arg(long, value_name = "STRATEGY", default_value_t, value_parser = plain)]
    strategy: Strategy,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    source: SourceOptions,
    /// Print JSON, with other nodes to go to if that one fails
    #[arg(long)]
    json: bool,
}

impl Pick {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { service, strategy, conditions: Conditions { tag, zone, version }, source, json } = self;
        let picked = match source.source()? {
            Source::Agent(client) => {
                let path = Path::of(&["services", &service, "pick"]).with("strategy", Some(strategy.as_str()));
                let path = path.with("tag", tag.as_deref()).with("zone", zone.as_deref());
                client.get(&path.with("version", version.as_deref())).await.map_err(told)?
            }
            source @ Source::Etcd(_) => {
                let catalog = source.catalog(Some(&service)).await?;
                let filter = Filter::from(PickQuery { strategy: None, tag, zone, version });
                choose(&catalog, &service, strategy, &filter, || fastrand::u64(..))?
            }
        };
        if json {
            output::print_json(&picked)?
        } else {
            output::print(&format!("{}\n", picked.node.address))?
        };
        Ok(())
    }
}

/// A strategy that a single pick can follow.
fn plain(name: &str) -> Result<Strategy, String> {
    let strategy: Strategy = name.parse().map_err(|error: UnknownStrategy| error.to_string())?;
    match strategy.needs() {
        None => Ok(strategy),
        Some(need) => {
            let names = Strategy::plain_names();
            Err(format!("{strategy} needs {need}, which a single pick does not tell: allowed are {names}"))
        }
    }
}

/// A node, and others to go to if it fails: each picked as if those before it were not there.
fn choose(
    catalog: &Catalog,
    name: &ServiceName,
    strategy: Strategy,
    filter: &Filter,
    mut random: impl FnMut() -> u64,
) -> anyhow::Result<Picked> {
    let service = catalog.services().get(name);
    let service = service.ok_or_else(|| Exit::not_there(format!("no node of service {name} is known")))?;
    let mut candidates: Vec<&Node> = service.nodes().filter(|node| filter.takes(node)).collect();
    let mut chosen = Vec::new();
    while chosen.len() < CHOICES {
        let picker = Picker::new(strategy, candidates.iter().map(|node| node.weight), random());
        let Some(index) = picker.pick(random()) else { break };
        chosen.push(candidates.swap_remove(index).into());
    }
    if chosen.is_empty() {
        return Err(Exit::not_there(format!("{name} has no healthy node that meets the conditions")));
    }
    let node = chosen.remove(0);
    Ok(Picked { service: name.to_string(), strategy: strategy.to_string(), node, alternatives: chosen })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use waypost_catalog::Health;

    use super::*;

    #[test]
    fn a_strategy_that_a_single_pick_cannot_follow_is_refused_with_the_reason() {
        assert_eq!(plain("random"), Ok(Strategy::Random));
        assert!(plain("best").unwrap_err().contains("is no strategy"));
        for strategy in Strategy::ALL.into_iter().filter(|strategy| !Strategy::PLAIN.contains(strategy)) {
            let error = plain(strategy.as_str()).unwrap_err();
            assert!(error.starts_with(&format!("{strategy} needs")) && error.contains("round-robin"), "{error}");
        }
    }

    #[test]
    fn only_healthy_nodes_are_picked_and_each_once() {
        let web = ServiceName::new("web").unwrap();
        let node = |port| Node::at(([10, 0, 0, 1], port).into());
        let mut nodes: Vec<Node> = (1..=4).map(node).collect();
        nodes.push(Node { health: Health::Critical, ..node(5) });
        nodes.push(Node { weight: 0, ..node(6) });
        let catalog = Catalog::default().updated([(web.clone(), nodes)]).0.unwrap();
        let filter = Filter::from(PickQuery::default());
        for strategy in Strategy::PLAIN {
            let mut random = fastrand::Rng::with_seed(7);
            let picked = choose(&catalog, &web, strategy, &filter, || random.u64(..)).unwrap();
            assert_eq!((picked.service.as_str(), picked.strategy), ("web", strategy.to_string()));
            let ports: BTreeSet<u16> =
                picked.alternatives.iter().chain([&picked.node]).map(|node| node.address.port()).collect();
            assert!(ports.len() == CHOICES && ports.iter().all(|port| *port <= 4), "{strategy}: {ports:?}");
        }
        let nobody = Filter::from(PickQuery { zone: Some("moon".into()), ..PickQuery::default() });
        assert!(
            choose(&catalog, &web, Strategy::Random, &nobody, || 1).unwrap_err().to_string().contains("no healthy")
        );
    }
}
