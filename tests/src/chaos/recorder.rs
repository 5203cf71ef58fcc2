//! etcd's own word: every change of every key, watched on a connection that no fault proxy stands before.
//!
//! It goes on where it was after a restart of etcd. After a wipe or a restore, of which it is told by whoever does it,
//! it begins anew; so it does where etcd has compacted away what it had not seen.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etcd_client::{GetOptions, WatchOptions, WatchResponse};
use tokio::sync::watch;

use crate::chaos::history::{Change, Entry, Key, Log, What};
use crate::etcd::Etcd;
use crate::http::AbortOnDrop;

const RETRY: Duration = Duration::from_millis(20);
/// A watch's answer to ten thousand changes at once is larger than gRPC takes by default.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Watches until dropped.
pub struct Recorder {
    data: watch::Sender<u64>,
    _task: AbortOnDrop<()>,
}

impl Recorder {
    /// Watches all of etcd from its beginning on.
    pub fn start(etcd: Arc<Etcd>, log: Log) -> Self {
        let (data, told) = watch::channel(0);
        let task = Task { etcd, log, told, position: None };
        Self { data, _task: AbortOnDrop(tokio::spawn(task.run())) }
    }

    /// Tells that etcd, which is down, will come back with other data.
    pub fn data_replaced(&self) {
        self.data.send_modify(|data| *data += 1);
    }
}

struct Task {
    etcd: Arc<Etcd>,
    log: Log,
    told: watch::Receiver<u64>,
    position: Option<Position>,
}

/// How far it is.
struct Position {
    data: u64,
    /// The revision to go on from, and the keys of it that are recorded.
    revision: i64,
    seen: HashSet<Key>,
}

impl Task {
    async fn run(mut self) {
        loop {
            // etcd is down, or went down: that is what it is tested with.
            let _ = self.follow().await;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&mut self) -> Result<()> {
        let data = *self.told.borrow();
        let client = self.etcd.client().await?;
        let known = self.position.as_ref().filter(|position| position.data == data);
        let from = known.map_or(1, |position| position.revision);
        let options = WatchOptions::new().with_range(vec![0]).with_start_revision(from);
        let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let mut stream = watch.watch(vec![0], Some(options)).await?;
        while let Some(answer) = stream.message().await? {
            // etcd is killed before its data is replaced: who still answers after that has the new data.
            if *self.told.borrow() != data {
                bail!("the data was replaced meanwhile");
            }
            if answer.compact_revision() > 0 {
                return self.begin_at(answer.compact_revision(), data).await;
            }
            if answer.canceled() {
                bail!("cancelled: {}", answer.cancel_reason());
            }
            if self.position.as_ref().is_none_or(|position| position.data != data) {
                self.log.add(What::Epoch { revision: 0, entries: Vec::new() });
                self.position = Some(Position { data, revision: 1, seen: HashSet::new() });
            }
            self.record(&answer);
        }
        Ok(())
    }

    /// What was before this revision is not to be had any more.
    async fn begin_at(&mut self, revision: i64, data: u64) -> Result<()> {
        let client = self.etcd.client().await?;
        let options = GetOptions::new().with_range(vec![0]).with_revision(revision);
        let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = kv.get(vec![0], Some(options)).await?;
        if *self.told.borrow() != data {
            bail!("the data was replaced meanwhile");
        }
        let entries = answer.kvs().iter().map(entry).collect();
        self.log.add(What::Epoch { revision, entries });
        self.position = Some(Position { data, revision: revision + 1, seen: HashSet::new() });
        Ok(())
    }

    fn record(&mut self, answer: &WatchResponse) {
        let Some(position) = &mut self.position else { return };
        for found in answer.events().iter().filter_map(|event| event.kv()) {
            let entry = entry(found);
            if entry.revision > position.revision {
                position.revision = entry.revision;
                position.seen.clear();
            }
            if !position.seen.insert(entry.key.clone()) {
                continue;
            }
            let change = match found.version() {
                0 => Change::Deleted { key: entry.key, revision: entry.revision },
                _ => Change::Put(entry),
            };
            self.log.add(What::Said { change });
        }
    }
}

fn entry(found: &etcd_client::KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(found.key()).into_owned(),
        value: String::from_utf8_lossy(found.value()).into_owned(),
        lease: found.lease(),
        revision: found.mod_revision(),
    }
}

/// Waits until etcd takes a linearizable read.
pub(super) async fn answers(etcd: &Etcd) -> Result<()> {
    crate::wait::eventually(Duration::from_secs(30), "etcd to answer", || async {
        let client = etcd.client().await?;
        client.kv_client().get("waypost-tests-no-such-key", None).await.map(drop).context("no answer")
    })
    .await
}
