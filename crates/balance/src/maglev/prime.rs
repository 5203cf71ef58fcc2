//! Primes: only for those do all steps through a table reach every place.

/// As in Envoy.
const MAX: u32 = 5_000_011;

/// The first prime that is not below `size`, from 2 to 5,000,011.
pub(super) fn at_least(size: u32) -> u32 {
    (size.max(2)..MAX).find(|number| is_prime(*number)).unwrap_or(MAX)
}

fn is_prime(number: u32) -> bool {
    (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_become_primes() {
        let sizes = [0, 2, 4, 65_536, 65_537, 5_000_010, 5_000_011, u32::MAX].map(at_least);
        assert_eq!(sizes, [2, 2, 5, 65_537, 65_537, MAX, MAX, MAX]);
        assert!(is_prime(MAX));
    }
}
