//! What may be a name: each check says what is allowed when it refuses one.

use waypost_catalog::ServiceName;

use crate::json::quoted;

/// What RFC 9110 calls a token: the name of a header or a cookie.
fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(fits)
}

/// The name of a header, in lower case.
pub(crate) fn header(text: &str) -> Result<String, String> {
    if is_token(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("{} is no name of a header: 1 to 256 letters, digits and !#$%&'*+-.^_`|~ are allowed", quoted(text)))
}

/// The name of a cookie.
pub(crate) fn cookie(text: &str) -> Result<String, String> {
    if is_token(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{} is no name of a cookie: 1 to 256 letters, digits and !#$%&'*+-.^_`|~ are allowed", quoted(text)))
}

/// The name of a subset.
pub(crate) fn subset(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-:~@".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no name of a subset: 1 to 64 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed",
        quoted(text)
    ))
}

/// The name of a service.
pub(crate) fn service(text: &str) -> Result<ServiceName, String> {
    ServiceName::new(text).map_err(|error| error.to_string())
}

/// The id of a route: a segment of a key.
pub(crate) fn route(text: &str) -> Result<String, String> {
    match ServiceName::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "{} is no id of a route: 1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed",
            quoted(text)
        )),
    }
}

/// The name of a component: of a file, so it leads nowhere else.
pub(crate) fn component(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if begins && text.len() <= 64 && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is no name of a component: up to 64 letters, digits and . _ - are allowed, the first a letter or digit",
        quoted(text)
    ))
}

/// A SHA-256 in hex.
pub(crate) fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(text.to_owned());
    }
    Err(format!("{} is no SHA-256: write 64 of the digits 0-9 and a-f", quoted(text)))
}

/// A method of HTTP.
pub(crate) fn method(text: &str) -> Result<String, String> {
    let is_method =
        |text: &str| (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
    if is_method(text) {
        return Ok(text.to_owned());
    }
    let upper = text.to_ascii_uppercase();
    let hint = if is_method(&upper) { format!("write {upper:?}") } else { "write one such as \"GET\"".to_owned() };
    Err(format!("{} is no method: {hint}", quoted(text)))
}

/// The beginning of a request's path, or all of it.
pub(crate) fn path(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_graphic() && b != b'?' && b != b'#';
    if text.starts_with('/') && text.len() <= 1024 && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    let why = if text.contains(['?', '#']) {
        "it ends before ? and #"
    } else if text.len() > 1024 {
        "up to 1024 bytes are allowed"
    } else if text.starts_with('/') {
        "write other characters as in a request, such as %20"
    } else {
        "it begins with /"
    };
    Err(format!("{} is no path of a request: {why}", quoted(text)))
}

/// The path of a cookie, which ends up in a header.
pub(crate) fn cookie_path(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_graphic() && b != b';';
    if text.starts_with('/') && text.len() <= 1024 && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!("{} is no path of a cookie: it begins with /, such as \"/\"", quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_known_in_lower_case_and_a_cookie_as_it_is() {
        assert_eq!(header("X-User"), Ok("x-user".into()));
        assert_eq!(cookie("Sid"), Ok("Sid".into()));
        for wrong in ["", ":path", "a b", "a;b", "a=b", "ä", "a\n"] {
            assert!(header(wrong).is_err() && cookie(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn no_component_is_outside_its_directory() {
        assert!(component("capacity-2.wasm").is_ok());
        for wrong in ["", ".", "..", "../x", "a/b", "-x", "a\0"] {
            assert!(component(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_be_right() {
        assert!(method("get").unwrap_err().ends_with("write \"GET\""));
        assert!(path("api").unwrap_err().ends_with("it begins with /"));
        assert!(path("/a?b").unwrap_err().ends_with("before ? and #"));
        assert!(path("/a b").unwrap_err().ends_with("such as %20"));
        assert!(cookie_path("/; HttpOnly").is_err());
        assert!(sha256(&"A".repeat(64)).is_err() && sha256(&"a0".repeat(32)).is_ok());
    }
}
