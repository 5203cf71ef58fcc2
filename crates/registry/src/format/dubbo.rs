//! What Dubbo's two registrations have in common: which protocols a request can be sent with, and Go's URL escaping.

use waypost_catalog::Protocol;

/// What a client takes for a provider that says no weight.
pub(super) const DEFAULT_WEIGHT: u32 = 100;
/// The protocol that a provider is written with: Triple, which is HTTP/1.1 and HTTP/2 (gRPC) on one port.
pub(super) const WRITTEN: &str = "tri";

/// Dubbo's protocols that are this one, best first. Its own, `dubbo`, is no HTTP.
pub(super) const fn schemes(protocol: Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Http1 => &["rest", "http", "tri"],
        Protocol::Http2 => &["tri", "grpc"],
    }
}

/// Text in which each byte but letters, digits and `-_.~` is `%XX`, and a space `+`.
pub(super) fn escape(text: &str) -> String {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let hex = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or('0');
    let mut escaped = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            _ => escaped.extend(['%', hex(byte >> 4), hex(byte & 15)]),
        }
    }
    escaped
}

/// The text that was escaped; nothing if it was not escaped like this.
pub(super) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => bytes.push(u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?),
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_escaped_as_go_does() {
        let url = "tri://10.0.0.5:20000/a.B?x=1&y=a b~";
        assert_eq!(escape(url), "tri%3A%2F%2F10.0.0.5%3A20000%2Fa.B%3Fx%3D1%26y%3Da+b~");
        assert_eq!(unescape("a%2fb+%C3%A4"), Some("a/b ä".to_owned()));
        for bad in ["%", "%4", "%zz", "%+1", "%FF"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_unescaped(text in any::<String>()) {
            prop_assert_eq!(unescape(&escape(&text)), Some(text));
        }

        #[test]
        fn nothing_makes_it_panic(text in "[%+0-9a-fA-F\\PC]{0,20}") {
            let _ = unescape(&text);
        }
    }
}
