//! A client of the agent's local HTTP API over its Unix socket: every wait has a deadline, and every failure says what
//! can be done.
//!
//! * [`Client`]: a request and its answer. [`Path`]: what is asked for.
//! * [`Events`]: server-sent events, resumed where they broke off.

mod error;
mod events;
mod path;
mod sse;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

pub use self::{
    error::ClientError,
    events::{Events, Told},
    path::Path,
};

/// For the agent to take the connection.
const CONNECT: Duration = Duration::from_secs(2);
/// For an answer to begin and to end.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest answer that is read: beyond what 100,000 nodes take.
const MAX_ANSWER: usize = 256 << 20;

/// Asks the agent at one socket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the agent at this socket. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// What is there.
    ///
    /// # Errors
    /// [`ClientError`], also for what the agent refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<T, ClientError> {
        let (_, answer) = self.request(Method::GET, path, None::<&()>).await?;
        self.read(&answer)
    }

    /// Asks for a change, with a body of JSON if there is one.
    ///
    /// # Errors
    /// [`ClientError`], also for what the agent refuses.
    pub async fn change(&self, method: Method, path: &Path, body: Option<&impl Serialize>) -> Result<(), ClientError> {
        self.request(method, path, body).await.map(|_| ())
    }

    /// As [`Self::change`], where the agent answers with a document.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn change_read<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &Path,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let (_, answer) = self.request(method, path, body).await?;
        self.read(&answer)
    }

    /// Asks for something to go. Whether it is gone; it is still under way otherwise.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub async fn delete(&self, path: &Path) -> Result<bool, ClientError> {
        let (status, _) = self.request(Method::DELETE, path, None::<&()>).await?;
        Ok(status != StatusCode::ACCEPTED)
    }

    /// Follows what happens: events of these names, all others are passed over.
    pub fn events<T: DeserializeOwned>(&self, path: Path, names: &'static [&'static str]) -> Events<T> {
        Events::new(self.clone(), path, names)
    }

    /// One request; the answer if it is one of success.
    async fn request(
        &self,
        method: Method,
        path: &Path,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |reason: String| self.broken(reason);
        let mut request = Request::builder().method(method).uri(path.as_str()).header(header::HOST, "agent");
        // The agent takes changes only with this type, with or without a body.
        request = request.header(header::CONTENT_TYPE, "application/json").header(header::ACCEPT, "application/json");
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| broken(error.to_string()))?;
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())));
        let answer = self.send(request.map_err(|error| broken(error.to_string()))?).await?;
        let status = answer.status();
        let body = tokio::time::timeout(ANSWER, self.collect(answer)).await.map_err(|_| self.timed_out(ANSWER))??;
        if status.is_success() { Ok((status, body)) } else { Err(ClientError::refused(status, &body)) }
    }

    /// One request over a connection of its own; the beginning of the answer.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let mut sender = tokio::time::timeout(CONNECT, self.connect()).await.map_err(|_| self.timed_out(CONNECT))??;
        let answer = tokio::time::timeout(ANSWER, sender.send_request(request)).await;
        answer.map_err(|_| self.timed_out(ANSWER))?.map_err(|error| self.broken(error.to_string()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ClientError::unreachable(&self.socket, source))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| self.broken(error.to_string()))?;
        // It ends with the sender and the answer's body; what breaks it is seen there.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.broken(error.to_string()))
    }

    fn read<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(answer)
            .map_err(|error| self.broken(format!("its answer is not what was expected: {error}")))
    }

    fn broken(&self, reason: String) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), reason }
    }

    fn timed_out(&self, after: Duration) -> ClientError {
        ClientError::TimedOut { socket: self.socket.clone(), after }
    }
}
