//! The path and query of a request, with names of any characters.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but what RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a request asks for: `/v1/` and what is added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    text: String,
    has_query: bool,
}

impl Path {
    /// Below `/v1/`, one segment each.
    pub fn of(segments: &[&str]) -> Self {
        let mut text = String::from("/v1");
        for segment in segments {
            // Writing to a string cannot fail.
            _ = write!(text, "/{}", utf8_percent_encode(segment, ENCODED));
        }
        Self { text, has_query: false }
    }

    /// With a value in its query, if there is one.
    pub fn with(mut self, name: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            let sign = if self.has_query { '&' } else { '?' };
            // Writing to a string cannot fail.
            _ = write!(self.text, "{sign}{name}={}", utf8_percent_encode(value, ENCODED));
            self.has_query = true;
        }
        self
    }

    /// As it is sent.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_characters_stay_one_segment() {
        assert_eq!(Path::of(&["locks", "jobs/nightly run"]).as_str(), "/v1/locks/jobs%2Fnightly%20run");
        let path = Path::of(&["services", "web.v2", "pick"]).with("tag", Some("a&b")).with("zone", None);
        assert_eq!(path.with("version", Some("1+2")).as_str(), "/v1/services/web.v2/pick?tag=a%26b&version=1%2B2");
    }
}
