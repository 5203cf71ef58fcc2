//! The way to one client: a bounded queue, so that a slow client slows its own stream down and nothing else, and a
//! limit on how long that may last.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A client that takes no message for this long is dropped.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Messages that wait for a client. HTTP/2's own window comes on top.
const QUEUE: usize = 4;

/// What gRPC sends to the client.
pub type Outgoing<T> = ReceiverStream<Result<T, Status>>;

/// The sending end.
#[derive(Debug)]
pub struct Outbox<T> {
    queue: mpsc::Sender<Result<T, Status>>,
}

/// Why a stream ends before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    /// The client went away.
    #[error("the client closed it")]
    ClientGone,
    /// The client reads too slowly.
    #[error("the client took nothing for {} s", DRAIN_LIMIT.as_secs())]
    ClientSlow,
    /// The agent is stopping.
    #[error("the agent is stopping")]
    AgentStopping,
    /// The client broke the protocol, or its connection broke.
    #[error("{}", .0.message())]
    Failed(#[from] Status),
}

impl<T> Outbox<T> {
    /// A queue, and what to hand to gRPC.
    pub fn new() -> (Self, Outgoing<T>) {
        let (queue, outgoing) = mpsc::channel(QUEUE);
        (Self { queue }, ReceiverStream::new(outgoing))
    }

    /// Sends, waiting while the queue is full.
    ///
    /// # Errors
    /// [`StreamEnd::ClientGone`], and [`StreamEnd::ClientSlow`] after [`DRAIN_LIMIT`].
    pub async fn send(&self, message: T) -> Result<(), StreamEnd> {
        match timeout(DRAIN_LIMIT, self.queue.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StreamEnd::ClientGone),
            Err(_) => Err(StreamEnd::ClientSlow),
        }
    }

    /// Ends the stream and says why, as far as the client still listens.
    pub fn end(self, end: StreamEnd) {
        let status = match end {
            StreamEnd::ClientGone => return,
            StreamEnd::ClientSlow => Status::deadline_exceeded(end.to_string()),
            StreamEnd::AgentStopping => Status::unavailable(end.to_string()),
            StreamEnd::Failed(status) => status,
        };
        // A full queue means that nobody reads: the stream then ends without a reason.
        let _ = self.queue.try_send(Err(status));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_dropped_after_the_limit() {
        let (outbox, _outgoing) = Outbox::new();
        for message in 0..QUEUE {
            outbox.send(message).await.unwrap();
        }
        let before = Instant::now();
        assert!(matches!(outbox.send(QUEUE).await, Err(StreamEnd::ClientSlow)));
        assert_eq!(before.elapsed(), DRAIN_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_holds_the_sender_back_and_loses_nothing() {
        let (outbox, mut outgoing) = Outbox::new();
        let reader = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(message) = outgoing.next().await {
                tokio::time::sleep(Duration::from_secs(20)).await;
                seen.push(message.unwrap());
            }
            seen
        });
        let before = Instant::now();
        for message in 0..10 {
            outbox.send(message).await.unwrap();
        }
        assert!(before.elapsed() >= Duration::from_secs(80), "{:?}", before.elapsed());
        drop(outbox);
        assert_eq!(reader.await.unwrap(), (0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_noticed_and_a_waiting_one_is_told_the_end() {
        let (outbox, outgoing) = Outbox::new();
        drop(outgoing);
        assert!(matches!(outbox.send(1).await, Err(StreamEnd::ClientGone)));
        let (outbox, mut outgoing) = Outbox::<u32>::new();
        outbox.end(StreamEnd::AgentStopping);
        let status = outgoing.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(outgoing.next().await.is_none());
    }
}
