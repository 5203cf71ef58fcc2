//! Splits: requests shared out among arms by weight.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{RequestView, cookie::cookie, json::Json, names, reader::Place};

/// One way that requests can go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arm<T> {
    /// Where to.
    pub target: T,
    /// Its share, relative to the other arms' weights; 0 for none.
    pub weight: u32,
}

/// What of a request decides on its arm, so that equal requests take the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The value of this header, whose name is in lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// At least one arm, and a weight above 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split<T> {
    first: Vec<Arm<T>>,
    last: Arm<T>,
    total: u64,
    sticky: Option<Sticky>,
}

impl<T> Split<T> {
    /// `None` without an arm, or if no arm has a weight above 0.
    pub fn new(mut arms: Vec<Arm<T>>, sticky: Option<Sticky>) -> Option<Self> {
        let total = arms.iter().map(|arm| u64::from(arm.weight)).sum();
        let last = arms.pop()?;
        (total > 0).then_some(Self { first: arms, last, total, sticky })
    }

    /// Its arms in the order of the document.
    pub fn arms(&self) -> impl Iterator<Item = &Arm<T>> {
        self.first.iter().chain([&self.last])
    }

    /// What makes it choose alike again.
    pub fn sticky(&self) -> Option<&Sticky> {
        self.sticky.as_ref()
    }

    /// The part of all requests that an arm gets, from 0 to 1.
    pub fn share(&self, arm: &Arm<T>) -> f64 {
        f64::from(arm.weight) / self.total as f64
    }

    /// An arm, each in exact proportion to its weight over all of `hash_or_random`. Arms keep their place in the order
    /// of the document, so where weights move a little, few hashes change their arm.
    pub fn choose(&self, hash_or_random: u64) -> &Arm<T> {
        // A part of the range from 0 to the total as large as that of the number's own range.
        let mut point = (u128::from(hash_or_random) * u128::from(self.total)) >> 64;
        for arm in &self.first {
            let weight = u128::from(arm.weight);
            if point < weight {
                return arm;
            }
            point -= weight;
        }
        &self.last
    }

    /// The arm of a request: by its hash if the split is sticky and the request has what is hashed, else by `random`.
    pub fn choose_for(&self, request: &mut impl RequestView, seed: u64, random: u64) -> &Arm<T> {
        let hash = self.sticky.as_ref().and_then(|sticky| sticky.hash(request, seed));
        self.choose(hash.unwrap_or(random))
    }
}

impl Sticky {
    pub(crate) fn read(place: &Place<'_>) -> Option<Self> {
        const FORM: &str = "write {\"header\": NAME} or {\"cookie\": NAME}";
        let mut fields = place.fields("an object, such as {\"header\": \"x-user\"}")?;
        let (header, cookie) = (fields.get("header"), fields.get("cookie"));
        let sticky = match (header, cookie) {
            (Some(name), None) => name.parsed(names::header).map(Self::Header),
            (None, Some(name)) => name.parsed(names::cookie).map(Self::Cookie),
            _ => fields.refuse(format!("one of the two is needed: {FORM}")),
        };
        fields.finish();
        sticky
    }

    pub(crate) fn to_json(&self) -> Json {
        match self {
            Self::Header(name) => Json::object([("header", Some(name.into()))]),
            Self::Cookie(name) => Json::object([("cookie", Some(name.into()))]),
        }
    }

    /// The hash of a request. `None` if it lacks what is hashed, or that is empty.
    ///
    /// Splits that follow one another need different seeds: all that took one arm of the first have hashes of one part
    /// of the range, and would take one arm of the second.
    pub fn hash(&self, request: &mut impl RequestView, seed: u64) -> Option<u64> {
        let hash = |part: &[u8]| (!part.is_empty()).then(|| xxh3_64_with_seed(part, seed));
        match self {
            Self::Header(name) => hash(&request.header(name)?),
            Self::Cookie(name) => hash(cookie(&request.header("cookie")?, name)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::testing::Request;

    fn split(weights: &[u32], sticky: Option<Sticky>) -> Option<Split<usize>> {
        let arms = weights.iter().enumerate().map(|(target, weight)| Arm { target, weight: *weight });
        Split::new(arms.collect(), sticky)
    }

    #[test]
    fn without_a_weight_there_is_no_split() {
        assert!(split(&[], None).is_none() && split(&[0, 0], None).is_none());
    }

    proptest! {
        #[test]
        fn each_arm_gets_its_part_of_the_numbers(weights in prop::collection::vec(any::<u32>(), 1..8)) {
            let Some(split) = split(&weights, None) else { return Ok(()) };
            // The arm of each point is that of the smallest number of it and of the largest.
            let total = u128::from(split.total);
            let mut begin = 0_u128;
            for (arm, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
                let end = begin + u128::from(*weight);
                let first = (begin << 64).div_ceil(total) as u64;
                let last = ((end << 64).div_ceil(total) - 1) as u64;
                prop_assert_eq!(split.choose(first).target, arm);
                prop_assert_eq!(split.choose(last).target, arm);
                begin = end;
            }
            let shares: f64 = split.arms().map(|arm| split.share(arm)).sum();
            prop_assert!((shares - 1.0).abs() < 1e-9);
        }

        #[test]
        fn more_for_one_arm_takes_nothing_from_it(random: u64, weight in 1_u32..99) {
            let before = split(&[100 - weight, weight], None).unwrap();
            let after = split(&[99 - weight, weight + 1], None).unwrap();
            if before.choose(random).target == 1 {
                prop_assert_eq!(after.choose(random).target, 1);
            }
        }
    }

    #[test]
    fn a_sticky_split_chooses_alike_for_equal_requests_and_at_random_for_others() {
        let split = split(&[1, 1], Some(Sticky::Header("x-user".into()))).unwrap();
        let mut arms = [0; 2];
        for user in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            let mut request = Request::default().with("x-user", user);
            let arm = split.choose_for(&mut request, 0, 0).target;
            assert_eq!(split.choose_for(&mut request, 0, u64::MAX).target, arm);
            arms[arm] += 1;
        }
        assert!(arms.iter().all(|count| *count > 0), "{arms:?}");
        let arm = |request: &mut Request, random| split.choose_for(request, 0, random).target;
        for request in [Request::default(), Request::default().with("x-user", "")] {
            assert_eq!((arm(&mut request.clone(), 0), arm(&mut request.clone(), u64::MAX)), (0, 1));
        }
    }

    #[test]
    fn splits_with_different_seeds_do_not_follow_one_another() {
        let split = split(&[1, 1], Some(Sticky::Cookie("sid".into()))).unwrap();
        let mut counts = [[0; 2]; 2];
        for user in 0..1_000 {
            let value: &'static str = format!("sid=u{user}").leak();
            let mut request = Request::default().with("cookie", value);
            let (one, other) = (split.choose_for(&mut request, 1, 0), split.choose_for(&mut request, 2, 0));
            counts[one.target][other.target] += 1;
        }
        assert!(counts.iter().flatten().all(|count| (200..300).contains(count)), "{counts:?}");
    }
}
