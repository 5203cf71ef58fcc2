//! Where the commands run.

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};

/// For the agent.
pub(super) fn many_threads() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Does one command's work.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?.block_on(work)
}
