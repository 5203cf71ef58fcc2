//! Exponential backoff with full jitter. Pure: the random number is passed in.

use std::time::Duration;

/// How long to wait before the next attempt.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// The first wait is at most `base`; each further one at most twice the one before, and never above `max`.
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, attempts: 0 }
    }

    /// The next wait: `random` (0 to 1) of the current bound, so that many waiters spread out evenly.
    pub fn next(&mut self, random: f64) -> Duration {
        let bound = self.base.saturating_mul(1 << self.attempts.min(20)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        bound.mul_f64(random.clamp(0.0, 1.0))
    }

    /// Begins anew: something worked.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_maximum_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let waits: Vec<u128> = (0..7).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_millis(), 50);
    }

    #[test]
    fn jitter_is_full_and_no_input_breaks_it() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        for random in [-1.0, 2.0, 0.5] {
            for _ in 0..100 {
                backoff.next(random);
            }
        }
    }
}
