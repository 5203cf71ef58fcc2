//! What a check asks, and what it takes for an answer.

use std::{ops::RangeInclusive, path::PathBuf};

use hyper::{
    HeaderMap, Method,
    header::{HOST, HeaderName, HeaderValue},
    http::uri::Authority,
};
use tokio_rustls::rustls::pki_types::ServerName;
use toml::de::DeValue;

use super::{
    reader::{Parsed, Section, wrong_type},
    values,
};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Whether a request is answered as expected.
    Http(Box<HttpProbe>),
    /// Whether a port accepts a connection.
    Tcp {
        /// Which one, if not that of the service.
        port: Option<u16>,
    },
    /// Whether gRPC's health protocol says that it serves.
    Grpc(GrpcProbe),
    /// Whether a command ends with exit status 0.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
    },
}

/// A request, and what its answer has to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// The port, if not that of the service.
    pub port: Option<u16>,
    /// TLS, if it is spoken.
    pub tls: Option<CheckTls>,
    /// The request's method.
    pub method: Method,
    /// The path, beginning with `/`.
    pub path: String,
    /// Whom it asks for, if not whom it connects to.
    pub host: Option<Authority>,
    /// Its other headers.
    pub headers: HeaderMap,
    /// The answer's status is in one of these.
    pub expect_status: Vec<RangeInclusive<u16>>,
    /// What the answer's body is like.
    pub expect_body: Option<ExpectedBody>,
}

/// What an answer's body is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedBody {
    /// This is somewhere in it.
    Holding(String),
    /// This matches somewhere in it.
    Matching(Pattern),
}

/// A regular expression. Equal to another if it is written alike.
#[derive(Clone, Debug)]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// Whether it matches somewhere in a text.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

/// A question by gRPC's health protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcProbe {
    /// The port, if not that of the service.
    pub port: Option<u16>,
    /// TLS, if it is spoken.
    pub tls: Option<CheckTls>,
    /// Of which gRPC service; empty: of the whole server.
    pub service: String,
}

/// How TLS is spoken with a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckTls {
    /// Whose certificates are taken.
    pub verify: Verify,
    /// The name that the certificate is for, if that is not the address.
    pub server_name: Option<ServerName<'static>>,
}

/// Whose certificates are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Those of the authorities in this PEM file.
    Authority(PathBuf),
    /// Anybody's.
    Nothing,
}

/// Reads the keys of every type, so that one of another type is known for what it is. `None` only if something was
/// noted as wrong.
pub(super) fn probe(section: &Section<'_>, kind: Option<&str>) -> Option<Probe> {
    let port = section.get("port", values::integer(1..=u16::MAX));
    let tls = tls(section, kind);
    let http = http(section, port, tls.clone());
    let service = section.get("service", values::text).unwrap_or_default();
    let command = section.list("command", values::text);
    match kind? {
        "http" => Some(Probe::Http(Box::new(http))),
        "grpc" => Some(Probe::Grpc(GrpcProbe { port, tls, service })),
        "exec" => program(section, command),
        _ => Some(Probe::Tcp { port }),
    }
}

fn program(section: &Section<'_>, command: Option<Vec<String>>) -> Option<Probe> {
    let example = "write a program and its arguments, such as [\"/usr/lib/checks/disk\", \"--free\", \"10%\"]";
    if !section.has("command") {
        section.problem("command", format!("missing: {example}"));
    }
    let command = command?;
    if command.first().is_none_or(String::is_empty) {
        section.problem("command", format!("names no program: {example}"));
    }
    Some(Probe::Exec { command })
}

fn tls(section: &Section<'_>, kind: Option<&str>) -> Option<CheckTls> {
    let wanted = section.get("tls", values::boolean).unwrap_or(false);
    let ca_file = section.get("ca_file", values::path);
    let server_name = section.get("server_name", server_name);
    let verify = section.get("verify", values::boolean).unwrap_or(true);
    if !matches!(kind, Some("http" | "grpc")) {
        return None;
    }
    if !wanted {
        for key in ["ca_file", "server_name", "verify"].into_iter().filter(|key| section.has(key)) {
            section.problem(key, "is for TLS: write tls = true, or leave it out");
        }
        return None;
    }
    let verify = match (verify, section.has("ca_file")) {
        (true, true) => Verify::Authority(ca_file?),
        (false, false) => Verify::Nothing,
        (true, false) => {
            let message = "missing: write the certificate of the authority to trust, or verify = false to trust any";
            section.problem("ca_file", message);
            return None;
        }
        (false, true) => {
            section.problem("ca_file", "beside verify = false, which trusts any certificate: write one of the two");
            return None;
        }
    };
    Some(CheckTls { verify, server_name })
}

