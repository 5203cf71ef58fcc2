//! Waiting for something that can only be asked for.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How often it is asked for.
const INTERVAL: Duration = Duration::from_millis(100);

/// What `ask` finds, or else what it says after the deadline.
pub(super) async fn poll<T, E>(
    limit: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Result<T, E>>,
) -> anyhow::Result<Result<T, E>> {
    let ends = Instant::now() + limit;
    loop {
        let found = ask().await?;
        if found.is_ok() || Instant::now() >= ends {
            return Ok(found);
        }
        sleep_until(ends.min(Instant::now() + INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_for_until_it_is_there_or_time_is_up() {
        let mut asked = 0;
        let found = poll(Duration::from_secs(1), async || {
            asked += 1;
            Ok(if asked == 3 { Ok(asked) } else { Err("not yet") })
        });
        assert_eq!(found.await.unwrap(), Ok(3));
        let started = Instant::now();
        let found = poll(Duration::from_secs(1), async || anyhow::Ok(Err::<(), _>("never"))).await;
        assert_eq!((found.unwrap(), started.elapsed()), (Err("never"), Duration::from_secs(1)));
    }
}
