//! Single HTTP requests, each on a connection of its own and with a deadline.
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

const DEADLINE: Duration = Duration::from_secs(30);

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    /// Status line.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers, if there were any.
    pub trailers: HeaderMap,
}

impl Reply {
    /// A header as text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The node that answered: an upstream of this harness says so in a header.
    pub fn node(&self) -> &str {
        self.header("x-node")
    }
}

/// Sends one request over HTTP/1.1. The URI is a path; a `host` header is added if there is none.
pub async fn send(target: SocketAddr, request: Request<Full<Bytes>>) -> Result<Reply> {
    exchange(TcpStream::connect(target), target, request).await
}

/// As [`send`], over a Unix socket.
pub async fn send_unix(socket: &Path, request: Request<Full<Bytes>>) -> Result<Reply> {
    exchange(UnixStream::connect(socket), "localhost", request).await
}

async fn exchange<S>(
    stream: impl Future<Output = io::Result<S>>,
    host: impl Display,
    mut request: Request<Full<Bytes>>,
) -> Result<Reply>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream.await?)).await?;
        let _connection = AbortOnDrop(tokio::spawn(connection));
        if !request.headers().contains_key("host") {
            request.headers_mut().insert("host", host.to_string().parse()?);
        }
        collect(sender.send_request(request).await?).await
    };
    tokio::time::timeout(DEADLINE, exchange).await.with_context(|| format!("{host}: no answer within {DEADLINE:?}"))?
}

/// Sends one request over HTTP/2 without TLS. The URI is absolute.
pub async fn send_h2(target: SocketAddr, request: Request<Full<Bytes>>) -> Result<Reply> {
    let exchange = async {
        let stream = TcpStream::connect(target).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let _connection = AbortOnDrop(tokio::spawn(connection));
        collect(sender.send_request(request).await?).await
    };
    tokio::time::timeout(DEADLINE, exchange)
        .await
        .with_context(|| format!("{target}: no answer within {DEADLINE:?}"))?
}

/// GET; any status is an answer.
pub async fn get(target: SocketAddr, path: &str) -> Result<Reply> {
    send(target, Request::get(path).body(Full::default())?).await
}

/// GET that must be answered with 200; its body as text.
pub async fn get_text(target: SocketAddr, path: &str) -> Result<String> {
    let reply = get(target, path).await?;
    ensure!(reply.status == StatusCode::OK, "{target}{path}: {} {}", reply.status, reply.text());
    Ok(reply.text())
}

async fn collect(response: hyper::Response<hyper::body::Incoming>) -> Result<Reply> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
}

pub(crate) struct AbortOnDrop<T>(pub(crate) tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
