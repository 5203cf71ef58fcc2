//! Ports for servers that must be found again on the same port after a restart.
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// Below the kernel's range of ephemeral ports: no outgoing connection takes such a port while its server is down.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A port of `ip` that nobody listens on, and that this process hands out once only.
pub fn reserve(ip: IpAddr) -> Result<SocketAddr> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = taken.get_or_insert_default();
    for _ in 0..1_000 {
        let port = fastrand::u16(RANGE);
        if !taken.contains(&port) && TcpListener::bind((ip, port)).is_ok() {
            taken.insert(port);
            return Ok(SocketAddr::new(ip, port));
        }
    }
    bail!("no free port on {ip} in {RANGE:?}")
}

/// As [`reserve`], on 127.0.0.1.
pub fn local() -> Result<SocketAddr> {
    reserve(IpAddr::from([127, 0, 0, 1]))
}
