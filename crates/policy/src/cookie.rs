//! Cookies: read out of a request, and the one that keeps a client at its node.

use std::time::Duration;

use crate::{RequestView, duration::format_duration, json::Json, names, reader::Fields};

const SECOND: Duration = Duration::from_secs(1);
/// As long as browsers keep a cookie: 400 days.
const LONGEST: Duration = Duration::from_secs(400 * 24 * 3_600);

/// A cookie that keeps a client at its node, whatever comes or goes beside it.
///
/// Its value is the node's [key](waypost_catalog::model::node_key), which a client could make up as well: it chooses among
/// the nodes that the request may go to anyway, and means nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name.
    pub name: String,
    /// How long a client keeps it; `None`: until its session ends.
    pub ttl: Option<Duration>,
    /// The paths with which the client sends it.
    pub path: String,
}

impl StickyCookie {
    pub(crate) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let name = fields.require("cookie", "the cookie's name, such as \"waypost-node\"");
        let name = name.and_then(|name| name.parsed(names::cookie));
        let ttl = fields.get("ttl").and_then(|ttl| ttl.duration(SECOND..=LONGEST));
        let path = match fields.get("path") {
            Some(path) => path.parsed(names::cookie_path),
            None => Some("/".to_owned()),
        };
        fields.finish();
        Some(Self { name: name?, ttl, path: path? })
    }

    pub(crate) fn to_json(&self) -> Json {
        Json::object([
            ("cookie", Some((&self.name).into())),
            ("ttl", self.ttl.map(|ttl| format_duration(ttl).into())),
            ("path", (self.path != "/").then(|| (&self.path).into())),
        ])
    }

    /// The node's key that a request names.
    pub fn key(&self, request: &mut impl RequestView) -> Option<u64> {
        let header = request.header("cookie")?;
        let value = cookie(&header, &self.name)?;
        // Exactly as it is written below: nothing else is ours.
        let is_ours = value.len() == 16 && value.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        let text = std::str::from_utf8(value).ok().filter(|_| is_ours)?;
        u64::from_str_radix(text, 16).ok()
    }

    /// The value of the `set-cookie` header that sends a client back to the node of this key.
    pub fn set_cookie_header(&self, key: u64) -> String {
        let age = self.ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
        format!("{}={key:016x}; Path={}{age}; HttpOnly; SameSite=Lax", self.name, self.path)
    }
}

/// The first value of this name in a `cookie` header.
pub fn cookie<'h>(header: &'h [u8], name: &str) -> Option<&'h [u8]> {
    header.split(|b| *b == b';').find_map(|pair| {
        let equals = pair.iter().position(|b| *b == b'=')?;
        let (of, value) = pair.split_at_checked(equals)?;
        let value = value.get(1..)?.trim_ascii();
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (of.trim_ascii() == name.as_bytes()).then(|| bare.unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::testing::Request;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let header = b"asid=1; sid=2;sid=3 ; q=\"x=y\"; empty=; =v; flag";
        let value = |name| cookie(header, name).map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!(value("sid").as_deref(), Some("2"));
        assert_eq!(value("q").as_deref(), Some("x=y"));
        assert_eq!(value("empty").as_deref(), Some(""));
        for missing in ["id", "SID", "flag", "asid=1"] {
            assert_eq!(value(missing), None, "{missing}");
        }
    }

    #[test]
    fn what_is_set_is_read_back() {
        let sticky = StickyCookie { name: "node".into(), ttl: Some(SECOND * 90), path: "/api".into() };
        assert_eq!(
            sticky.set_cookie_header(0xab),
            "node=00000000000000ab; Path=/api; Max-Age=90; HttpOnly; SameSite=Lax"
        );
        let session = StickyCookie { ttl: None, ..sticky.clone() };
        assert_eq!(session.set_cookie_header(1), "node=0000000000000001; Path=/api; HttpOnly; SameSite=Lax");
        let key = |value| sticky.key(&mut Request::default().with("cookie", value));
        assert_eq!(key("a=b; node=00000000000000ab"), Some(0xab));
        for other in
            ["node=ab", "node=00000000000000AB", "node=+0000000000000ab", "node=", "other=00000000000000ab", ""]
        {
            assert_eq!(key(other), None, "{other}");
        }
    }
}