fn http(section: &Section<'_>, port: Option<u16>, tls: Option<CheckTls>) -> HttpProbe {
    let method = section.get("method", method).unwrap_or(Method::GET);
    let path = section.get("path", values::request_path).unwrap_or_else(|| "/".to_owned());
    let (host, headers) = headers(section);
    let expect_status = section.list("expect_status", status_range).unwrap_or_else(|| vec![200..=399]);
    if expect_status.is_empty() {
        section.problem("expect_status", "is empty: no answer could pass");
    }
    let part = section.get("expect_body", values::text).map(ExpectedBody::Holding);
    let pattern = section.get("expect_pattern", pattern).map(ExpectedBody::Matching);
    if section.has("expect_body") && section.has("expect_pattern") {
        section.problem("expect_pattern", "beside expect_body: write one of the two");
    }
    let expect_body = part.or(pattern);
    if expect_body.is_some() && method == Method::HEAD {
        section.problem("method", "\"HEAD\" is answered without a body, of which something is expected");
    }
    HttpProbe { port, tls, method, path, host, headers, expect_status, expect_body }
}

/// The header `host` apart from the others: it is where HTTP/2 has it elsewhere.
fn headers(section: &Section<'_>) -> (Option<Authority>, HeaderMap) {
    let (mut host, mut headers) = (None, HeaderMap::new());
    for (name, value) in section.map("headers", values::text).unwrap_or_default() {
        let wrong = |message: String| section.problem("headers", message);
        match (HeaderName::try_from(&name), HeaderValue::try_from(&value)) {
            (Ok(HOST), _) => match Authority::try_from(&*value) {
                Ok(authority) => host = Some(authority),
                Err(_) => {
                    wrong(format!("host: {value:?} is no host, such as \"shop.example\" or \"shop.example:8080\""))
                }
            },
            (Ok(name), Ok(value)) => _ = headers.insert(name, value),
            (Err(_), _) => wrong(format!("{name:?} is no header's name: write one such as \"x-api-key\"")),
            (_, Err(_)) => wrong(format!("{name}: {value:?} holds what no header's value may: control characters")),
        }
    }
    (host, headers)
}

fn method(value: &DeValue<'_>) -> Parsed<Method> {
    let text = values::text(value)?;
    let parsed = Method::try_from(&*text).ok().filter(|_| !text.contains(|c: char| c.is_ascii_lowercase()));
    parsed.ok_or_else(|| format!("{text:?} is no method: write one in capitals, such as \"GET\" or \"HEAD\""))
}

/// A status, or the first and the last of several.
fn status_range(value: &DeValue<'_>) -> Parsed<RangeInclusive<u16>> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let range = match value {
        DeValue::Integer(number) if number.radix() == 10 => status(number.as_str()).map(|status| status..=status),
        DeValue::String(text) => text
            .split_once('-')
            .and_then(|(first, last)| Some(status(first)?..=status(last)?))
            .filter(|range| !range.is_empty()),
        _ => None,
    };
    range.ok_or_else(|| {
        wrong_type("a status from 100 to 599, such as 200, or a range of them, such as \"200-299\"", value)
    })
}

fn pattern(value: &DeValue<'_>) -> Parsed<Pattern> {
    let text = values::text(value)?;
    let wrong = |error: regex::Error| {
        // The last of its lines says what is wrong; those before draw where.
        let error = error.to_string();
        format!("{text:?} is no regular expression: {}", error.lines().last().unwrap_or_default())
    };
    regex::Regex::new(&text).map(Pattern).map_err(wrong)
}

fn server_name(value: &DeValue<'_>) -> Parsed<ServerName<'static>> {
    let text = values::text(value)?;
    ServerName::try_from(text.clone()).map_err(|_| format!("{text:?} is neither a host's name nor an IP address"))
}
