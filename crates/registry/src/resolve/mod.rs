//! Looks up the names of nodes' hosts, again and again: Envoy's endpoints are addresses.
//!
//! What to look up when is decided by `machine`, whose page says how; the task here carries it out. Who has a
//! [`View`](crate::View) keeps the names that it wants in step with [`View::names`](crate::View::names), and takes the
//! answers into [`Addresses`].

mod addresses;
mod machine;

use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc, time::Instant};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::addresses::Addresses;
use self::machine::{Machine, Step};
use crate::host::HostName;

/// Answers on their way to the consumer.
const QUEUE: usize = 64;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The name.
    pub name: HostName,
    /// Its addresses, at least one; none if it could not be looked up and never could before.
    pub addresses: Option<Arc<[IpAddr]>>,
}

/// Who can look a name up.
pub trait Lookup: Send + Sync + 'static {
    /// All addresses of a name.
    fn look_up(&self, name: &HostName) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
}

/// The system's resolver, with `/etc/hosts` and whatever else it is configured to ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    async fn look_up(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// Keeps looking up the names that are wanted.
///
/// Addresses once known stay until a lookup answers with others. Of a name with addresses of both families those of
/// IPv4 are used.
#[derive(Debug)]
pub struct Resolver {
    /// One after the other, so that a name which was not wanted for a moment is told of anew.
    wanted: mpsc::UnboundedSender<BTreeSet<HostName>>,
    resolutions: mpsc::Receiver<Resolution>,
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Resolver {
    /// Starts, on the present Tokio runtime, with no names. Dropping it ends it.
    pub fn start(lookup: impl Lookup) -> Self {
        let (wanted, wanted_receiver) = mpsc::unbounded_channel();
        let (sender, resolutions) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(Arc::new(lookup), wanted_receiver, sender, stop.clone()));
        Self { wanted, resolutions, task, stop: stop.drop_guard() }
    }

    /// Exactly these names are wanted from now on. Of one that was not before [`Self::next`] says something within
    /// seconds, also if it cannot be looked up.
    pub fn want(&self, names: BTreeSet<HostName>) {
        // The task ends with its runtime only, and then nobody waits for an answer any more.
        let _ = self.wanted.send(names);
    }

    /// The next news of a name. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Resolution {
        match self.resolutions.recv().await {
            Some(resolution) => resolution,
            // The task ends with its runtime only, and nobody will say anything any more.
            None => std::future::pending().await,
        }
    }

    /// Ends it, and returns when it has ended. A lookup under way is not waited for.
    pub async fn shutdown(self) {
        drop(self.stop);
        // The task heeds the token wherever it waits.
        let _ = self.task.await;
    }
}

async fn run(
    lookup: Arc<impl Lookup>,
    mut wanted: mpsc::UnboundedReceiver<BTreeSet<HostName>>,
    resolutions: mpsc::Sender<Resolution>,
    stop: CancellationToken,
) {
    let work = async {
        let mut machine = Machine::default();
        let mut lookups = JoinSet::new();
        loop {
            let step = machine.next(now());
            while let Some(resolution) = machine.take_resolution() {
                if resolutions.send(resolution).await.is_err() {
                    return;
                }
            }
            match step {
                Step::LookUp(name) => {
                    let lookup = Arc::clone(&lookup);
                    lookups.spawn(async move {
                        let outcome = lookup.look_up(&name).await.map_err(|error| error.to_string());
                        (name, outcome)
                    });
                }
                Step::Wait(until) => tokio::select! {
                    names = wanted.recv() => match names {
                        Some(names) => machine.want(&names, now()),
                        None => return,
                    },
                    Some(ended) = lookups.join_next() => {
                        if let Ok((name, outcome)) = ended {
                            machine.done(&name, outcome, now(), fastrand::f64());
                        }
                    }
                    () = sleep_until(until) => {}
                },
            }
        }
    };
    stop.run_until_cancelled(work).await;
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use super::*;

    /// Names that can be given other addresses.
    #[derive(Clone, Default)]
    struct Names(Arc<Mutex<HashMap<String, Vec<IpAddr>>>>);

    impl Names {
        fn set(&self, name: &str, addresses: &[[u8; 4]]) {
            let addresses = addresses.iter().map(|ip| IpAddr::from(*ip)).collect();
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), addresses);
        }
    }

    impl Lookup for Names {
        async fn look_up(&self, name: &HostName) -> io::Result<Vec<IpAddr>> {
            if name.as_str() == "silent" {
                std::future::pending::<()>().await;
            }
            let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            names.get(name.as_str()).cloned().ok_or_else(|| io::Error::other("no such name"))
        }
    }

    fn names(names: &[&str]) -> BTreeSet<HostName> {
        names.iter().map(|name| HostName::new(name).unwrap()).collect()
    }

    async fn next(resolver: &mut Resolver) -> (String, Option<Vec<IpAddr>>) {
        let resolution = tokio::time::timeout(Duration::from_secs(60), resolver.next()).await.unwrap();
        (resolution.name.to_string(), resolution.addresses.map(|addresses| addresses.to_vec()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_changes_is_followed_and_one_that_goes_keeps_its_last_addresses() {
        let lookup = Names::default();
        lookup.set("h1", &[[10, 0, 0, 1]]);
        let mut resolver = Resolver::start(lookup.clone());
        resolver.want(names(&["h1"]));
        assert_eq!(next(&mut resolver).await, ("h1".into(), Some(vec![[10, 0, 0, 1].into()])));
        lookup.set("h1", &[[10, 0, 0, 2], [10, 0, 0, 3]]);
        let both = vec![IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3])];
        assert_eq!(next(&mut resolver).await, ("h1".into(), Some(both)));
        lookup.0.lock().unwrap().clear();
        let silence = tokio::time::timeout(Duration::from_secs(120), resolver.next()).await;
        assert!(silence.is_err(), "{silence:?}");
        lookup.set("h1", &[[10, 0, 0, 4]]);
        assert_eq!(next(&mut resolver).await, ("h1".into(), Some(vec![[10, 0, 0, 4].into()])));
        resolver.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn names_without_an_answer_hold_nobody_up() {
        let lookup = Names::default();
        lookup.set("h1", &[[10, 0, 0, 1]]);
        let mut resolver = Resolver::start(lookup);
        resolver.want(names(&["h1", "silent", "unknown"]));
        let mut told = [next(&mut resolver).await, next(&mut resolver).await, next(&mut resolver).await];
        told.sort();
        let expected =
            [("h1".into(), Some(vec![[10, 0, 0, 1].into()])), ("silent".into(), None), ("unknown".into(), None)];
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn the_system_knows_localhost() {
        let mut resolver = Resolver::start(SystemLookup);
        resolver.want(names(&["localhost"]));
        let (_, addresses) = next(&mut resolver).await;
        assert!(addresses.unwrap().iter().all(IpAddr::is_loopback));
    }
}
