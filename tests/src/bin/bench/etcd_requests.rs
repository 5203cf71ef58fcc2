//! What etcd has to do, by its own metrics.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use waypost_tests::{Etcd, http, stats};

/// How often the peak is looked for.
const INTERVAL: Duration = Duration::from_millis(200);

/// Requests so far: finished calls, and messages on streams (each renewal of a lease is one).
pub async fn total(etcd: &Etcd) -> Result<f64> {
    read(etcd.address(0)?).await
}

async fn read(etcd: std::net::SocketAddr) -> Result<f64> {
    let text = http::get_text(etcd, "/metrics").await?;
    let sum = |name, kind| stats::prometheus(&text, name, &[("grpc_type", kind)]).unwrap_or(0.0);
    Ok(sum("grpc_server_handled_total", "unary") + sum("grpc_server_msg_received_total", "bidi_stream"))
}

/// Looks for the busiest moment until it is asked.
pub struct Peak {
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<f64>,
}

impl Peak {
    /// Begins.
    pub async fn watch(etcd: &Etcd) -> Result<Self> {
        let address = etcd.address(0)?;
        let mut last = (Instant::now(), read(address).await?);
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut peak = 0.0_f64;
            while stopped.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty) {
                let now = read(address).await;
                let at = Instant::now();
                if let Ok(now) = now {
                    // A restarted etcd counts from 0.
                    let before = if last.1 <= now { last.1 } else { 0.0 };
                    peak = peak.max((now - before) / at.duration_since(last.0).as_secs_f64());
                }
                last = (at, now.unwrap_or(0.0));
                tokio::time::sleep(INTERVAL).await;
            }
            peak
        });
        Ok(Self { stop, task })
    }

    /// Requests per second at the busiest.
    pub async fn end(self) -> Result<f64> {
        // An ended task has what it has.
        let _ = self.stop.send(());
        self.task.await.context("counting etcd's requests")
    }
}
