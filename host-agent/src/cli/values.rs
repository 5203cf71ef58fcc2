//! Values on the command line: each parser says what is allowed when it refuses one.

use std::time::Duration;

use waypost_catalog::{Protocol, ServiceName};

use crate::config;

pub(super) fn service_name(text: &str) -> Result<ServiceName, String> {
    ServiceName::new(text).map_err(|error| error.to_string())
}

/// Name of an instance: a segment of a key.
pub(super) fn segment(text: &str) -> Result<String, String> {
    match ServiceName::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed".to_owned()),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "write a number and ms, s or m, such as 30s".to_owned())
}

/// How long something outlasts this process: the time to live of a lease.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = duration(text)?;
    let fits = ttl.subsec_nanos() == 0 && (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&ttl);
    if fits { Ok(ttl) } else { Err("allowed are whole seconds from 1s to 60m".to_owned()) }
}

pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "http1" => Ok(Protocol::Http1),
        "http2" => Ok(Protocol::Http2),
        _ => Err("allowed are http1 and http2".to_owned()),
    }
}
