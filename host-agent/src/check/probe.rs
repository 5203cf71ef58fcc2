//! One probe of a service, over a connection of its own and within a deadline.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, client::conn, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use waypost_catalog::Protocol;

use crate::config::{Probe, Probing};

/// Most of an answer's body that is read before it counts as too much to be a health answer.
const BODY_LIMIT: usize = 1024 * 1024;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke, or what came over it is no HTTP.
    #[error("no HTTP answer: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("cannot ask: {0}")]
    Request(#[from] hyper::http::Error),
    /// An answer outside 200 to 399.
    #[error("answered {0}")]
    Status(StatusCode),
    /// The answer's body broke off or did not end.
    #[error("the answer's body broke off, or is beyond {BODY_LIMIT} bytes")]
    Body,
    /// Nothing decisive in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// What is probed.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The service's name.
    pub service: &'a str,
    /// Name of its instance.
    pub instance: &'a str,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
}

/// Probes `target`: what it said.
///
/// # Errors
/// [`ProbeError`] if the probe fails.
pub async fn probe(probing: &Probing, target: &Target<'_>) -> Result<String, ProbeError> {
    let address = target.address;
    let outcome = async {
        let stream = TcpStream::connect(address).await.map_err(ProbeError::Connect)?;
        match &probing.probe {
            Probe::Tcp => Ok(format!("{address} takes connections")),
            Probe::Http { path } => http(stream, address, path, target.protocol).await,
        }
    };
    tokio::time::timeout(probing.timeout, outcome).await.unwrap_or(Err(ProbeError::Timeout(probing.timeout)))
}

async fn http(stream: TcpStream, target: SocketAddr, path: &str, protocol: Protocol) -> Result<String, ProbeError> {
    let io = TokioIo::new(stream);
    let request = Request::get(match protocol {
        Protocol::Http1 => path.to_owned(),
        Protocol::Http2 => format!("http://{target}{path}"),
    });
    let request = request.header(header::USER_AGENT, concat!("waypost/", env!("CARGO_PKG_VERSION")));
    match protocol {
        Protocol::Http1 => {
            let request = request.header(header::HOST, target.to_string()).header(header::CONNECTION, "close");
            let request = request.body(Empty::<Bytes>::new())?;
            let (mut sender, connection) = conn::http1::handshake(io).await?;
            drive(connection, async move { finish(sender.send_request(request).await?).await }).await
        }
        Protocol::Http2 => {
            let request = request.body(Empty::<Bytes>::new())?;
            let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
            drive(connection, async move { finish(sender.send_request(request).await?).await }).await
        }
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

async fn finish(response: hyper::Response<hyper::body::Incoming>) -> Result<String, ProbeError> {
    let status = response.status();
    // Read to the end, frame by frame, so that the service does not see a reset for every check.
    let mut body = Limited::new(response.into_body(), BODY_LIMIT);
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| ProbeError::Body)?;
    }
    if (200..400).contains(&status.as_u16()) { Ok(status.to_string()) } else { Err(ProbeError::Status(status)) }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn probing(probe: Probe) -> Probing {
        let interval = Duration::from_secs(1);
        Probing { probe, interval, jitter: Duration::ZERO, timeout: Duration::from_millis(300) }
    }

    fn http_probing() -> Probing {
        probing(Probe::Http { path: "/healthz".into() })
    }

    fn target(address: SocketAddr, protocol: Protocol) -> Target<'static> {
        Target { service: "web", instance: "web-1", address, protocol }
    }

    /// Answers one connection with `answer` and gives back what it read.
    async fn server(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![0; 4096];
            let n = stream.read(&mut read).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&read[..n]).into_owned()
        });
        (address, task)
    }

    async fn outcome(answer: &'static str) -> Result<String, String> {
        let (address, _task) = server(answer).await;
        probe(&http_probing(), &target(address, Protocol::Http1)).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn an_http_probe_asks_for_the_path_and_closes() {
        let (address, task) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        probe(&http_probing(), &target(address, Protocol::Http1)).await.unwrap();
        let asked = task.await.unwrap();
        assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
        assert!(asked.contains("connection: close\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn redirects_pass_and_errors_fail() {
        assert_eq!(outcome("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n").await, Ok("302 Found".into()));
        let failed = outcome("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(failed, Err("answered 503 Service Unavailable".into()));
        let failed = outcome("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(failed, Err("answered 404 Not Found".into()));
    }

    #[tokio::test]
    async fn what_is_no_http_fails() {
        assert!(outcome("SSH-2.0-OpenSSH_9.6\r\n").await.unwrap_err().starts_with("no HTTP answer"));
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_says_nothing_fails_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let error = probe(&http_probing(), &target(address, Protocol::Http1)).await.unwrap_err();
        assert!(matches!(error, ProbeError::Timeout(_)), "{error}");
        probe(&probing(Probe::Tcp), &target(address, Protocol::Http1)).await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_port_fails_both_kinds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for probing in [http_probing(), probing(Probe::Tcp)] {
            let error = probe(&probing, &target(address, Protocol::Http1)).await.unwrap_err();
            assert!(matches!(error, ProbeError::Connect(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn an_http2_service_is_asked_over_http2() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let router = axum::Router::new().route(
                "/healthz",
                axum::routing::get(|v: axum::http::Version| async move {
                    if v == axum::http::Version::HTTP_2 { "ok" } else { panic!("not HTTP/2") }
                }),
            );
            axum::serve(listener, router).await
        });
        probe(&http_probing(), &target(address, Protocol::Http2)).await.unwrap();
    }
}
