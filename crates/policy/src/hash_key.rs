//! What of a request decides to which node it goes when equal requests are to go to the same.

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    RequestView,
    cookie::cookie,
    json::Json,
    names,
    reader::Place,
    request::{ip, query, without_query},
};

const FORM: &str = "write {\"header\": NAME}, {\"cookie\": NAME}, {\"query\": NAME}, \"source\" or \"path\"";

/// The part of a request that is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HashKey {
    /// The value of this header, whose name is in lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The value of this parameter of the query.
    Query(String),
    /// The address that the request comes from, without the port.
    Source,
    /// The path without the query.
    Path,
}

impl HashKey {
    pub(crate) fn read(place: &Place<'_>) -> Option<Self> {
        if !place.is_object() {
            return match place.json() {
                Json::Text(word) if word == "source" => Some(Self::Source),
                Json::Text(word) if word == "path" => Some(Self::Path),
                other => place.refuse(format!("{} is no key: {FORM}", other.described())),
            };
        }
        let mut fields = place.fields("an object")?;
        let header = fields.get("header");
        let cookie = fields.get("cookie");
        let query = fields.get("query");
        let key = match (header, cookie, query) {
            (Some(name), None, None) => name.parsed(names::header).map(Self::Header),
            (None, Some(name), None) => name.parsed(names::cookie).map(Self::Cookie),
            (None, None, Some(name)) => name.text_of(1..=256).map(Self::Query),
            _ => fields.refuse(format!("one key is needed: {FORM}")),
        };
        fields.finish();
        key
    }

    pub(crate) fn to_json(&self) -> Json {
        match self {
            Self::Header(name) => Json::object([("header", Some(name.into()))]),
            Self::Cookie(name) => Json::object([("cookie", Some(name.into()))]),
            Self::Query(name) => Json::object([("query", Some(name.into()))]),
            Self::Source => "source".into(),
            Self::Path => "path".into(),
        }
    }

    /// The hash of a request's part. `None` if the request has no such part, or an empty one: those would all go to one
    /// node, and are better spread.
    pub fn of(&self, request: &mut impl RequestView) -> Option<u64> {
        match self {
            Self::Header(name) => hash(&request.header(name)?),
            Self::Cookie(name) => hash(cookie(&request.header("cookie")?, name)?),
            Self::Query(name) => hash(&parameter(query(&request.path()?)?, name)?),
            Self::Path => hash(without_query(&request.path()?)),
            Self::Source => {
                let source = request.source()?;
                match ip(&source) {
                    Some(std::net::IpAddr::V4(ip)) => hash(&ip.octets()),
                    Some(std::net::IpAddr::V6(ip)) => hash(&ip.octets()),
                    None => hash(&source),
                }
            }
        }
    }
}

fn hash(part: &[u8]) -> Option<u64> {
    (!part.is_empty()).then(|| xxh3_64(part))
}

/// The first value of a parameter, decoded.
fn parameter<'q>(query: &'q [u8], name: &str) -> Option<Cow<'q, [u8]>> {
    query.split(|b| *b == b'&').find_map(|pair| {
        let mut parts = pair.splitn(2, |b| *b == b'=');
        let is_it = *decoded(parts.next()?) == *name.as_bytes();
        is_it.then(|| decoded(parts.next().unwrap_or_default()))
    })
}

/// With `%41` and `+` as what they stand for.
fn decoded(part: &[u8]) -> Cow<'_, [u8]> {
    if !part.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(part);
    }
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (first, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', ..) => out.push(b' '),
            (other, ..) => out.push(*other),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::testing::Request;

    fn hashed(key: &HashKey, mut request: Request) -> Option<u64> {
        key.of(&mut request)
    }

    #[test]
    fn equal_parts_have_equal_hashes_and_missing_or_empty_ones_none() {
        let request = |path| Request::get("a", path).with("x-user", "u").with("cookie", "sid=u");
        let (header, cookie) = (HashKey::Header("x-user".into()), HashKey::Cookie("sid".into()));
        assert_eq!(hashed(&header, request("/")), Some(xxh3_64(b"u")));
        assert_eq!(hashed(&cookie, request("/")), Some(xxh3_64(b"u")));
        assert_eq!(hashed(&header, Request::get("a", "/").with("x-user", "")), None);
        assert_eq!(hashed(&header, Request::get("a", "/")), None);
        assert_eq!(hashed(&cookie, Request::get("a", "/").with("cookie", "sid=")), None);
        assert_eq!(hashed(&HashKey::Path, request("/a?b=1")), Some(xxh3_64(b"/a")));
    }

    #[test]
    fn a_parameter_is_decoded() {
        let user = HashKey::Query("us er".into());
        for path in ["/?us+er=a%20b", "/?x=1&us%20er=a+b", "/a?us+er=%61%20b&us+er=z#f"] {
            assert_eq!(hashed(&user, Request::get("a", path)), Some(xxh3_64(b"a b")), "{path}");
        }
        for path in ["/", "/?", "/?us+er", "/?us+er=", "/?user=1", "/#?us+er=1"] {
            assert_eq!(hashed(&user, Request::get("a", path)), None, "{path}");
        }
        assert_eq!(*decoded(b"%4"), *b"%4");
        assert_eq!(*decoded(b"%zz%2B"), *b"%zz+");
    }

    #[test]
    fn a_source_counts_without_its_port() {
        let source = |source| hashed(&HashKey::Source, Request { source: Some(source), ..Request::default() });
        assert_eq!(source("10.0.0.1:1000"), source("10.0.0.1:2000"));
        assert_eq!(source("[::1]:1000"), source("::1"));
        assert_ne!(source("10.0.0.1:1000"), source("10.0.0.2:1000"));
        assert!(source("@/run/client.sock").is_some());
    }
}
