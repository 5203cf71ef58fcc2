//! A TCP proxy that can fail on demand: for connections that are half-open, half-closed, cut, slow or refused.
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::http::AbortOnDrop;
use crate::ports;

/// Reads that are under way in one direction, at most.
const QUEUE: usize = 64;
/// A throttled direction writes so often.
const SLICE: Duration = Duration::from_millis(50);

/// What happens to connections, those already open included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Bytes go through.
    Pass,
    /// Bytes go through, all of them that much later.
    Delay(Duration),
    /// Bytes go through, so many a second in each direction of each connection.
    Throttle(u32),
    /// Connections stay open, and new ones are accepted, but no byte goes through: half-open.
    Swallow,
    /// One direction ends, as if its sender had closed it, and what it still sends is lost; the other one goes on.
    HalfClose(Direction),
    /// Every connection is reset, new ones as soon as they are accepted.
    Reset,
    /// Every connection is reset, and nobody listens.
    Refuse,
}

/// One of a connection's two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
}

/// What the reader of a direction hands to its writer.
enum Chunk {
    /// To be written at that time.
    Bytes(Instant, Bytes),
    /// The rest was swallowed, its end included.
    Lost,
}

/// What holds now, and how often open connections were made half-open, or reset: what follows at once undoes neither.
#[derive(Debug, Clone, Copy)]
struct State {
    fault: Fault,
    generation: u64,
    resets: u64,
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
        let (fault, faults) = watch::channel(State { fault: Fault::Pass, generation: 0, resets: 0 });
        let task = AbortOnDrop(tokio::spawn(accept(listener, address, target, faults)));
        Ok(Self { address, fault, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens now.
    pub fn fault(&self) -> Fault {
        self.fault.borrow().fault
    }

    /// Changes what happens from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_modify(|state| {
            state.fault = fault;
            state.resets += u64::from(matches!(fault, Fault::Reset | Fault::Refuse));
        });
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
    let State { fault, resets, .. } = *faults.borrow();
    if matches!(fault, Fault::Reset | Fault::Refuse) {
        return;
    }
    tokio::select! {
        () = relay => {}
        _ = faults.wait_for(|state| state.resets > resets) => {}
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, mut faults: watch::Receiver<State>) {
    // Accepted while bytes are swallowed: open, and served only after that.
    if faults.wait_for(|state| state.fault != Fault::Swallow).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = server.set_nodelay(true).and(client.set_nodelay(true));
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    tokio::join!(
        pump(client_read, server_write, Direction::ToServer, faults.clone()),
        pump(server_read, client_write, Direction::ToClient, faults.clone())
    );
}

/// Carries one direction to its end.
async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, direction: Direction, faults: watch::Receiver<State>) {
    let (queue, queued) = mpsc::channel(QUEUE);
    tokio::join!(take(from, queue, direction, faults.clone()), give(queued, to, faults));
}

/// Reads to the end. What is read while bytes are swallowed is lost, and so the connection is broken for good: it is
/// never passed on again with a hole in it, nor does its end arrive.
async fn take(
    mut from: ReadHalf<'_>,
    queue: mpsc::Sender<Chunk>,
    direction: Direction,
    mut faults: watch::Receiver<State>,
) {
    let mut queue = Some(queue);
    let mut broken = false;
    let generation = faults.borrow().generation;
    loop {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let closes = async |faults: &mut watch::Receiver<State>| {
            faults.wait_for(|state| state.fault == Fault::HalfClose(direction)).await.map(drop).is_ok()
        };
        tokio::select! {
            read = from.read_buf(&mut buffer) => if !matches!(read, Ok(1..)) { break },
            true = closes(&mut faults), if queue.is_some() => {
                queue = None;
                continue;
            }
        }
        let state = *faults.borrow();
        broken |= state.fault == Fault::Swallow || state.generation > generation;
        let delay = if let Fault::Delay(delay) = state.fault { delay } else { Duration::ZERO };
        if broken {
            continue;
        }
        if let Some(queue) = &queue
            && queue.send(Chunk::Bytes(Instant::now() + delay, buffer.freeze())).await.is_err()
        {
            break;
        }
    }
    if broken && let Some(queue) = queue {
        // Fails if the writer has ended already.
        let _ = queue.send(Chunk::Lost).await;
    }
}

