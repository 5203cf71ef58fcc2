//! Locks and elections on a real etcd, which is stopped, restarted and compacted, beside the real `etcdctl`.

use std::{
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};
use waypost_registry::{Election, Held, Lock, LockError, LostCause};
use waypost_registry_testing::{Etcd, Mode, PATIENCE, Proxy, connector, eventually, get, tool};

const TTL: Duration = Duration::from_secs(3);
/// How long somebody who has to wait is watched waiting.
const WHILE: Duration = Duration::from_millis(300);

fn lock(etcd: &Etcd) -> Lock {
    Lock::new(etcd.connector(), "l", TTL).unwrap()
}

fn election(etcd: &Etcd) -> Election {
    Election::new(etcd.connector(), "e", TTL).unwrap()
}

fn put(key: &str, value: &str) -> Txn {
    Txn::new().and_then([TxnOp::put(key, value, None)])
}

async fn contenders(client: &Client, prefix: &str) -> usize {
    let answer = client.kv_client().get(prefix, Some(GetOptions::new().with_prefix().with_count_only())).await;
    answer.unwrap().count() as usize
}

async fn until_contenders(client: &Client, prefix: &str, wanted: usize) {
    eventually(&format!("{wanted} under {prefix}"), || async {
        (contenders(client, prefix).await == wanted).then_some(())
    })
    .await;
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

fn assert_lost<T: std::fmt::Debug>(outcome: Result<T, LockError>) {
    assert!(matches!(outcome, Err(LockError::Lost { .. })), "{outcome:?}");
}

/// The real `etcdctl`, holding or waiting. Killed when dropped.
struct Ctl {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Ctl {
    fn run(etcd: &Etcd, arguments: &[&str]) -> Self {
        let mut process = Command::new(tool("etcdctl"))
            .args(["--endpoints", &etcd.url()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    async fn line(&mut self) -> String {
        soon("etcdctl prints a line", self.lines.next_line()).await.unwrap().unwrap()
    }

    async fn waits(&mut self) {
        let line = tokio::time::timeout(WHILE, self.lines.next_line()).await;
        assert!(line.is_err(), "etcdctl does not wait: {line:?}");
    }

    /// Ends it as Ctrl-C does: it gives back what it holds.
    async fn interrupt(mut self) {
        let pid = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
        soon("etcdctl ends", self.process.wait()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_never_hold_a_lock_and_each_holder_has_a_larger_token() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let lock = lock(&etcd);
    static INSIDE: AtomicUsize = AtomicUsize::new(0);
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move {
                let mut tokens = Vec::new();
                for _ in 0..5 {
                    let held = lock.acquire(PATIENCE).await.unwrap();
                    assert_eq!(INSIDE.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    tokens.push((Instant::now(), held.fencing_token()));
                    assert_eq!(INSIDE.fetch_sub(1, Ordering::SeqCst), 1);
                    held.release().await.unwrap();
                }
                tokens
            })
        })
        .collect();
    let mut tokens = Vec::new();
    for worker in workers {
        tokens.extend(worker.await.unwrap());
    }
    tokens.sort();
    assert!(tokens.is_sorted_by(|a, b| a.1 < b.1), "{tokens:?}");
    assert_eq!(tokens.len(), 40);
    assert_eq!(contenders(&client, "l/").await, 0);
    assert!(client.lease_client().leases().await.unwrap().leases().is_empty(), "leases are left");
}

#[tokio::test]
async fn trying_does_not_wait_and_waiting_ends_at_its_deadline() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let lock = lock(&etcd);
    let held = lock.try_acquire(PATIENCE).await.unwrap().expect("nobody holds it");
    assert!(lock.try_acquire(PATIENCE).await.unwrap().is_none());
    let since = Instant::now();
    let error = lock.acquire(WHILE).await.unwrap_err();
    assert!(since.elapsed() < TTL, "{:?}", since.elapsed());
    assert!(error.to_string().contains(&format!("key {} is before ours", held.key())), "{error}");
    until_contenders(&client, "l/", 1).await;

    let mut lost = Box::pin(held.lost());
    assert!(tokio::time::timeout(TTL + WHILE, &mut lost).await.is_err(), "the lease is renewed");
    held.check().unwrap();
    // Dropping releases too, without anybody waiting for it; here somebody does.
    drop(held);
    assert_eq!(lost.await, LostCause::Released);
    lock.wind_up(PATIENCE).await;
    assert_eq!(contenders(&client, "l/").await, 0);

    assert_eq!(Lock::new(etcd.connector(), "", TTL).unwrap_err(), LockError::NoName);
    let nowhere = Lock::new(connector(&["http://127.0.0.1:1".into()]), "l", TTL).unwrap();
    let error = nowhere.acquire(WHILE).await.unwrap_err();
    assert!(error.to_string().contains("http://127.0.0.1:1 cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_lock_passes_between_us_and_etcdctl_in_both_directions() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let lock = lock(&etcd);

    let mut theirs = Ctl::run(&etcd, &["lock", "l"]);
    let their_key = theirs.line().await;
    assert!(lock.try_acquire(PATIENCE).await.unwrap().is_none());
    lock.wind_up(PATIENCE).await;
    let ours = lock.acquire(PATIENCE);
    tokio::pin!(ours);
    assert!(tokio::time::timeout(WHILE, &mut ours).await.is_err(), "etcdctl holds it");
    assert!(get(&client, &their_key).await.is_some());
    assert_eq!(contenders(&client, "l/").await, 2);
    theirs.interrupt().await;
    let ours = ours.await.unwrap();
    assert_eq!(ours.key(), format!("l/{:x}", ours.lease()));

    let mut theirs = Ctl::run(&etcd, &["lock", "l"]);
    until_contenders(&client, "l/", 2).await;
    theirs.waits().await;
    ours.release().await.unwrap();
    let released = Instant::now();
    let their_key = theirs.line().await;
    assert!(their_key.starts_with("l/") && released.elapsed() < TTL, "{:?}", released.elapsed());
    theirs.interrupt().await;
}

#[tokio::test]
async fn a_leadership_passes_between_us_and_etcdctl_in_both_directions() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let election = election(&etcd);
    let mut observer = election.observe();
    assert_eq!(election.leader(PATIENCE).await.unwrap(), None);

    let mut theirs = Ctl::run(&etcd, &["elect", "e", "theirs"]);
    let their_key = theirs.line().await;
    assert_eq!(theirs.line().await, "theirs");
    let leader = election.leader(PATIENCE).await.unwrap().unwrap();
    assert_eq!((leader.key.as_str(), leader.value.as_slice()), (their_key.as_str(), b"theirs".as_slice()));
    assert_eq!(soon("observed", observer.next()).await.unwrap(), leader);

    let ours = election.campaign("ours", PATIENCE);
    tokio::pin!(ours);
    assert!(tokio::time::timeout(WHILE, &mut ours).await.is_err(), "etcdctl leads");
    theirs.interrupt().await;
    let ours = ours.await.unwrap();
    assert!(ours.am_leader());
    assert_eq!(soon("observed", observer.next()).await.unwrap().value, b"ours");

    let mut listener = Ctl::run(&etcd, &["elect", "--listen", "e"]);
    assert_eq!((listener.line().await, listener.line().await), (ours.key().to_owned(), "ours".into()));
    let mut theirs = Ctl::run(&etcd, &["elect", "e", "theirs again"]);
    until_contenders(&client, "e/", 2).await;
    theirs.waits().await;
    ours.proclaim("ours, changed").await.unwrap();
    assert_eq!((listener.line().await, listener.line().await), (ours.key().to_owned(), "ours, changed".into()));
    let changed = soon("observed", observer.next()).await.unwrap();
    assert_eq!((changed.token, changed.value.as_slice()), (ours.fencing_token(), b"ours, changed".as_slice()));
    ours.resign().await.unwrap();
    theirs.line().await;
    assert_eq!(theirs.line().await, "theirs again");
    assert_eq!(soon("observed", observer.next()).await.unwrap().value, b"theirs again");
    theirs.interrupt().await;
    eventually("nobody leads", || async { observer.leader().is_none().then_some(()) }).await;
}

#[tokio::test]
async fn who_loses_the_lease_or_the_key_is_told_and_can_write_no_more() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let lock = lock(&etcd);

    let held = lock.acquire(PATIENCE).await.unwrap();
    held.transaction(put("written", "1")).await.unwrap();
    // The caller's own comparison failing is not the lock being lost.
    let other = Txn::new().when([Compare::value("written", CompareOp::Equal, "2")]).and_then([]);
    assert!(!held.transaction(other).await.unwrap().succeeded());
    let lost = held.lost();
    let since = Instant::now();
    client.lease_revoke(held.lease()).await.unwrap();
    assert_lost(held.transaction(put("written", "2")).await);
    assert_eq!(soon("lost", lost).await, LostCause::KeyDeleted);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(get(&client, "written").await.unwrap().0, "1");
    assert_lost(held.check());
    assert_lost(held.release().await);

    // Without anybody using it, the loss is seen by itself.
    let held = lock.acquire(PATIENCE).await.unwrap();
    client.delete(held.key(), None).await.unwrap();
    assert_eq!(soon("lost", held.lost()).await, LostCause::KeyDeleted);
    let next = lock.acquire(PATIENCE).await.unwrap();
    assert!(next.fencing_token() > held.fencing_token());
    assert_lost(held.transaction(put("written", "3")).await);
    assert_eq!(get(&client, "written").await.unwrap().0, "1");

    // A waiter that loses its lease, and one that loses its key, start anew.
    for revoke in [true, false] {
        let waiting = lock.acquire(PATIENCE);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(WHILE, &mut waiting).await.is_err());
        let line = client.get("l/", Some(GetOptions::new().with_prefix())).await.unwrap();
        let waiter = line.kvs().iter().find(|kv| kv.lease() != next.lease()).unwrap();
        if revoke {
            client.lease_revoke(waiter.lease()).await.unwrap();
        } else {
            client.delete(waiter.key(), None).await.unwrap();
        }
        let again = async {
            let prefix = "l/";
            until_contenders(&client, prefix, 2).await;
        };
        tokio::select! {
            outcome = &mut waiting => panic!("{outcome:?}"),
            () = again => {}
        }
    }
    assert!(next.check().is_ok());
}

#[tokio::test]
async fn a_holder_whose_etcd_is_away_gives_up_before_its_lease_can_end() {
    let mut etcd = Etcd::start().await;
    let ttl = Duration::from_secs(5);
    let lock = Lock::new(etcd.connector(), "l", ttl).unwrap();
    let held = lock.acquire(PATIENCE).await.unwrap();
    let lost = held.lost();
    tokio::time::sleep(WHILE).await;
    let stopped = Instant::now();
    etcd.kill().await;
    let cause = soon("lost", lost).await;
    let after = stopped.elapsed();
    assert!(matches!(&cause, LostCause::Expired { cause, .. } if cause.contains("cannot be reached")), "{cause}");
    assert!(after < ttl && after > ttl / 3, "{after:?}");
    assert_lost(held.transaction(put("written", "1")).await);

    // It stays lost, though etcd brings the lease back to life.
    etcd.run().await;
    let client = etcd.client().await;
    assert!(get(&client, held.key()).await.is_some());
    assert_lost(held.check());
    assert_lost(held.release().await);
    until_contenders(&client, "l/", 0).await;
}

#[tokio::test]
async fn a_silent_connection_costs_a_holder_its_lock_and_it_passes_to_the_next() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let behind = Lock::new(connector(&[proxy.url()]), "l", TTL).unwrap();
    let held = behind.acquire(PATIENCE).await.unwrap();
    let next = tokio::spawn({
        let lock = lock(&etcd);
        async move { (lock.acquire(PATIENCE).await.unwrap(), Instant::now()) }
    });
    tokio::time::sleep(WHILE).await;
    proxy.set(Mode::Swallow);
    assert!(matches!(soon("lost", held.lost()).await, LostCause::Expired { .. }));
    let lost_at = Instant::now();
    let (next, taken_at) = soon("handed over", next).await.unwrap();
    assert!(lost_at < taken_at, "both held it");
    assert!(next.fencing_token() > held.fencing_token());
}

#[tokio::test]
async fn waiters_and_holders_outlive_a_short_restart_and_compaction() {
    let mut etcd = Etcd::start().await;
    // The dead endpoint has its turn too.
    let endpoints = ["http://127.0.0.1:1".to_owned(), etcd.url()];
    let lock = Lock::new(connector(&endpoints), "l", Duration::from_secs(5)).unwrap();
    let election = Election::new(connector(&endpoints), "e", Duration::from_secs(5)).unwrap();
    let held = lock.acquire(PATIENCE).await.unwrap();
    let leadership = election.campaign("one", PATIENCE).await.unwrap();
    let mut observer = election.observe();
    assert_eq!(soon("observed", observer.next()).await.unwrap().value, b"one");
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire(PATIENCE).await }
    });
    let mut client = etcd.client().await;
    until_contenders(&client, "l/", 2).await;

    etcd.kill().await;
    tokio::time::sleep(WHILE).await;
    etcd.run().await;
    client = etcd.client().await;
    for n in 0..20 {
        client.put("noise", n.to_string(), None).await.unwrap();
    }
    let revision = client.get("noise", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    held.transaction(put("written", "1")).await.unwrap();
    assert!(!waiter.is_finished(), "it is still held");
    held.release().await.unwrap();
    let next: Held = soon("handed over", waiter).await.unwrap().unwrap();
    next.check().unwrap();
    leadership.proclaim("two").await.unwrap();
    assert_eq!(soon("observed", observer.next()).await.unwrap().value, b"two");
}

