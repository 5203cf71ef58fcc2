//! Asks a service over HTTP, and holds the answer's status and body against what is expected.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn,
    header::{self, HeaderValue},
    http::{HeaderMap, uri::Authority},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use waypost_catalog::Protocol;

use super::{
    ProbeError,
    connect::{self, Alpn},
};
use crate::{
    check::report::excerpt,
    config::{ExpectedBody, HttpProbe},
};

/// Most of an answer's body that is read before it counts as too much to be a health answer.
pub(super) const BODY_LIMIT: usize = 1024 * 1024;

pub(super) async fn ask(probe: &HttpProbe, address: SocketAddr, protocol: Protocol) -> Result<String, ProbeError> {
    let alpn = match protocol {
        Protocol::Http1 => Alpn::Http1,
        Protocol::Http2 => Alpn::Http2,
    };
    let io = TokioIo::new(connect::open(address, probe.tls.as_ref(), alpn).await?);
    let request = request(probe, address, protocol)?;
    match protocol {
        Protocol::Http1 => {
            let (mut sender, connection) = conn::http1::handshake(io).await?;
            drive(connection, async move { judge(probe, sender.send_request(request).await?).await }).await
        }
        Protocol::Http2 => {
            let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
            drive(connection, async move { judge(probe, sender.send_request(request).await?).await }).await
        }
    }
}

fn request(
    probe: &HttpProbe,
    address: SocketAddr,
    protocol: Protocol,
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = host(probe, address)?;
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("waypost/", env!("CARGO_PKG_VERSION"))));
    headers.extend(probe.headers.clone());
    let uri = match protocol {
        Protocol::Http1 => {
            headers.insert(header::HOST, HeaderValue::from_str(host.as_str())?);
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            probe.path.clone()
        }
        Protocol::Http2 => {
            let scheme = if probe.tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{host}{}", probe.path)
        }
    };
    let mut request = Request::builder().method(probe.method.clone()).uri(uri).body(Empty::new())?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Whom it asks for: by its configuration, else by the name on its certificate, else by its address.
fn host(probe: &HttpProbe, address: SocketAddr) -> Result<Authority, hyper::http::Error> {
    let name = probe.tls.as_ref().and_then(|tls| tls.server_name.as_ref());
    match (&probe.host, name) {
        (Some(host), _) => Ok(host.clone()),
        (None, Some(name)) => Ok(Authority::try_from(format!("{}:{}", name.to_str(), address.port()))?),
        (None, None) => Ok(Authority::try_from(address.to_string())?),
    }
}

/// Runs the connection beside the exchange, in the same task: dropping the probe drops both.
async fn drive(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    exchange: impl Future<Output = Result<String, ProbeError>>,
) -> Result<String, ProbeError> {
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        outcome = &mut exchange => outcome,
        // Once the connection has ended, the exchange knows its outcome.
        _ = connection => exchange.await,
    }
}

