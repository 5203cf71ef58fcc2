//! `waypost strategy`: strategies as WebAssembly components, made and tried by hand.

mod new;
mod pack;
mod publish;
mod test;

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::Subcommand;
use waypost_components::{Engine, Limits};

#[derive(Debug, Subcommand)]
pub(super) enum Strategy {
    /// Write a crate to start from
    New(new::New),
    /// Make a component of a core module, and make sure that it keeps to the contract
    Pack(pack::Pack),
    /// Put a component into etcd, where every agent finds it by its hash
    Publish(publish::Publish),
    /// Run a component on nodes of a file, and print what it decides
    Test(test::Test),
}

impl Strategy {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::New(new) => new.run(),
            Self::Pack(pack) => pack.run(),
            Self::Publish(publish) => publish.run().await,
            Self::Test(test) => test.run(),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// An engine for what its user chose to run: only its size is not limited.
fn engine(limits: Limits) -> anyhow::Result<Engine> {
    Ok(Engine::new(Limits { component: usize::MAX, ..limits })?)
}
