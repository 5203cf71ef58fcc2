//! `waypost strategy publish`: a component goes into etcd, where every agent finds it by its content hash.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use waypost_components::{Limits, parts};

use super::{engine, read};
use crate::cli::{
    etcd_options::EtcdOptions,
    output::{self, text},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Publish {
    /// The component
    #[arg(value_name = "COMPONENT")]
    component: PathBuf,
    #[command(flatten)]
    etcd: EtcdOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    sha256: String,
    bytes: usize,
    keys: Vec<String>,
}

impl Publish {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let from = || self.component.display().to_string();
        let bytes = read(&self.component)?;
        // What no agent would run does not go into etcd.
        let component = engine(Limits::default())?.compile(&bytes).with_context(from)?;
        let mut client = self.etcd.connector()?.connect().await?;
        let mut keys = Vec::new();
        // A request each: together they are larger than etcd takes. Agents put them together by the hash, so it does not
        // matter what they see meanwhile.
        for (key, part) in parts::split(&bytes) {
            let key = key.path();
            client.put(key.as_str(), part, None).await.with_context(|| format!("cannot put {key}"))?;
            keys.push(key);
        }
        let document = Document { sha256: component.hash().to_string(), bytes: bytes.len(), keys };
        if self.json {
            output::print_json(&document)?;
            return Ok(());
        }
        let Document { sha256, bytes, keys } = document;
        let (size, first) = (text::bytes(bytes as u64), keys.first().map(String::as_str).unwrap_or_default());
        let keys = text::count(keys.len(), "key");
        let policy = format!("{{\"component\": {{\"sha256\": \"{sha256}\"}}}}");
        output::print(&format!("{size} in {keys} from {first} on; a policy names it so:\n{policy}\n"))?;
        Ok(())
    }
}
