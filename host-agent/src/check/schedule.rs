//! When to probe: the first time almost at once, then at the interval, never in step with other services.

use std::time::Duration;

const FIRST_WITHIN: Duration = Duration::from_millis(100);

/// Wait before the first probe. `random` is in 0..1.
pub fn first_delay(interval: Duration, random: f64) -> Duration {
    interval.min(FIRST_WITHIN).mul_f64(random)
}

/// Wait between two probes: the interval, as much as `jitter` less up to as much more. `random` is in 0..1.
pub fn next_delay(interval: Duration, jitter: Duration, random: f64) -> Duration {
    interval.saturating_sub(jitter) + (jitter.min(interval) * 2).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_probe_comes_within_a_tenth_of_a_second_and_never_after_an_interval() {
        assert_eq!(first_delay(Duration::from_secs(60), 0.0), Duration::ZERO);
        assert!(first_delay(Duration::from_secs(60), 0.999) < FIRST_WITHIN);
        assert!(first_delay(Duration::from_millis(10), 0.999) < Duration::from_millis(10));
    }

    #[test]
    fn later_probes_spread_around_the_interval() {
        let (interval, jitter) = (Duration::from_secs(2), Duration::from_millis(200));
        assert_eq!(next_delay(interval, jitter, 0.0), Duration::from_millis(1800));
        assert_eq!(next_delay(interval, jitter, 0.5), interval);
        assert!(next_delay(interval, jitter, 0.999) < Duration::from_millis(2200));
        assert_eq!(next_delay(interval, Duration::ZERO, 0.999), interval);
        assert_eq!(next_delay(interval, interval, 0.0), Duration::ZERO);
    }
}
