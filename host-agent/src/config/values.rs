//! Single values of the configuration: each parser says what is allowed when it refuses one.

use std::{fmt::Display, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use toml::de::DeValue;
use waypost_catalog::{Protocol, ServiceName};
use waypost_registry::format::Format;

use super::reader::{Parsed, wrong_type};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);

const DURATION_FORM: &str = "write a number and ms, s or m, such as \"2s\"";

pub(super) fn text(value: &DeValue<'_>) -> Parsed<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong_type("text in quotes", value))
}

pub(super) fn boolean(value: &DeValue<'_>) -> Parsed<bool> {
    value.as_bool().ok_or_else(|| wrong_type("true or false", value))
}

pub(super) fn integer<T>(allowed: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Parsed<T>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    move |value| {
        let form = || format!("a whole number from {} to {}", allowed.start(), allowed.end());
        let number = value.as_integer().ok_or_else(|| wrong_type(&form(), value))?;
        let parsed = i128::from_str_radix(number.as_str(), number.radix()).ok().and_then(|n| T::try_from(n).ok());
        parsed.filter(|n| allowed.contains(n)).ok_or_else(|| wrong_type(&form(), value))
    }
}

/// A share above 0, up to 1.
pub(super) fn share(value: &DeValue<'_>) -> Parsed<f64> {
    let number = match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(number) => number.as_str().parse().ok(),
        _ => None,
    };
    let fits = |share: &f64| *share > 0.0 && *share <= 1.0;
    number.filter(fits).ok_or_else(|| wrong_type("a share above 0 and up to 1, such as 0.5", value))
}

pub(super) fn duration(allowed: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Parsed<Duration> {
    move |value| {
        let Some(text) = value.as_str() else {
            return Err(format!("{}: {DURATION_FORM}", wrong_type("a duration", value)));
        };
        let parsed = parse_duration(text).ok_or_else(|| format!("{text:?} is no duration: {DURATION_FORM}"))?;
        if allowed.contains(&parsed) {
            return Ok(parsed);
        }
        let (low, high) = (format_duration(*allowed.start()), format_duration(*allowed.end()));
        Err(format!("{text:?} is out of range: allowed is {low} to {high}"))
    }
}

/// A duration of whole seconds.
pub(super) fn seconds(allowed: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Parsed<Duration> {
    let duration = duration(allowed);
    move |value| {
        let parsed = duration(value)?;
        let whole = parsed.subsec_nanos() == 0;
        whole
            .then_some(parsed)
            .ok_or_else(|| format!("{} is not whole seconds, which etcd's leases need", format_duration(parsed)))
    }
}

/// A number and `ms`, `s` or `m`, as in the file.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// As it is written in the file.
pub fn format_duration(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_owned(),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// Anything with a parser of its own, whose error says what is allowed.
pub(super) fn parsed<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Parsed<T> {
    text(value)?.parse().map_err(|error: T::Err| error.to_string())
}

pub(super) fn path(value: &DeValue<'_>) -> Parsed<PathBuf> {
    match text(value)? {
        path if path.is_empty() => Err("is empty: write a path".to_owned()),
        path => Ok(path.into()),
    }
}

pub(super) fn service_name(value: &DeValue<'_>) -> Parsed<ServiceName> {
    ServiceName::new(&text(value)?).map_err(|error| error.to_string())
}

/// A segment of a key: what a service name may hold.
pub(super) fn segment(value: &DeValue<'_>) -> Parsed<String> {
    check_segment(text(value)?)
}

pub(super) fn check_segment(text: String) -> Parsed<String> {
    match ServiceName::new(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(format!(
            "{text:?} cannot be part of a key: 1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed"
        )),
    }
}

/// A service's name, or the beginning of one and a `*`.
pub(super) fn service_pattern(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    let name = text.strip_suffix('*').unwrap_or(&text);
    if text == "*" || ServiceName::new(name).is_ok() {
        return Ok(text);
    }
    Err(format!("{text:?} is no pattern: write a service's name, or the beginning of one followed by *"))
}

pub(super) fn prefix(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    let fits = text.ends_with('/') && text.len() <= 1024 && !text.contains(char::is_control);
    if fits { Ok(text) } else { Err(format!("{text:?} is no prefix of keys: it ends in /, such as \"/services/\"")) }
}

/// A prefix that need not end in `/`.
pub(super) fn open_prefix(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    let fits = !text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control);
    if fits { Ok(text) } else { Err(format!("{text:?} is no prefix of keys, such as \"/services/orders-\"")) }
}

pub(super) fn format(value: &DeValue<'_>) -> Parsed<Format> {
    parsed(value)
}

pub(super) fn protocol(value: &DeValue<'_>) -> Parsed<Protocol> {
    match text(value)?.as_str() {
        "http1" => Ok(Protocol::Http1),
        "http2" => Ok(Protocol::Http2),
        other => Err(format!("{other:?} is no protocol: allowed are \"http1\" and \"http2\"")),
    }
}

/// `http://host:port` or `https://host:port`.
pub(super) fn endpoint(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    let uri = text.parse::<hyper::Uri>().ok();
    let fits = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.port().is_some()
            && matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("/"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    });
    if fits {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(format!("{text:?} is no endpoint: write its scheme, host and port, such as \"http://127.0.0.1:2379\""))
}

pub(super) fn loopback(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    let text = text(value)?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(address) => Err(format!("{address} is no loopback address: allowed are 127.0.0.0/8 and [::1]")),
        Err(_) => Err(format!("{text:?} is no address and port, such as \"127.0.0.1:9180\"")),
    }
}

/// The path of a check's request.
pub(super) fn request_path(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    let fits = text.starts_with('/') && text.parse::<hyper::Uri>().is_ok();
    if fits { Ok(text) } else { Err(format!("{text:?} is no request path: it begins with /, such as \"/healthz\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for wrong in ["", "5", "s", "-1s", "1.5s", "1 s", "5h", "99999999999999999999s", "400000000000000000m"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_formatted_duration_is_read_back_as_itself() {
        for ms in [0, 1, 500, 1_000, 1_500, 60_000, 90_000, 3_600_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
    }
}
