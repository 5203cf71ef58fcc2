//! Paths of a route: exact ones, beginnings, and patterns of segments.

use std::fmt;

use crate::{json::quoted, names};

/// What a request's path, without its query, has to be like. Case counts, and nothing is decoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// It is this.
    Exact(String),
    /// It begins so, as Envoy's `prefix` has it: `/api` also begins `/apiary`. For whole segments write `/api/`, or the
    /// pattern `/api/**`.
    Prefix(String),
    /// It has these segments; `rest`: and any, or none, behind them.
    Pattern {
        /// Between the slashes.
        segments: Vec<Segment>,
        /// Whether `**` stands at the end.
        rest: bool,
    },
}

/// A segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// This one; empty behind a slash at the end.
    Literal(String),
    /// Any one that is not empty, written as `*` or as `{name}`.
    Any(Option<String>),
}

impl PathMatch {
    /// Reads a pattern, such as `/users/{id}/orders/**`.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn pattern(text: &str) -> Result<Self, String> {
        let text = names::path(text)?;
        let inner = text.strip_prefix('/').unwrap_or_default();
        let (inner, rest) = match inner.strip_suffix("**") {
            Some("") => (None, true),
            Some(before) => match before.strip_suffix('/') {
                Some(before) => (Some(before), true),
                None => (Some(inner), false),
            },
            None => (Some(inner), false),
        };
        let segments = inner.into_iter().flat_map(|inner| inner.split('/')).map(|part| segment(part, &text));
        Ok(Self::Pattern { segments: segments.collect::<Result<_, _>>()?, rest })
    }

    /// Whether a path without query is so.
    pub fn takes(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(text) => path == text.as_bytes(),
            Self::Prefix(text) => path.starts_with(text.as_bytes()),
            Self::Pattern { segments, rest } => {
                let Some(inner) = path.strip_prefix(b"/") else { return false };
                let mut parts = inner.split(|b| *b == b'/');
                let all = segments.iter().all(|segment| parts.next().is_some_and(|part| segment.takes(part)));
                all && (*rest || parts.next().is_none())
            }
        }
    }

    /// The longest text that every path that is meant, with a zero byte at its end, begins with.
    pub(crate) fn beginning(&self) -> Vec<u8> {
        match self {
            Self::Exact(text) => ended(text.as_bytes()),
            Self::Prefix(text) => text.clone().into_bytes(),
            Self::Pattern { segments, rest } => {
                let mut begins = Vec::new();
                for segment in segments {
                    begins.push(b'/');
                    match segment {
                        Segment::Literal(text) => begins.extend_from_slice(text.as_bytes()),
                        Segment::Any(_) => return begins,
                    }
                }
                if !rest {
                    begins.push(0);
                }
                begins
            }
        }
    }
}

/// A path with an end that no other path has.
pub(crate) fn ended(path: &[u8]) -> Vec<u8> {
    let mut ended = Vec::with_capacity(path.len() + 1);
    ended.extend_from_slice(path);
    ended.push(0);
    ended
}

fn segment(part: &str, pattern: &str) -> Result<Segment, String> {
    if part == "*" {
        return Ok(Segment::Any(None));
    }
    let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
    if let Some(name) =
        name.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    {
        return Ok(Segment::Any(Some(name.to_owned())));
    }
    if part.contains(['*', '{', '}']) {
        return Err(format!(
            "{} is no segment of a pattern, in {}: write text, * or {{name}} for one segment, or ** for all at the end",
            quoted(part),
            quoted(pattern)
        ));
    }
    Ok(Segment::Literal(part.to_owned()))
}

impl Segment {
    fn takes(&self, part: &[u8]) -> bool {
        match self {
            Self::Literal(text) => part == text.as_bytes(),
            Self::Any(_) => !part.is_empty(),
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) | Self::Prefix(text) => f.write_str(text),
            Self::Pattern { segments, rest } => {
                for segment in segments {
                    match segment {
                        Segment::Literal(text) => write!(f, "/{text}")?,
                        Segment::Any(None) => f.write_str("/*")?,
                        Segment::Any(Some(name)) => write!(f, "/{{{name}}}")?,
                    }
                }
                f.write_str(if *rest { "/**" } else { "" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> PathMatch {
        PathMatch::pattern(text).unwrap()
    }

    #[test]
    fn a_pattern_is_shown_as_it_was_written() {
        for text in ["/", "/**", "/a", "/a/", "/a//b", "/*", "/{id}", "/users/{user_id}/orders/**", "/a.b-c/~x"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        for wrong in
            ["", "a", "**", "/a*", "/*a", "/**/a", "/a**", "/{}", "/{a", "/a}", "/{a b}", "/{a-b}", "/a?b", "/ ", "/ä"]
        {
            assert!(PathMatch::pattern(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_pattern_takes_segments() {
        let table: [(&str, &[&str], &[&str]); 6] = [
            ("/", &["/"], &["", "/a", "*"]),
            ("/**", &["/", "/a", "/a/b/"], &["", "*"]),
            ("/a/*", &["/a/b"], &["/a", "/a/", "/a/b/", "/a/b/c", "/b/b"]),
            ("/a/**", &["/a", "/a/", "/a/b", "/a/b/c"], &["/", "/ab", "/b"]),
            ("/a/{id}/c/**", &["/a/b/c", "/a/b/c/d"], &["/a/b", "/a//c", "/a/b/cd"]),
            ("/a/", &["/a/"], &["/a", "/a/b"]),
        ];
        for (text, taken, left) in table {
            taken.iter().for_each(|path| assert!(pattern(text).takes(path.as_bytes()), "{text} {path}"));
            left.iter().for_each(|path| assert!(!pattern(text).takes(path.as_bytes()), "{text} {path}"));
        }
    }

    #[test]
    fn every_path_that_is_taken_begins_as_it_is_said() {
        let matches = ["/", "/**", "/a/*", "/a/**", "/a/{id}/c/**", "/a/"].map(pattern).into_iter();
        let matches = matches.chain([PathMatch::Exact("/a".into()), PathMatch::Prefix("/a".into())]);
        for matching in matches {
            for path in ["", "/", "/a", "/a/", "/ab", "/a/b", "/a/b/c", "/a/b/c/d", "/b"] {
                let begins = ended(path.as_bytes()).starts_with(&matching.beginning());
                assert!(begins || !matching.takes(path.as_bytes()), "{matching} {path}");
            }
        }
    }
}