async fn judge(probe: &HttpProbe, response: Response<Incoming>) -> Result<String, ProbeError> {
    let status = response.status();
    // Read to the end, so that the service does not see a reset for every check.
    let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|_| ProbeError::Body(status))?.to_bytes();
    // What is no text tells a reader nothing.
    let text = std::str::from_utf8(&body).unwrap_or_default();
    let said = excerpt(text);
    if !probe.expect_status.iter().any(|range| range.contains(&status.as_u16())) {
        return Err(ProbeError::Status { status, said });
    }
    let expected = match &probe.expect_body {
        Some(ExpectedBody::Holding(part)) if !text.contains(part.as_str()) => format!("does not hold {part:?}"),
        Some(ExpectedBody::Matching(pattern)) if !pattern.is_match(text) => {
            format!("does not match {:?}", pattern.as_str())
        }
        _ if said.is_empty() => return Ok(status.to_string()),
        _ => return Ok(format!("{status}: {said}")),
    };
    Err(ProbeError::Content { status, expected, said })
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use axum::{Router, http::Version, routing};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;
    use crate::{
        check::probe::{
            probe,
            testing::{Authority as CertificateAuthority, serve, target},
        },
        config::{self, CheckKind, CheckTls, Probe, Probing, Verify},
    };

    /// A probing as the configuration has it.
    fn probing(keys: &str) -> Probing {
        let text = format!(
            "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n[[service]]\nname = \"web\"\nport = 80\n\
             [service.check]\ntype = \"http\"\ntimeout = \"500ms\"\n{keys}\n"
        );
        let service = config::parse("agent.toml", &text, "host-a").unwrap().services.remove(0);
        match service.check.unwrap().kind {
            CheckKind::Asked(probing) => probing,
            kind => panic!("{kind:?}"),
        }
    }

    fn over_tls(keys: &str, verify: Verify, server_name: Option<&'static str>) -> Probing {
        let mut probing = probing(keys);
        let Probe::Http(probe) = &mut probing.probe else { panic!("{probing:?}") };
        let server_name = server_name.map(|name| ServerName::try_from(name).unwrap());
        probe.tls = Some(CheckTls { verify, server_name });
        probing
    }

    async fn outcome(probing: &Probing, address: SocketAddr, protocol: Protocol) -> Result<String, String> {
        probe(probing, &target(address, protocol)).await.map_err(|error| error.to_string())
    }

    /// What the server was asked: method, version, host and a header.
    fn echo() -> Router {
        let echo = |request: axum::extract::Request| async move {
            let header =
                |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default().to_owned());
            let host = request.uri().authority().map(ToString::to_string).or_else(|| header("host"));
            format!("{} {:?} {host:?} {:?}", request.method(), request.version(), header("x-key"))
        };
        Router::new()
            .route("/echo", routing::any(echo))
            .route(
                "/status/{code}",
                routing::get(|code: axum::extract::Path<u16>| async move {
                    (axum::http::StatusCode::from_u16(*code).unwrap(), "state: degraded\n")
                }),
            )
            .route("/silent", routing::get(std::future::pending::<()>))
            .route(
                "/endless",
                routing::get(|| async {
                    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(64 * 1024)));
                    axum::body::Body::from_stream(endless)
                }),
            )
            .route("/binary", routing::get(|| async { vec![0xff_u8, 0, 1] }))
    }

    #[tokio::test]
    async fn method_headers_and_host_are_as_configured_over_either_http() {
        let address = serve(echo(), None).await;
        let probing =
            probing("path = \"/echo\"\nmethod = \"POST\"\nheaders = { Host = \"shop.example\", X-Key = \"s3cret\" }");
        for (protocol, version) in [(Protocol::Http1, Version::HTTP_11), (Protocol::Http2, Version::HTTP_2)] {
            let expected = format!("200 OK: POST {version:?} Some(\"shop.example\") Some(\"s3cret\")");
            assert_eq!(outcome(&probing, address, protocol).await, Ok(expected));
        }
        let plain = self::probing("path = \"/echo\"");
        let expected = format!("200 OK: GET HTTP/1.1 Some(\"{address}\") None");
        assert_eq!(outcome(&plain, address, Protocol::Http1).await, Ok(expected));
    }

    #[tokio::test]
    async fn the_port_may_be_another_than_the_services() {
        let address = serve(echo(), None).await;
        let probing = probing(&format!("path = \"/echo\"\nport = {}", address.port()));
        let serves_elsewhere = SocketAddr::new(address.ip(), 1);
        assert!(outcome(&probing, serves_elsewhere, Protocol::Http1).await.is_ok());
    }

    #[tokio::test]
    async fn only_the_expected_statuses_pass() {
        let address = serve(echo(), None).await;
        for (keys, code, passes) in [
            ("", 200, true),
            ("", 302, true),
            ("", 404, false),
            ("", 503, false),
            ("expect_status = [204, \"400-404\"]", 200, false),
            ("expect_status = [204, \"400-404\"]", 404, true),
            ("expect_status = [204, \"400-404\"]", 405, false),
            ("expect_status = [503]", 503, true),
        ] {
            let probing = probing(&format!("path = \"/status/{code}\"\n{keys}"));
            let outcome = outcome(&probing, address, Protocol::Http1).await;
            assert_eq!(outcome.is_ok(), passes, "{code} with {keys:?}: {outcome:?}");
        }
        let failed = outcome(&probing("path = \"/status/503\""), address, Protocol::Http1).await;
        assert_eq!(failed, Err("answered 503 Service Unavailable: state: degraded".into()));
    }

    #[tokio::test]
    async fn the_body_has_to_hold_a_part_or_match_a_pattern() {
        let address = serve(echo(), None).await;
        for (key, passes) in [
            ("expect_body = \"degraded\"", true),
            ("expect_body = \"Degraded\"", false),
            ("expect_pattern = '^state: (ok|degraded)$'", false),
            ("expect_pattern = '(?m)^state: (ok|degraded)$'", true),
        ] {
            let probing = probing(&format!("path = \"/status/200\"\n{key}"));
            let outcome = outcome(&probing, address, Protocol::Http1).await;
            assert_eq!(outcome.is_ok(), passes, "{key}: {outcome:?}");
        }
        let probing = probing("path = \"/status/200\"\nexpect_body = \"state: ok\"");
        let failed = outcome(&probing, address, Protocol::Http1).await;
        assert_eq!(failed, Err("answered 200 OK, but its body does not hold \"state: ok\": state: degraded".into()));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_or_does_not_end_fails_and_a_binary_one_is_not_shown() {
        let address = serve(echo(), None).await;
        let silent = outcome(&probing("path = \"/silent\""), address, Protocol::Http1).await;
        assert_eq!(silent, Err("no answer within 500ms".into()));
        let endless = outcome(&probing("path = \"/endless\""), address, Protocol::Http1).await;
        assert_eq!(endless, Err("answered 200 OK, but its body broke off, or is beyond 1048576 bytes".into()));
        assert_eq!(outcome(&probing("path = \"/binary\""), address, Protocol::Http1).await, Ok("200 OK".into()));
    }

    #[tokio::test]
    async fn over_tls_a_certificate_of_the_named_authority_and_for_the_right_name_passes() {
        let authority = CertificateAuthority::new("127.0.0.1");
        let named = CertificateAuthority::new("shop.example");
        let by_address = serve(echo(), Some(authority.acceptor.clone())).await;
        let by_name = serve(echo(), Some(named.acceptor.clone())).await;
        let path = "path = \"/echo\"";
        let trust = |authority: &CertificateAuthority| Verify::Authority(authority.file());
        for (protocol, version) in [(Protocol::Http1, Version::HTTP_11), (Protocol::Http2, Version::HTTP_2)] {
            let ok = outcome(&over_tls(path, trust(&authority), None), by_address, protocol).await;
            assert_eq!(ok, Ok(format!("200 OK: GET {version:?} Some(\"{by_address}\") None")));
            let ok = outcome(&over_tls(path, trust(&named), Some("shop.example")), by_name, protocol).await;
            let host = format!("shop.example:{}", by_name.port());
            assert_eq!(ok, Ok(format!("200 OK: GET {version:?} Some(\"{host}\") None")));
            let any = outcome(&over_tls(path, Verify::Nothing, None), by_name, protocol).await;
            assert!(any.is_ok(), "{any:?}");
        }
        let wrong_authority = over_tls(path, trust(&named), None);
        let failed = outcome(&wrong_authority, by_address, Protocol::Http1).await.unwrap_err();
        assert!(failed.contains("UnknownIssuer"), "{failed}");
        let wrong_name = over_tls(path, trust(&named), None);
        let failed = outcome(&wrong_name, by_name, Protocol::Http1).await.unwrap_err();
        assert!(failed.contains("not valid for name"), "{failed}");
        let no_tls = serve(echo(), None).await;
        let failed = outcome(&over_tls(path, Verify::Nothing, None), no_tls, Protocol::Http1).await.unwrap_err();
        assert!(failed.starts_with(&format!("no TLS with {no_tls}")), "{failed}");
    }

    #[tokio::test]
    async fn a_file_of_authorities_that_is_missing_or_holds_none_is_named() {
        let address = serve(echo(), None).await;
        let missing = over_tls("", Verify::Authority(PathBuf::from("/nowhere/ca.pem")), None);
        let failed = outcome(&missing, address, Protocol::Http1).await.unwrap_err();
        assert_eq!(failed, "ca_file: cannot use /nowhere/ca.pem: No such file or directory (os error 2)");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let empty = over_tls("", Verify::Authority(empty.path().to_owned()), None);
        let failed = outcome(&empty, address, Protocol::Http1).await.unwrap_err();
        assert!(failed.ends_with("it holds no certificate in PEM"), "{failed}");
    }

    #[tokio::test]
    async fn a_probe_closes_its_connection_and_what_is_no_http_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let bytes = stream.read(&mut asked).await.unwrap();
            stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            String::from_utf8_lossy(&asked[..bytes]).into_owned()
        });
        let failed = outcome(&probing("path = \"/up\""), address, Protocol::Http1).await.unwrap_err();
        assert!(failed.starts_with("no HTTP answer"), "{failed}");
        let asked = tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
        assert!(asked.starts_with("GET /up HTTP/1.1\r\n") && asked.contains("connection: close\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_closed_port_fails_and_one_that_only_accepts_passes_for_tcp_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = Probing { probe: Probe::Tcp { port: None }, ..probing("") };
        assert_eq!(outcome(&tcp, address, Protocol::Http1).await, Ok(format!("{address} takes connections")));
        assert_eq!(outcome(&probing(""), address, Protocol::Http1).await, Err("no answer within 500ms".into()));
        drop(listener);
        for probing in [tcp, probing("")] {
            let failed = outcome(&probing, address, Protocol::Http1).await.unwrap_err();
            assert!(failed.starts_with(&format!("cannot connect to {address}: ")), "{failed}");
        }
    }
}
