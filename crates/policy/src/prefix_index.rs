//! Finds, among many texts, all that another text begins with.
//!
//! The texts are sorted, and each knows the longest other one that it begins with, its parent. Of a text that is looked
//! for, every beginning is among the greatest text that is not above it and that one's ancestors: whatever lies between a
//! beginning and the text begins with the beginning, too. So one binary search finds them all.

use std::collections::BTreeMap;

/// Texts, each with a value.
#[derive(Clone, Debug)]
pub(crate) struct PrefixIndex<T>(Vec<Entry<T>>);

#[derive(Clone, Debug)]
struct Entry<T> {
    text: Box<[u8]>,
    parent: Option<usize>,
    value: T,
}

impl<T> PrefixIndex<T> {
    pub(crate) fn new(texts: BTreeMap<Vec<u8>, T>) -> Self {
        let mut entries: Vec<Entry<T>> = Vec::with_capacity(texts.len());
        for (text, value) in texts {
            // The one before is the greatest below this one.
            let mut parent = entries.len().checked_sub(1);
            while let Some(entry) = parent.and_then(|index| entries.get(index)) {
                if text.starts_with(&entry.text) {
                    break;
                }
                parent = entry.parent;
            }
            entries.push(Entry { text: text.into(), parent, value });
        }
        Self(entries)
    }

    /// The value of each text that this one begins with, from the longest to the shortest.
    pub(crate) fn beginnings<'i>(&'i self, text: &'i [u8]) -> impl Iterator<Item = &'i T> {
        let mut next = self.0.partition_point(|entry| *entry.text <= *text).checked_sub(1);
        // An ancestor of a beginning is one as well: from the first on nothing needs to be compared.
        let mut begun = false;
        std::iter::from_fn(move || {
            loop {
                let entry = self.0.get(next?)?;
                next = entry.parent;
                begun = begun || text.starts_with(&entry.text);
                if begun {
                    return Some(&entry.value);
                }
            }
        })
    }

    /// Whether there is any text but the empty one, so that which text is looked for matters.
    pub(crate) fn distinguishes(&self) -> bool {
        self.0.iter().any(|entry| !entry.text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_beginnings_are_found_from_the_longest_on(
            texts in prop::collection::btree_set("[ab]{0,5}", 0..24),
            text in "[ab]{0,7}",
        ) {
            let index = PrefixIndex::new(texts.iter().map(|text| (text.clone().into_bytes(), text.clone())).collect());
            let found: Vec<&String> = index.beginnings(text.as_bytes()).collect();
            let mut expected: Vec<&String> = texts.iter().filter(|known| text.starts_with(*known)).collect();
            expected.sort_by_key(|known| std::cmp::Reverse(known.len()));
            prop_assert_eq!(found, expected);
        }
    }
}
