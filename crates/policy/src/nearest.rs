//! What somebody may have meant by a name that is not known.

/// The known name that is nearest to `text`, if any is near.
pub(crate) fn nearest<'k>(text: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // A name this long is no slip of the finger, and comparing it would take its time.
    if text.len() > 64 {
        return None;
    }
    let near = known.into_iter().map(|known| (distance(text.as_bytes(), known.as_bytes()), known)).min()?;
    (near.0 <= 1 + near.1.len() / 4).then_some(near.1)
}

/// How many insertions, deletions, substitutions and swaps of neighbours lead from one to the other.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut before_a = None;
    for (i, &of_a) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        let mut before_b = None;
        for (j, &of_b) in b.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX - 1);
            let mut least = (at(&last, j + 1) + 1).min(at(&row, j) + 1).min(at(&last, j) + usize::from(of_a != of_b));
            if j > 0 && before_a == Some(of_b) && before_b == Some(of_a) {
                least = least.min(at(&before, j - 1) + 1);
            }
            row.push(least);
            before_b = Some(of_b);
        }
        before = std::mem::replace(&mut last, row);
        before_a = Some(of_a);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["strategy", "split", "subsets"];
        for (text, meant) in [
            ("stratgy", "strategy"),
            ("strategy ", "strategy"),
            ("split", "split"),
            ("slpit", "split"),
            ("subset", "subsets"),
        ] {
            assert_eq!(nearest(text, known), Some(meant), "{text}");
        }
        for text in ["weights", "", "é", &"split".repeat(20)] {
            assert_eq!(nearest(text, known), None, "{text}");
        }
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn the_distance_counts_single_changes() {
        for (a, b, expected) in
            [("", "", 0), ("abc", "", 3), ("abc", "acb", 1), ("kitten", "sitting", 3), ("ab", "ba", 1)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), expected, "{b} {a}");
        }
    }
}
