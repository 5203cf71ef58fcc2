//! Logs: to stderr, one event per line with its fields, filtered by `WAYPOST_LOG` or `RUST_LOG`.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// Starts logging. A filter that does not parse is an error, so that no log is missed by a typing mistake.
///
/// # Errors
/// The variable and what is wrong with it.
pub fn start() -> anyhow::Result<()> {
    let filter = match ["WAYPOST_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)))
    {
        Some((name, filter)) => EnvFilter::try_new(&filter).map_err(|error| {
            anyhow::anyhow!("{name}={filter:?}: {error}; write a filter such as \"info,waypost_agent=debug\"")
        })?,
        None => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // Where stderr is broken, saying so there would be a panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}