#[tokio::test]
async fn a_leader_that_dies_takes_no_lock_with_it_and_waiters_get_theirs() {
    let mut members = Etcd::start_cluster().await;
    let endpoints: Vec<_> = members.iter().map(Etcd::url).collect();
    let lock = Lock::new(connector(&endpoints), "l", TTL).unwrap();
    let held = lock.acquire(PATIENCE).await.unwrap();
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire(PATIENCE).await }
    });
    let client = members[0].client().await;
    until_contenders(&client, "l/", 2).await;

    let mut leader = None;
    for (n, member) in members.iter().enumerate() {
        let status = member.client().await.status().await.unwrap();
        if status.leader() == status.header().unwrap().member_id() {
            leader = Some(n);
        }
    }
    members[leader.expect("one leads")].kill().await;
    let lost = tokio::time::timeout(TTL + Duration::from_secs(1), held.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    held.transaction(put("written", "1")).await.unwrap();
    assert!(!waiter.is_finished(), "it is still held");
    held.release().await.unwrap();
    soon("handed over", waiter).await.unwrap().unwrap().check().unwrap();
}

#[tokio::test]
async fn a_holder_that_dies_hands_over_when_its_lease_ends() {
    let etcd = Etcd::start().await;
    let theirs = lock(&etcd);
    let key = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let held = runtime.block_on(theirs.acquire(PATIENCE)).unwrap();
        let key = held.key().to_owned();
        // As when the process is killed: nothing runs any more.
        runtime.shutdown_timeout(PATIENCE);
        drop(held);
        key
    })
    .await
    .unwrap();
    let since = Instant::now();
    let ours = lock(&etcd).acquire(PATIENCE).await.unwrap();
    assert_ne!(ours.key(), key);
    assert!(since.elapsed() > TTL / 2 && since.elapsed() < TTL + Duration::from_secs(4), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_wiped_etcd_costs_the_holder_its_lock_and_a_waiter_starts_anew() {
    let mut etcd = Etcd::start().await;
    let lock = Lock::new(etcd.connector(), "l", Duration::from_secs(10)).unwrap();
    let held = lock.acquire(PATIENCE).await.unwrap();
    let client = etcd.client().await;
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire(PATIENCE).await }
    });
    until_contenders(&client, "l/", 2).await;
    etcd.wipe().await;
    assert_eq!(soon("lost", held.lost()).await, LostCause::LeaseGone);
    soon("had", waiter).await.unwrap().unwrap().check().unwrap();
}
