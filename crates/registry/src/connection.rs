//! One connection to one of several etcd endpoints; the next attempt goes to the next endpoint.
//!
//! Balancing over all endpoints at once makes a share of the calls fail for as long as one of them is dead. Here a
//! connection has one endpoint, and whoever uses it connects anew after any failure that is not etcd's own answer.
//! A fresh connection also fetches a fresh token: simple tokens die with the member that issued them.
//!
//! A connection is *one* connection: it is never restored behind its user's back. Between two requests on one client
//! etcd was therefore neither restarted nor replaced, or the second one fails.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use etcd_client::{Channel, Client, Error as EtcdError};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::{
    Code,
    codegen::Service,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri},
};

/// HTTP/2 pings on a connection with calls under way. etcd answers pings on idle ones with `too_many_pings`.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// User and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What TLS needs, in PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Certificates of the authorities to trust. Endpoints with `https` need it.
    pub ca_pem: Option<Vec<u8>>,
    /// Own certificate and key, for servers that ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ca, identity) = (self.ca_pem.is_some(), self.identity.is_some());
        f.debug_struct("TlsOptions").field("ca", &ca).field("identity", &identity).finish()
    }
}

/// How to reach etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// `http://host:port`, `https://host:port`, or `host:port` (https if `tls` is given).
    pub endpoints: Vec<String>,
    /// User and password, if etcd asks for them.
    pub auth: Option<Credentials>,
    /// TLS, for `https` endpoints.
    pub tls: Option<TlsOptions>,
    /// Limit for one endpoint to take the connection.
    pub connect_timeout: Duration,
    /// Limit for etcd to answer one request.
    pub request_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            auth: None,
            tls: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(3),
        }
    }
}

impl ConnectOptions {
    /// These endpoints, each a URL with scheme, host and port, without TLS or a user, and with the usual limits.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { endpoints: endpoints.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No endpoint was named.
    #[error("no etcd endpoint is given: name at least one, such as http://127.0.0.1:2379")]
    NoEndpoints,
    /// An endpoint that cannot be one.
    #[error("etcd endpoint {endpoint:?} is not usable: {reason}")]
    BadEndpoint {
        /// As given.
        endpoint: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// TLS material that cannot be used.
    #[error("TLS to etcd endpoint {endpoint:?} cannot be set up: {reason}")]
    Tls {
        /// As given.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
    /// The endpoint did not take the connection.
    #[error(
        "etcd endpoint {endpoint} cannot be reached: {reason}; check that it runs there and that host, port and scheme are right"
    )]
    Unreachable {
        /// Which one.
        endpoint: String,
        /// What the attempt ended with.
        reason: String,
    },
    /// The endpoint was silent.
    #[error("etcd endpoint {endpoint} did not answer within {after:?}; check the network and firewalls on the way")]
    TimedOut {
        /// Which one.
        endpoint: String,
        /// How long it was given.
        after: Duration,
    },
    /// The endpoint refused user and password.
    #[error("etcd endpoint {endpoint} refuses user {username:?}: {reason}; check username and password")]
    Refused {
        /// Which one.
        endpoint: String,
        /// The user.
        username: String,
        /// etcd's answer.
        reason: String,
    },
}

#[derive(Debug)]
struct Target {
    name: String,
    endpoint: Endpoint,
}

#[derive(Debug)]
struct Inner {
    targets: Vec<Target>,
    auth: Option<Credentials>,
    connect_timeout: Duration,
    request_timeout: Duration,
}

/// Makes connections. Cheap to clone; each clone goes round the endpoints by itself, from a random one, so that
/// neither hosts nor the tasks of one host gather at one member.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let (first, second) = (etcd.url(), etcd.url());
/// use waypost_registry::{ConnectOptions, Connector};
///
/// // Such as http://10.0.0.1:2379. Nothing is connected before it is used.
/// let connector = Connector::new(ConnectOptions::new([first, second]))?;
///
/// // etcd's own client, of the next endpoint in turn; whatever is built on a connector does this by itself.
/// let mut client = connector.connect().await?;
/// client.put("/greeting", "hello", None).await?;
///
/// let error = Connector::new(ConnectOptions::new(["10.0.0.1"])).unwrap_err();
/// assert!(error.to_string().contains("it names no port"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Connector {
    /// Shared by all clones, so that all of them go by what one was given anew.
    inner: Arc<RwLock<Arc<Inner>>>,
    next: AtomicUsize,
}

impl Clone for Connector {
    fn clone(&self) -> Self {
        let start = fastrand::usize(..self.inner().targets.len().max(1));
        Self { inner: Arc::clone(&self.inner), next: AtomicUsize::new(start) }
    }
}

