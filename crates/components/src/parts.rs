//! Components in etcd, by content hash: `/waypost/components/<sha256>`, or in parts below it.
//!
//! etcd takes no request above 1.5 MiB, and a component may be larger. So it is either the value of
//! `/waypost/components/<sha256>`, or cut into the values of `/waypost/components/<sha256>/0`, `/1` and so on. Whether
//! all parts are there, in the right order and undamaged, is what the hash tells; nothing else has to be written down.
//!
//! Pure: the keys and values are passed in.

use std::collections::BTreeMap;

use crate::hash::Hash;

/// Where components are, in etcd.
pub const PREFIX: &str = "/waypost/components/";
/// Size of the parts that [`split`] makes: below etcd's limit, with room for key and transaction.
pub const PART_BYTES: usize = 1 << 20;

/// What a key below [`PREFIX`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A whole component.
    Whole(Hash),
    /// The part of this number.
    Part(Hash, u32),
}

impl Key {
    /// Reads a key, given without [`PREFIX`]. `None` if it is neither.
    pub fn parse(rest: &str) -> Option<Self> {
        match rest.split_once('/') {
            None => rest.parse().ok().map(Self::Whole),
            Some((hash, number)) => {
                // One way to write a number: two keys for one part would contradict each other.
                let digits = number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
                Some(Self::Part(hash.parse().ok()?, number.parse().ok().filter(|_| digits)?))
            }
        }
    }

    /// The key, with [`PREFIX`].
    pub fn path(&self) -> String {
        match self {
            Self::Whole(hash) => format!("{PREFIX}{hash}"),
            Self::Part(hash, number) => format!("{PREFIX}{hash}/{number}"),
        }
    }
}

/// Why the values of a component's keys give no component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// There are none.
    #[error("there is no component of that hash")]
    Nothing,
    /// A part in their midst is missing.
    #[error("part {0} is missing, and later ones are there")]
    Gap(u32),
    /// They are too many bytes.
    #[error("the parts have {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// What they have.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Not what was put there, or not yet all of it.
    #[error("SHA-256 of the {bytes} bytes in {parts} parts is {found}: parts are missing at the end, or damaged")]
    Mismatch {
        /// Number of parts.
        parts: usize,
        /// Bytes of them all.
        bytes: usize,
        /// What these bytes hash to.
        found: Hash,
    },
}

/// The keys and values that a component is put under: one, or several if it is larger than [`PART_BYTES`].
pub fn split(bytes: &[u8]) -> Vec<(Key, &[u8])> {
    let hash = Hash::of(bytes);
    if bytes.len() <= PART_BYTES {
        return vec![(Key::Whole(hash), bytes)];
    }
    (0..).zip(bytes.chunks(PART_BYTES)).map(|(number, part)| (Key::Part(hash, number), part)).collect()
}

/// The component of this hash, from the values below its keys. A whole one that is right needs no parts.
///
/// # Errors
/// [`JoinError`].
pub fn join<V: AsRef<[u8]>>(
    hash: Hash,
    whole: Option<V>,
    parts: &BTreeMap<u32, V>,
    limit: usize,
) -> Result<Vec<u8>, JoinError> {
    let whole = whole.as_ref().map(AsRef::as_ref);
    match whole {
        Some(bytes) if Hash::of(bytes) == hash => return within(bytes.len(), limit).map(|()| bytes.to_vec()),
        Some(bytes) if parts.is_empty() => {
            return Err(JoinError::Mismatch { parts: 1, bytes: bytes.len(), found: Hash::of(bytes) });
        }
        None if parts.is_empty() => return Err(JoinError::Nothing),
        _ => {}
    }
    if let Some((expected, _)) = (0..).zip(parts.keys()).find(|(expected, number)| expected != *number) {
        return Err(JoinError::Gap(expected));
    }
    within(parts.values().map(|part| part.as_ref().len()).sum(), limit)?;
    let mut bytes = Vec::new();
    parts.values().for_each(|part| bytes.extend_from_slice(part.as_ref()));
    let found = Hash::of(&bytes);
    if found == hash {
        return Ok(bytes);
    }
    Err(JoinError::Mismatch { parts: parts.len(), bytes: bytes.len(), found })
}

fn within(bytes: usize, limit: usize) -> Result<(), JoinError> {
    if bytes > limit { Err(JoinError::TooLarge { bytes, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 32 << 20;

    fn hash() -> Hash {
        Hash::of(b"abcdef")
    }

    fn parts(values: &[(u32, &'static str)]) -> BTreeMap<u32, &'static [u8]> {
        values.iter().map(|(number, value)| (*number, value.as_bytes())).collect()
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        for key in [Key::Whole(hash()), Key::Part(hash(), 0), Key::Part(hash(), 17), Key::Part(hash(), u32::MAX)] {
            assert_eq!(Key::parse(key.path().strip_prefix(PREFIX).unwrap()), Some(key));
        }
        for rest in ["", "abc", "abc/0", &format!("{}/", hash()), &format!("{}/00", hash()), &format!("{}/+1", hash())]
        {
            assert_eq!(Key::parse(rest), None, "{rest}");
        }
    }

    #[test]
    fn parts_are_joined_in_the_order_of_their_numbers_only_when_all_are_there() {
        let join = |values| join(hash(), None, &parts(values), LIMIT);
        assert_eq!(join(&[(1, "cd"), (0, "ab"), (2, "ef")]).unwrap(), b"abcdef");
        assert_eq!(join(&[]), Err(JoinError::Nothing));
        assert_eq!(join(&[(0, "ab"), (2, "ef")]), Err(JoinError::Gap(1)));
        assert_eq!(join(&[(1, "cd"), (2, "ef")]), Err(JoinError::Gap(0)));
        let error = join(&[(0, "ab"), (1, "cd")]).unwrap_err();
        assert_eq!(error, JoinError::Mismatch { parts: 2, bytes: 4, found: Hash::of(b"abcd") });
    }

    #[test]
    fn a_whole_one_counts_if_it_is_right_and_parts_otherwise() {
        let whole = |bytes: &'static str| Some(bytes.as_bytes());
        let all = parts(&[(0, "abc"), (1, "def")]);
        assert_eq!(join(hash(), whole("abcdef"), &parts(&[(7, "x")]), LIMIT).unwrap(), b"abcdef");
        assert_eq!(join(hash(), whole("damaged"), &all, LIMIT).unwrap(), b"abcdef");
        assert!(matches!(join(hash(), whole("damaged"), &parts(&[]), LIMIT), Err(JoinError::Mismatch { .. })));
        assert_eq!(join(hash(), whole("abcdef"), &all, 5), Err(JoinError::TooLarge { bytes: 6, limit: 5 }));
        assert_eq!(join(hash(), None, &all, 5), Err(JoinError::TooLarge { bytes: 6, limit: 5 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_is_split_is_joined(bytes in 0..4 * PART_BYTES, seed: u8) {
            let bytes: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8 ^ seed).collect();
            let mut whole = None;
            let mut parts = BTreeMap::new();
            for (key, value) in split(&bytes) {
                prop_assert!(value.len() <= PART_BYTES);
                match key {
                    Key::Whole(_) => whole = Some(value),
                    Key::Part(_, number) => _ = parts.insert(number, value),
                }
            }
            prop_assert_eq!(join(Hash::of(&bytes), whole, &parts, LIMIT), Ok(bytes));
        }
    }
}
