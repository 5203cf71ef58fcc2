//! Slow start: a new node gets a growing part of its weight.

use std::time::Duration;

/// Per mille of its weight that a node gets this long after it became ready, by Envoy's own formula:
/// max(min_share, (elapsed / window) ^ (1 / aggression)), all of it once the window has passed.
///
/// `aggression` 1 grows evenly, above 1 faster at first, below 1 slower at first; what is no number above 0 counts as 1.
/// `min_share` is in percent. As in Envoy, `elapsed` counts as at least one millisecond.
///
/// ```
/// use std::time::Duration;
///
/// use waypost_balance::slow_start;
///
/// let share = |seconds| slow_start(Duration::from_secs(seconds), Duration::from_secs(60), 1.0, 10);
/// assert_eq!([share(0), share(3), share(30), share(60), share(90)], [100, 100, 500, 1000, 1000]);
/// ```
pub fn slow_start(elapsed: Duration, window: Duration, aggression: f64, min_share: u8) -> u16 {
    if elapsed >= window {
        return 1000;
    }
    let time = elapsed.max(Duration::from_millis(1)).as_secs_f64() / window.as_secs_f64();
    let grown = if aggression > 0.0 { time.powf(1.0 / aggression) } else { time };
    let share = grown.max(f64::from(min_share) / 100.0).min(1.0);
    (share * 1000.0).round() as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn aggression_bends_the_curve() {
        let share = |aggression| slow_start(Duration::from_secs(15), Duration::from_secs(60), aggression, 1);
        assert_eq!([share(1.0), share(2.0), share(0.5), share(0.0), share(f64::NAN)], [250, 500, 63, 250, 250]);
    }

    proptest! {
        #[test]
        fn shares_only_grow_from_the_least_to_all(
            window in 1u64..1_000_000,
            first in 0.0f64..1.0,
            second in 0.0f64..1.0,
            aggression in 0.1f64..10.0,
            min_share in 0u8..=100,
        ) {
            let window = Duration::from_millis(window);
            let share = |part: f64| slow_start(window.mul_f64(part), window, aggression, min_share);
            let (early, late) = (share(first.min(second)), share(first.max(second)));
            prop_assert!(early >= u16::from(min_share) * 10 && early <= late && late <= 1000);
            prop_assert_eq!(slow_start(window, window, aggression, min_share), 1000);
        }
    }
}