impl Inner {
    fn new(options: ConnectOptions) -> Result<Self, ConnectError> {
        let targets =
            options.endpoints.iter().map(|endpoint| target(endpoint, &options)).collect::<Result<Vec<_>, _>>()?;
        if targets.is_empty() {
            return Err(ConnectError::NoEndpoints);
        }
        let ConnectOptions { auth, connect_timeout, request_timeout, .. } = options;
        Ok(Self { targets, auth, connect_timeout, request_timeout })
    }
}

impl Connector {
    /// Checks the options. Nothing is connected yet.
    ///
    /// # Errors
    /// [`ConnectError`] naming the endpoint, if one is malformed or its TLS cannot be set up.
    pub fn new(options: ConnectOptions) -> Result<Self, ConnectError> {
        let inner = Inner::new(options)?;
        let start = fastrand::usize(..inner.targets.len());
        Ok(Self { inner: Arc::new(RwLock::new(Arc::new(inner))), next: AtomicUsize::new(start) })
    }

    /// Has every clone make its next connections by other options, such as a renewed certificate. Connections that
    /// stand go on, and timeouts that were asked for before stay what they were.
    ///
    /// # Errors
    /// [`ConnectError`] as [`Self::new`] does; the old options then stay.
    pub fn replace(&self, options: ConnectOptions) -> Result<(), ConnectError> {
        let inner = Arc::new(Inner::new(options)?);
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = inner;
        Ok(())
    }

    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Limit for etcd to answer one request.
    pub fn request_timeout(&self) -> Duration {
        self.inner().request_timeout
    }

    /// Limit for one endpoint to take the connection.
    pub fn connect_timeout(&self) -> Duration {
        self.inner().connect_timeout
    }

    /// Connects to the next endpoint in turn, and to that one only: on failure, call it again.
    ///
    /// # Errors
    /// [`ConnectError`] naming the endpoint.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        self.connect_named().await.map(|(client, _)| client)
    }

    /// As [`Self::connect`], with the endpoint's name.
    pub(crate) async fn connect_named(&self) -> Result<(Client, String), ConnectError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner();
        let targets = &inner.targets;
        let target = targets.get(turn % targets.len().max(1)).ok_or(ConnectError::NoEndpoints)?;
        let name = target.name.clone();
        let timed_out = |after| ConnectError::TimedOut { endpoint: name.clone(), after };

        let limit = inner.connect_timeout;
        let channel = tokio::time::timeout(limit, target.endpoint.connect_with_connector(Once::default()))
            .await
            .map_err(|_| timed_out(limit))?;
        let channel = channel
            .map_err(|error| ConnectError::Unreachable { endpoint: name.clone(), reason: root_cause(&error) })?;

        let limit = inner.request_timeout;
        let client = tokio::time::timeout(limit, sign_in(channel, &name, inner.auth.as_ref())).await;
        Ok((client.map_err(|_| timed_out(limit))??, name))
    }
}

async fn sign_in(
    channel: tonic::transport::Channel,
    name: &str,
    auth: Option<&Credentials>,
) -> Result<Client, ConnectError> {
    // A member cut off from its leader would serve stale watches without a word.
    let options = etcd_client::ConnectOptions::new().with_require_leader(true);
    let unreachable = |error: &EtcdError| ConnectError::Unreachable { endpoint: name.into(), reason: describe(error) };
    if let Some(Credentials { username, password }) = auth {
        let options = options.clone().with_user(username, password);
        match Client::from_channel(Channel::Tonic(channel.clone()), Some(options)).await {
            Ok(client) => return Ok(client),
            // As etcd's own client does: credentials may be rolled out before authentication is switched on.
            Err(EtcdError::GRpcStatus(status)) if status.code() == Code::FailedPrecondition => {
                tracing::debug!(endpoint = name, "etcd does not ask for a user: {}", status.message());
            }
            Err(EtcdError::GRpcStatus(status)) if status.code() == Code::InvalidArgument => {
                let (endpoint, username, reason) = (name.into(), username.clone(), status.message().into());
                return Err(ConnectError::Refused { endpoint, username, reason });
            }
            Err(error) => return Err(unreachable(&error)),
        }
    }
    Client::from_channel(Channel::Tonic(channel), Some(options)).await.map_err(|error| unreachable(&error))
}

/// Opens a TCP connection, the first time it is asked to; tonic's channel would go on asking.
#[derive(Default)]
struct Once {
    used: bool,
}

