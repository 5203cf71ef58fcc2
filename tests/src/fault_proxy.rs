//! A TCP proxy that can fail on demand: for connections that are half-open, cut, slow or refused.
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::http::AbortOnDrop;
use crate::ports;

/// What happens to connections, those already open included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Bytes go through.
    Pass,
    /// Bytes go through, each read that much later.
    Delay(Duration),
    /// Connections stay open, and new ones are accepted, but no byte goes through: half-open.
    Swallow,
    /// Every connection is reset, new ones as soon as they are accepted.
    Reset,
    /// Every connection is reset, and nobody listens.
    Refuse,
}

/// What holds now, and how often open connections were given up.
#[derive(Debug, Clone, Copy)]
struct State {
    fault: Fault,
    generation: u64,
}

/// Stands in front of one address, on a port of its own, until dropped.
pub struct FaultProxy {
    address: SocketAddr,
    fault: watch::Sender<State>,
    _task: AbortOnDrop<()>,
}

impl FaultProxy {
    /// Listens and passes everything on to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let address = ports::local()?;
        let listener = listen(address)?;
        let (fault, faults) = watch::channel(State { fault: Fault::Pass, generation: 0 });
        let task = AbortOnDrop(tokio::spawn(accept(listener, address, target, faults)));
        Ok(Self { address, fault, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_modify(|state| state.fault = fault);
    }

    /// The connections that are open now become half-open for good; new ones are served.
    pub fn half_open(&self) {
        self.fault.send_modify(|state| state.generation += 1);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // The port is bound again after `Refuse`, while closed connections linger on it.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

async fn accept(listener: TcpListener, address: SocketAddr, target: SocketAddr, mut faults: watch::Receiver<State>) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let state = *faults.borrow_and_update();
        match state.fault {
            Fault::Refuse => {
                listener = None;
                if faults.changed().await.is_err() {
                    return;
                }
                continue;
            }
            _ if listener.is_none() => match listen(address) {
                Ok(bound) => listener = Some(bound),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            _ => {}
        }
        let Some(open) = &listener else { continue };
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { return },
            accepted = open.accept() => if let Ok((client, _)) = accepted {
                connections.spawn(serve(client, target, faults.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(client: TcpStream, target: SocketAddr, mut faults: watch::Receiver<State>) {
    // Reset rather than closed: what was cut off says no good-bye.
    let _ = client.set_zero_linger();
    let relay = relay(client, target, faults.clone());
    tokio::select! {
        () = relay => {}
        _ = faults.wait_for(|state| matches!(state.fault, Fault::Reset | Fault::Refuse)) => {}
    }
}

async fn relay(client: TcpStream, target: SocketAddr, mut faults: watch::Receiver<State>) {
    // Accepted while bytes are swallowed: open, and served only after that.
    if faults.wait_for(|state| state.fault != Fault::Swallow).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = server.set_nodelay(true).and(client.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(pump(client_read, server_write, faults.clone()), pump(server_read, client_write, faults.clone()));
}

/// Copies until the end. What is read while bytes are swallowed is lost, and so the connection is broken for good: it
/// is never passed on again with a hole in it.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: watch::Receiver<State>) {
    let mut buffer = vec![0; 64 * 1024];
    let generation = faults.borrow().generation;
    let mut broken = false;
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let state = *faults.borrow();
        broken |= state.fault == Fault::Swallow || state.generation > generation;
        if broken {
            continue;
        }
        if let Fault::Delay(delay) = state.fault {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    if !broken {
        let _ = to.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo_server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn ping(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read_exact(&mut answer));
        read.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(drop)
    }

    #[tokio::test]
    async fn bytes_pass_then_vanish_while_the_connection_stays_open() {
        let proxy = FaultProxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ping(&mut stream).await.unwrap();
        proxy.set(Fault::Swallow);
        assert_eq!(ping(&mut stream).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut fresh = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ping(&mut fresh).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        proxy.set(Fault::Pass);
        ping(&mut TcpStream::connect(proxy.address()).await.unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn open_connections_become_half_open_while_new_ones_are_served() {
        let proxy = FaultProxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ping(&mut stream).await.unwrap();
        proxy.half_open();
        ping(&mut TcpStream::connect(proxy.address()).await.unwrap()).await.unwrap();
        assert_eq!(ping(&mut stream).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_reset_ends_open_connections_and_new_ones() {
        let proxy = FaultProxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ping(&mut stream).await.unwrap();
        proxy.set(Fault::Reset);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_ne!(ping(&mut stream).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut fresh = TcpStream::connect(proxy.address()).await.unwrap();
        assert_ne!(ping(&mut fresh).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn nobody_listens_while_it_refuses_and_the_port_comes_back() {
        let proxy = FaultProxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ping(&mut stream).await.unwrap();
        proxy.set(Fault::Refuse);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        proxy.set(Fault::Pass);
        tokio::time::sleep(Duration::from_millis(100)).await;
        ping(&mut TcpStream::connect(proxy.address()).await.unwrap()).await.unwrap();
    }
}
