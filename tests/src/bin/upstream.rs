//! An upstream in a process of its own: `upstream --listen=IP:PORT --name=NAME`.
use anyhow::{Context, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let (mut listen, mut name) = (None, None);
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--listen", value)) => listen = Some(value.parse().context("--listen takes IP:PORT")?),
            Some(("--name", value)) => name = Some(value.to_owned()),
            _ => anyhow::bail!("unknown argument {argument}: allowed are --listen=IP:PORT and --name=NAME"),
        }
    }
    let listen = listen.context("--listen=IP:PORT is missing")?;
    waypost_tests::upstream::run(&name.context("--name=NAME is missing")?, listen).await
}