impl Service<Uri> for Once {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let used = std::mem::replace(&mut self.used, true);
        Box::pin(async move {
            if used {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the connection was lost"));
            }
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

fn target(given: &str, options: &ConnectOptions) -> Result<Target, ConnectError> {
    let bad = |reason: String| ConnectError::BadEndpoint { endpoint: given.into(), reason };
    let url = match given.split_once("://") {
        Some(("http" | "https", _)) => given.to_owned(),
        Some((scheme, _)) => return Err(bad(format!("scheme {scheme:?} is neither http nor https"))),
        None if options.tls.is_some() => format!("https://{given}"),
        None => format!("http://{given}"),
    };
    let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| bad(root_cause(&error)))?;
    if endpoint.uri().port_u16().is_none() {
        return Err(bad("it names no port; etcd's is usually 2379".into()));
    }
    if !matches!(endpoint.uri().path(), "" | "/") || endpoint.uri().query().is_some() {
        return Err(bad("it may only have a scheme, a host and a port".into()));
    }
    let mut endpoint = endpoint
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    if url.starts_with("https") {
        let tls_error = |reason: String| ConnectError::Tls { endpoint: given.into(), reason };
        let tls = options.tls.clone().unwrap_or_default();
        let ca =
            tls.ca_pem.ok_or_else(|| tls_error("no CA certificate is given; name the file with ca_file".into()))?;
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((certificate, key)) = tls.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        endpoint = endpoint.tls_config(config).map_err(|error| tls_error(root_cause(&error)))?;
    } else if options.tls.is_some() {
        return Err(bad("TLS is configured, but the endpoint says http; write https".into()));
    }
    Ok(Target { name: given.to_owned(), endpoint })
}

/// The innermost causes of an error: "transport error" alone helps nobody.
pub(crate) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut causes = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        source = error.source();
    }
    // The outer ones are tonic's and hyper's own names for "it did not work".
    causes.split_off(causes.len().saturating_sub(2)).join(": ")
}

/// What etcd, or the way to it, said.
pub(crate) fn describe(error: &EtcdError) -> String {
    match error {
        EtcdError::GRpcStatus(status) => match status.source() {
            Some(source) => root_cause(source),
            None => format!("{} ({:?})", status.message(), status.code()),
        },
        EtcdError::TransportError(error) => root_cause(error),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: &str) -> ConnectOptions {
        ConnectOptions { endpoints: vec![endpoint.into()], ..ConnectOptions::default() }
    }

    #[test]
    fn endpoints_that_cannot_be_used_are_named_with_what_is_wrong() {
        for (endpoint, fault) in [
            ("ftp://a:1", "neither http nor https"),
            ("http://a", "names no port"),
            ("http://a:2379/v3", "only have a scheme"),
            ("http://", "not usable"),
            ("a b:1", "not usable"),
        ] {
            let error = Connector::new(options(endpoint)).unwrap_err().to_string();
            assert!(error.contains(fault) && error.contains(endpoint), "{error}");
        }
        assert_eq!(
            Connector::new(ConnectOptions { endpoints: vec![], ..options("") }).unwrap_err(),
            ConnectError::NoEndpoints
        );
    }

    #[test]
    fn tls_needs_https_and_a_ca() {
        let error = Connector::new(options("https://a:1")).unwrap_err().to_string();
        assert!(error.contains("ca_file"), "{error}");
        let tls = TlsOptions { ca_pem: Some(Vec::new()), identity: None };
        let error = Connector::new(ConnectOptions { tls: Some(tls), ..options("http://a:1") }).unwrap_err().to_string();
        assert!(error.contains("write https"), "{error}");
    }

    #[tokio::test]
    async fn other_options_count_for_every_clone_and_bad_ones_change_nothing() {
        let connector = Connector::new(options("http://127.0.0.1:1")).unwrap();
        let clone = connector.clone();
        connector.replace(options("ftp://a:1")).unwrap_err();
        let error = clone.connect().await.err().unwrap().to_string();
        assert!(error.contains("127.0.0.1:1 "), "{error}");
        connector.replace(options("http://127.0.0.1:2")).unwrap();
        let error = clone.connect().await.err().unwrap().to_string();
        assert!(error.contains("127.0.0.1:2 "), "{error}");
    }

    #[test]
    fn passwords_and_keys_are_not_printed() {
        let auth = Some(Credentials { username: "u".into(), password: "secret".into() });
        let tls = Some(TlsOptions { ca_pem: None, identity: Some((b"cert".to_vec(), b"secret".to_vec())) });
        let text = format!("{:?}", ConnectOptions { auth, tls, ..ConnectOptions::default() });
        assert!(!text.contains("secret"), "{text}");
    }

    #[tokio::test]
    async fn attempts_go_round_the_endpoints_and_name_the_one_that_failed() {
        let endpoints = ["127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"].map(String::from).to_vec();
        let connector =
            Connector::new(ConnectOptions { endpoints: endpoints.clone(), ..ConnectOptions::default() }).unwrap();
        let mut met = Vec::new();
        for _ in 0..3 {
            match connector.connect().await {
                Err(ConnectError::Unreachable { endpoint, reason }) => {
                    assert!(reason.contains("refused"), "{reason}");
                    met.push(endpoint);
                }
                other => panic!("{:?}", other.err()),
            }
        }
        met.sort();
        assert_eq!(met, endpoints);
    }
}
