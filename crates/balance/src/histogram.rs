//! Latencies by how often they were seen, on a scale that is fine for short and coarse for long ones.

use std::time::Duration;

/// Buckets below this many microseconds are one microsecond wide, and every power of two above has as many buckets.
const PARTS: u64 = 8;
const PARTS_LOG: u32 = PARTS.ilog2();
/// The power of two of microseconds, 67 s, from which on all is one.
const LONGEST_LOG: u32 = 26;

/// How often latencies were seen, from 1 us to 67 s, told with an error of at most 1/16.
///
/// A bucket's width is at most an eighth of the latencies in it, and its middle stands for it. Numbers of buckets and what
/// they mean are fixed, so that they can be sent and added up elsewhere. An empty one allocates nothing; one in use needs
/// 780 bytes at most.
///
/// ```
/// use std::time::Duration;
///
/// use waypost_balance::Histogram;
///
/// let mut histogram = Histogram::default();
/// (1..=100).for_each(|n| histogram.record(Duration::from_millis(n)));
/// let p99 = histogram.quantile(0.99).unwrap().as_secs_f64();
/// assert!((p99 - 0.099).abs() < 0.099 / 16.0);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// As far as the last that is in use.
    counts: Vec<u32>,
}

impl Histogram {
    /// How many buckets there are; they are numbered from 0.
    pub const BUCKETS: usize = (PARTS + (LONGEST_LOG - PARTS_LOG) as u64 * PARTS + 1) as usize;

    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        self.add(Self::bucket(latency), 1);
    }

    /// Counts some of the same bucket, as another histogram told them. A bucket that does not exist is the last one.
    /// Counts end at 2^32-1.
    pub fn add(&mut self, bucket: usize, count: u32) {
        let bucket = bucket.min(Self::BUCKETS - 1);
        if count > 0 && bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(of) = self.counts.get_mut(bucket) {
            *of = of.saturating_add(count);
        }
    }

    /// Adds all that another one counted.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(bucket, count)| self.add(bucket, count));
    }

    /// The buckets in which there is anything, and how much.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u32)> {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// Forgets everything but keeps its room.
    pub fn clear(&mut self) {
        self.counts.clear();
    }

    /// The latency that a part of all, 0 to 1, does not exceed; `None` if nothing was counted.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        // From the first to the last, whatever is asked for.
        let rank = ((part * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut sum = 0;
        let bucket = self.counts.iter().position(|count| {
            sum += u64::from(*count);
            sum >= rank
        })?;
        Some(Self::lower_bound(bucket).saturating_add(Self::lower_bound(bucket + 1)) / 2)
    }

    /// Sum of all, each as long as the middle of its bucket.
    pub fn sum(&self) -> Duration {
        let middle =
            |bucket| (Self::lower_bound(bucket).saturating_add(Self::lower_bound(bucket + 1)) / 2).as_secs_f64();
        let seconds: f64 = self.iter().map(|(bucket, count)| middle(bucket) * f64::from(count)).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// The bucket of a latency.
    pub fn bucket(latency: Duration) -> usize {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let Some(log) = micros.checked_ilog2().filter(|log| *log >= PARTS_LOG) else { return micros as usize };
        if log >= LONGEST_LOG {
            return Self::BUCKETS - 1;
        }
        let shift = log - PARTS_LOG;
        (u64::from(shift + 1) * PARTS + (micros >> shift) - PARTS) as usize
    }

    /// The shortest latency of a bucket: the end, too, of the one before it.
    pub fn lower_bound(bucket: usize) -> Duration {
        let bucket = bucket.min(Self::BUCKETS) as u64;
        let micros = match (bucket / PARTS).checked_sub(1) {
            None => bucket,
            Some(shift) => (PARTS + bucket % PARTS) << shift,
        };
        Duration::from_micros(micros)
    }
}

/// By what they count.
impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Histogram {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn latencies() -> impl Strategy<Value = Duration> {
        prop_oneof![0u64..100, 0u64..100_000, 0u64..67_000_000].prop_map(Duration::from_micros)
    }

    #[test]
    fn its_ends_are_where_they_are_said_to_be() {
        let bucket = Histogram::bucket;
        assert_eq!([0, 999].map(|nanos| bucket(Duration::from_nanos(nanos))), [0, 0]);
        assert_eq!(
            [1, 7, 8, 9, 15, 16, 17, 18].map(|us| bucket(Duration::from_micros(us))),
            [1, 7, 8, 9, 15, 16, 16, 17]
        );
        let last = Histogram::BUCKETS - 1;
        assert_eq!(Histogram::lower_bound(last), Duration::from_micros(1 << 26));
        assert_eq!([1 << 26, u64::MAX].map(|us| bucket(Duration::from_micros(us))), [last, last]);
        assert_eq!((bucket(Duration::from_micros((1 << 26) - 1)), bucket(Duration::MAX)), (last - 1, last));
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert!(Histogram::default().is_empty());
    }

    #[test]
    fn buckets_of_strangers_and_endless_counts_do_no_harm() {
        let mut histogram = Histogram::default();
        histogram.add(usize::MAX, u32::MAX);
        histogram.add(Histogram::BUCKETS, 7);
        histogram.add(3, 0);
        assert_eq!(histogram.iter().collect::<Vec<_>>(), [(Histogram::BUCKETS - 1, u32::MAX)]);
        assert!(histogram.quantile(f64::NAN).unwrap() > Duration::from_secs(67));
        assert!(histogram.sum() > Duration::from_secs(67));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_lies_between_its_bounds_and_is_narrow(latency in latencies()) {
            let bucket = Histogram::bucket(latency);
            let (low, high) = (Histogram::lower_bound(bucket), Histogram::lower_bound(bucket + 1));
            prop_assert!(low <= latency && latency < high);
            prop_assert!(high - low <= (low / 8).max(Duration::from_micros(1)));
        }

        #[test]
        fn quantiles_are_within_a_sixteenth(
            latencies in prop::collection::vec(latencies(), 1..200),
            part in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            latencies.iter().for_each(|latency| histogram.record(*latency));
            let mut sorted = latencies.clone();
            sorted.sort_unstable();
            let rank = ((part * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let (told, exact) = (histogram.quantile(part).unwrap(), sorted[rank - 1]);
            prop_assert!(told.abs_diff(exact) <= (exact / 16).max(Duration::from_nanos(500)), "{told:?}, {exact:?}");
        }

        #[test]
        fn what_is_sent_and_merged_is_as_if_counted_in_one(
            first in prop::collection::vec(latencies(), 0..50),
            second in prop::collection::vec(latencies(), 0..50),
        ) {
            let count = |latencies: &[Duration]| {
                let mut histogram = Histogram::default();
                latencies.iter().for_each(|latency| histogram.record(*latency));
                histogram
            };
            let mut merged = count(&first);
            let mut sent = Histogram::default();
            count(&second).iter().for_each(|(bucket, count)| sent.add(bucket, count));
            merged.merge(&sent);
            prop_assert_eq!(&merged, &count(&[first.clone(), second].concat()));
            prop_assert_eq!(merged.count() == 0, merged.is_empty());
            merged.clear();
            prop_assert!(merged.is_empty());
        }
    }
}
