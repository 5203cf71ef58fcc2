//! Single requests to the API, each on a connection of its own and with a deadline.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// Longer than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Where the API is asked.
#[derive(Clone, Debug)]
pub enum At {
    Socket(PathBuf),
    Tcp(SocketAddr),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: Bytes,
}

impl Answer {
    /// Its body, which must be of this type.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The slug of its problem, which it must have.
    #[track_caller]
    pub fn problem(&self) -> String {
        let value: Value = self.json();
        assert_eq!(self.content_type, "application/problem+json", "{value}");
        assert_eq!(value["status"], self.status, "{value}");
        value["type"].as_str().unwrap().strip_prefix("urn:waypost:problem:").unwrap().to_owned()
    }
}

/// A server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

/// A stream of them.
pub struct Events {
    body: Incoming,
    text: String,
}

impl Events {
    /// The next event. Comments are passed over.
    pub async fn next(&mut self) -> Event {
        timeout(LIMIT, self.read()).await.expect("an event in time").expect("another event")
    }

    /// Whether it ends without another event.
    pub async fn ends(&mut self) -> bool {
        timeout(LIMIT, self.read()).await.expect("its end in time").is_none()
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let event = field("data: ").map(|data| Event {
                    name: field("event: ").unwrap(),
                    id: field("id: "),
                    data: serde_json::from_str(&data).unwrap(),
                });
                self.text = rest.to_owned();
                if event.is_some() {
                    return event;
                }
            }
            let frame = self.body.frame().await?.ok()?;
            self.text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
    }
}

impl At {
    /// Follows a stream of events, from after the last one that was seen.
    pub async fn follow(&self, path: &str, last_seen: Option<&str>) -> Events {
        let mut request = self.request("GET", path, None);
        if let Some(id) = last_seen {
            request.headers_mut().insert("last-event-id", id.parse().unwrap());
        }
        let (head, body) = self.open(request).await.into_parts();
        assert_eq!(head.status, 200, "{path}");
        assert_eq!(head.headers[header::CONTENT_TYPE], "text/event-stream");
        Events { body, text: String::new() }
    }

    /// Sends a request as it is, and gives the answer's head.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let exchange = async {
            let mut sender = match self {
                Self::Socket(path) => connect(UnixStream::connect(path).await.unwrap()).await,
                Self::Tcp(address) => connect(TcpStream::connect(address).await.unwrap()).await,
            };
            sender.send_request(request).await.unwrap()
        };
        timeout(LIMIT, exchange).await.expect("an answer in time")
    }

    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (head, body) = self.open(request).await.into_parts();
        let body = timeout(LIMIT, body.collect()).await.expect("a body in time").unwrap().to_bytes();
        let content_type = head.headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
        Answer { status: head.status.as_u16(), content_type: content_type.unwrap_or_default(), body }
    }

    /// A request with the usual headers.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Request<Full<Bytes>> {
        let host = match self {
            Self::Socket(_) => "localhost".to_owned(),
            Self::Tcp(address) => address.to_string(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(body.map(Value::to_string).unwrap_or_default().into()).unwrap()
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.send(self.request(method, path, body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await
    }

    /// What a GET that must succeed answers.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }
}

async fn connect<S>(stream: S) -> http1::SendRequest<Full<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    // It ends with its response.
    tokio::spawn(connection);
    sender
}
