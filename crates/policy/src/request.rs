//! A request as rules and policies see it.

use std::net::{IpAddr, SocketAddr};

/// A request whose parts are read one by one: each may be a call into the proxy, so nothing is read that no rule needs.
///
/// Where a request has several headers of one name, the first counts.
pub trait RequestView {
    /// The host that it is for (`:authority`, or `Host`), with its port if it names one.
    fn host(&mut self) -> Option<Vec<u8>>;
    /// Its path with the query.
    fn path(&mut self) -> Option<Vec<u8>>;
    /// Its method.
    fn method(&mut self) -> Option<Vec<u8>>;
    /// The value of a header, whose name is in lower case.
    fn header(&mut self, name: &str) -> Option<Vec<u8>>;
    /// The address that it comes from, with or without a port.
    fn source(&mut self) -> Option<Vec<u8>>;
}

impl<R: RequestView + ?Sized> RequestView for &mut R {
    fn host(&mut self) -> Option<Vec<u8>> {
        (**self).host()
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        (**self).path()
    }

    fn method(&mut self) -> Option<Vec<u8>> {
        (**self).method()
    }

    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        (**self).header(name)
    }

    fn source(&mut self) -> Option<Vec<u8>> {
        (**self).source()
    }
}

/// A request that is asked for each of its parts once, however many rules and policies look at it.
#[derive(Debug)]
pub struct Remembering<R> {
    request: R,
    host: Once,
    path: Once,
    method: Once,
    source: Once,
    headers: Vec<(Box<str>, Option<Vec<u8>>)>,
}

/// Not asked for yet, or the answer.
type Once = Option<Option<Vec<u8>>>;

impl<R: RequestView> Remembering<R> {
    /// Nothing is read yet.
    pub fn new(request: R) -> Self {
        Self { request, host: None, path: None, method: None, source: None, headers: Vec::new() }
    }
}

impl<R> Remembering<R> {
    /// The request itself.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.request
    }

    /// The request itself, and nothing of what was read.
    pub fn into_inner(self) -> R {
        self.request
    }
}

impl<R: RequestView> RequestView for Remembering<R> {
    fn host(&mut self) -> Option<Vec<u8>> {
        self.host.get_or_insert_with(|| self.request.host()).clone()
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        self.path.get_or_insert_with(|| self.request.path()).clone()
    }

    fn method(&mut self) -> Option<Vec<u8>> {
        self.method.get_or_insert_with(|| self.request.method()).clone()
    }

    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        if let Some((_, value)) = self.headers.iter().find(|(known, _)| **known == *name) {
            return value.clone();
        }
        let value = self.request.header(name);
        self.headers.push((name.into(), value.clone()));
        value
    }

    fn source(&mut self) -> Option<Vec<u8>> {
        self.source.get_or_insert_with(|| self.request.source()).clone()
    }
}

/// The path without query and fragment.
pub(crate) fn without_query(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|b| matches!(b, b'?' | b'#'));
    end.and_then(|end| path.get(..end)).unwrap_or(path)
}

/// The query, without the question mark.
pub(crate) fn query(path: &[u8]) -> Option<&[u8]> {
    let path = path.split(|b| *b == b'#').next()?;
    let begin = path.iter().position(|b| *b == b'?')?;
    path.get(begin + 1..)
}

/// The host without its port.
pub(crate) fn without_port(host: &[u8]) -> &[u8] {
    let end = match host.first() {
        Some(b'[') => host.iter().position(|b| *b == b']').map(|bracket| bracket + 1),
        _ => host.iter().position(|b| *b == b':'),
    };
    end.and_then(|end| host.get(..end)).unwrap_or(host)
}

/// The IP address of a source.
pub(crate) fn ip(source: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(source).ok()?;
    let address = text.parse::<SocketAddr>().map(|address| address.ip());
    address.or_else(|_| text.parse()).ok().map(|ip: IpAddr| ip.to_canonical())
}

#[cfg(test)]
pub(crate) mod testing {
    //! A request that is written down, and counts what is read of it.

    use super::*;

    #[derive(Clone, Debug, Default)]
    pub(crate) struct Request {
        pub(crate) host: Option<&'static str>,
        pub(crate) path: Option<&'static str>,
        pub(crate) method: Option<&'static str>,
        pub(crate) headers: Vec<(&'static str, &'static str)>,
        pub(crate) source: Option<&'static str>,
        /// What was read, in order.
        pub(crate) read: Vec<String>,
    }

    impl Request {
        pub(crate) fn get(host: &'static str, path: &'static str) -> Self {
            Self { host: Some(host), path: Some(path), method: Some("GET"), ..Self::default() }
        }

        pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
            self.headers.push((name, value));
            self
        }

        fn note(&mut self, what: &str, value: Option<&'static str>) -> Option<Vec<u8>> {
            self.read.push(what.to_owned());
            value.map(|value| value.as_bytes().to_vec())
        }
    }

    impl RequestView for Request {
        fn host(&mut self) -> Option<Vec<u8>> {
            self.note("host", self.host)
        }

        fn path(&mut self) -> Option<Vec<u8>> {
            self.note("path", self.path)
        }

        fn method(&mut self) -> Option<Vec<u8>> {
            self.note("method", self.method)
        }

        fn header(&mut self, name: &str) -> Option<Vec<u8>> {
            let value = self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            self.note(name, value)
        }

        fn source(&mut self) -> Option<Vec<u8>> {
            self.note("source", self.source)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::Request, *};

    #[test]
    fn each_part_is_asked_for_once_also_where_it_is_missing() {
        let mut request = Request::get("a", "/").with("x", "1");
        let mut remembering = Remembering::new(&mut request);
        for _ in 0..2 {
            assert_eq!(remembering.host(), Some(b"a".to_vec()));
            assert_eq!(remembering.path(), Some(b"/".to_vec()));
            assert_eq!(remembering.method(), Some(b"GET".to_vec()));
            assert_eq!(remembering.header("x"), Some(b"1".to_vec()));
            assert_eq!(remembering.header("y"), None);
            assert_eq!(remembering.source(), None);
        }
        assert_eq!(request.read, ["host", "path", "method", "x", "y", "source"]);
    }

    #[test]
    fn parts_of_parts_are_found() {
        assert_eq!(without_query(b"/a?b#c"), b"/a");
        assert_eq!(without_query(b"/a#c?b"), b"/a");
        assert_eq!(query(b"/a?b?c#d"), Some(&b"b?c"[..]));
        assert_eq!(query(b"/a#d?b"), None);
        for (host, expected) in
            [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("[", "["), ("", "")]
        {
            assert_eq!(without_port(host.as_bytes()), expected.as_bytes(), "{host}");
        }
        for source in ["10.0.0.1:80", "10.0.0.1", "[::ffff:10.0.0.1]:80"] {
            assert_eq!(ip(source.as_bytes()), Some([10, 0, 0, 1].into()), "{source}");
        }
        assert_eq!(ip(b"@/run/a.sock"), None);
    }
}
