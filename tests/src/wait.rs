//! Waiting for a condition, with a deadline and an error that says what was last seen.
use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::process::Ended;

const INTERVAL: Duration = Duration::from_millis(20);

/// Tries until `attempt` succeeds; past the deadline fails with `what` and the last attempt's error. An attempt that
/// finds its process [`Ended`] is the last one.
pub async fn eventually<T, F>(deadline: Duration, what: impl Display, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let start = Instant::now();
    loop {
        // A single attempt that hangs must not outlive the deadline.
        let left = deadline.saturating_sub(start.elapsed()).max(INTERVAL);
        let last = match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("no answer within {left:?}"),
        };
        if start.elapsed() >= deadline || last.is::<Ended>() {
            return Err(last.context(format!("waited {:?} for: {what}", start.elapsed())));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Checks over and over for `span`, and fails with the first failure.
pub async fn holds_for<F>(span: Duration, what: impl Display, mut check: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let start = Instant::now();
    while start.elapsed() < span {
        check().await.map_err(|error| error.context(format!("after {:?} no longer: {what}", start.elapsed())))?;
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}