/// Writes what was read, when it is due, and closes after the last of it, unless that was lost.
async fn give(mut queued: mpsc::Receiver<Chunk>, mut to: WriteHalf<'_>, faults: watch::Receiver<State>) {
    while let Some(chunk) = queued.recv().await {
        let Chunk::Bytes(due, mut bytes) = chunk else { return };
        tokio::time::sleep_until(due).await;
        while !bytes.is_empty() {
            let Fault::Throttle(rate) = faults.borrow().fault else {
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
                break;
            };
            let slice = (f64::from(rate) * SLICE.as_secs_f64()).ceil() as usize;
            let slice = bytes.split_to(slice.clamp(1, bytes.len()));
            if to.write_all(&slice).await.is_err() {
                return;
            }
            tokio::time::sleep(SLICE).await;
        }
    }
    // The other end may be gone already.
    let _ = to.shutdown().await;
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
        // However short it is, it ends what was open.
        proxy.set(Fault::Pass);
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ping(&mut stream).await.unwrap();
        proxy.set(Fault::Reset);
        proxy.set(Fault::Pass);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
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

    #[tokio::test]
    async fn delayed_bytes_come_later_and_no_fewer_of_them_per_second() {
        let proxy = FaultProxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        ping(&mut stream).await.unwrap();
        proxy.set(Fault::Delay(Duration::from_millis(100)));
        let since = Instant::now();
        let (mut read, mut write) = stream.split();
        let send = async {
            for _ in 0..20 {
                write.write_all(&[7; 1000]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let mut answer = vec![0; 20_000];
        let (_, received) = tokio::join!(send, read.read_exact(&mut answer));
        received.unwrap();
        let took = since.elapsed();
        assert!(took >= Duration::from_millis(200), "there and back took {took:?}");
        assert!(took < Duration::from_millis(1000), "each read waited for the one before: {took:?}");
    }

    #[tokio::test]
    async fn a_throttled_connection_carries_so_many_bytes_a_second_and_all_at_once_afterwards() {
        let proxy = FaultProxy::start(echo_server().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.set(Fault::Throttle(20_000));
        let since = Instant::now();
        let mut answer = vec![0; 10_000];
        stream.write_all(&answer).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        let slow = since.elapsed();
        assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&slow), "{slow:?}");
        stream.write_all(&vec![0; 200_000]).await.unwrap();
        proxy.set(Fault::Pass);
        let since = Instant::now();
        stream.read_exact(&mut vec![0; 200_000]).await.unwrap();
        assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn a_half_closed_connection_ends_in_one_direction_and_goes_on_in_the_other() {
        for direction in [Direction::ToServer, Direction::ToClient] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            client.write_all(b"ping").await.unwrap();
            server.read_exact(&mut [0; 4]).await.unwrap();
            proxy.set(Fault::HalfClose(direction));
            let (open, ended) = match direction {
                Direction::ToServer => (&mut server, &mut client),
                Direction::ToClient => (&mut client, &mut server),
            };
            // `open`'s peer seems to have closed; what `open` sends still arrives, and the other way it is lost.
            assert_eq!(open.read(&mut [0; 4]).await.unwrap(), 0, "{direction:?}");
            ended.write_all(b"lost").await.unwrap();
            open.write_all(b"pong").await.unwrap();
            let mut answer = [0; 4];
            ended.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"pong", "{direction:?}");
            // A new connection has it from the start, and none once the fault is over.
            let mut fresh = TcpStream::connect(proxy.address()).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            let end = if direction == Direction::ToServer { &mut far } else { &mut fresh };
            assert_eq!(end.read(&mut [0; 4]).await.unwrap(), 0, "{direction:?}");
            proxy.set(Fault::Pass);
            let mut healed = TcpStream::connect(proxy.address()).await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            healed.write_all(b"ping").await.unwrap();
            far.read_exact(&mut answer).await.unwrap();
        }
    }
}
