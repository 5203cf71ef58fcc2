//! A real etcd of one or three members: start, stop, wipe, and what `etcdctl` would be used for.
mod data;
mod users;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{
    Certificate, Client, CompactionOptions, ConnectOptions, DeleteOptions, GetOptions, PutOptions, TlsOptions, Txn,
    TxnOp,
};

use crate::authority::{Authority, Identity};
use crate::process::{Process, Signal};
use crate::scene::Scene;
use crate::{ports, tools, wait};

const START: Duration = Duration::from_secs(30);
/// etcd's own limit of operations in a transaction.
const OPS_PER_TXN: usize = 128;

/// An etcd cluster whose members keep their ports and, unless wiped, their data across restarts.
pub struct Etcd {
    members: Vec<Member>,
    tls: Option<Tls>,
    /// Password of `root`, once authentication is on.
    root: Mutex<Option<String>>,
}

/// What the harness itself connects with.
struct Tls {
    authority: PathBuf,
    identity: Identity,
}

/// What a cluster is made of.
#[derive(Default)]
pub struct EtcdOptions<'a> {
    members: usize,
    tls: Option<&'a Authority>,
    arguments: Vec<String>,
}

impl<'a> EtcdOptions<'a> {
    /// So many members.
    pub fn members(members: usize) -> Self {
        Self { members, ..Self::default() }
    }

    /// Serves clients over TLS alone, with a certificate `etcd` of this authority, and asks them for one of its too.
    pub fn tls(mut self, authority: &'a Authority) -> Self {
        self.tls = Some(authority);
        self
    }

    /// One more argument for each member, such as `--auth-token-ttl=2`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }
}

struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    process: Process,
}

/// A key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value, as text.
    pub value: String,
    /// Lease it hangs on, or 0.
    pub lease: i64,
    /// Revision at which it was made.
    pub create_revision: i64,
}

impl Etcd {
    /// One member, running.
    pub async fn start(scene: &Scene) -> Result<Self> {
        Self::start_cluster(scene, 1).await
    }

    /// Several members, all running and agreed on a leader.
    pub async fn start_cluster(scene: &Scene, size: usize) -> Result<Self> {
        let etcd = Self::prepare(scene, size)?;
        etcd.start_all().await?;
        Ok(etcd)
    }

    /// Ports and command lines, nothing started yet: agents can already be told the endpoints.
    pub fn prepare(scene: &Scene, size: usize) -> Result<Self> {
        Self::prepare_with(scene, EtcdOptions::members(size))
    }

    /// As [`Self::start_cluster`], with options.
    pub async fn start_with(scene: &Scene, options: EtcdOptions<'_>) -> Result<Self> {
        let etcd = Self::prepare_with(scene, options)?;
        etcd.start_all().await?;
        Ok(etcd)
    }

    /// As [`Self::prepare`], with options.
    pub fn prepare_with(scene: &Scene, options: EtcdOptions<'_>) -> Result<Self> {
        let EtcdOptions { members: size, tls, mut arguments } = options;
        let scheme = if tls.is_some() { "https" } else { "http" };
        if let Some(authority) = tls {
            let Identity { certificate, key } = authority.issue("etcd")?;
            arguments.extend([
                format!("--cert-file={}", certificate.display()),
                format!("--key-file={}", key.display()),
                format!("--trusted-ca-file={}", authority.certificate().display()),
                "--client-cert-auth".to_owned(),
            ]);
        }
        let program = tools::tool("etcd")?;
        let addresses: Vec<(SocketAddr, SocketAddr)> =
            (0..size).map(|_| Ok((ports::local()?, ports::local()?))).collect::<Result<_>>()?;
        let cluster: Vec<String> =
            addresses.iter().enumerate().map(|(i, (_, peer))| format!("etcd-{i}=http://{peer}")).collect();
        let cluster = cluster.join(",");
        let members = addresses.iter().enumerate().map(|(index, (client, peer))| {
            let name = format!("etcd-{index}");
            let data = scene.path().join(format!("{name}.data"));
            let args = [
                format!("--name={name}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={scheme}://{client}"),
                format!("--advertise-client-urls={scheme}://{client}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-advertise-peer-urls=http://{peer}"),
                format!("--initial-cluster={cluster}"),
                "--initial-cluster-state=new".to_owned(),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            let args = args.into_iter().chain(arguments.iter().cloned());
            Member { client: *client, peer: *peer, data, process: scene.process(&name, program.clone(), args) }
        });
        let members = members.collect();
        let tls = match tls {
            Some(authority) => {
                Some(Tls { authority: authority.certificate().to_owned(), identity: authority.issue("harness")? })
            }
            None => None,
        };
        Ok(Self { members, tls, root: Mutex::default() })
    }

    /// Starts every member and waits until all answer.
    pub async fn start_all(&self) -> Result<()> {
        for member in &self.members {
            member.process.start()?;
        }
        for index in 0..self.members.len() {
            self.wait_up(index).await?;
        }
        Ok(())
    }

    /// Starts one member again on its ports, with what data it has, and waits until it answers.
    pub async fn start_member(&self, index: usize) -> Result<()> {
        self.member(index)?.process.start()?;
        self.wait_up(index).await
    }

    /// SIGKILL to one member.
    pub async fn kill_member(&self, index: usize) -> Result<()> {
        self.member(index)?.process.kill().await
    }

    /// SIGKILL to the only member.
    pub async fn kill(&self) -> Result<()> {
        self.kill_member(0).await
    }

    /// Starts the only member again.
    pub async fn restart(&self) -> Result<()> {
        self.start_member(0).await
    }

    /// Kills the only member, removes its data and starts it again on the same ports. Name and addresses being the
    /// same, so is the cluster id: only the revisions tell.
    pub async fn wipe(&self) -> Result<()> {
        self.kill().await?;
        std::fs::remove_dir_all(&self.member(0)?.data)?;
        self.restart().await
    }

    /// Freezes a member (SIGSTOP): its connections stay open and nothing answers.
    pub fn freeze(&self, index: usize) -> Result<()> {
        self.member(index)?.process.signal(Signal::STOP)
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, index: usize) -> Result<()> {
        self.member(index)?.process.signal(Signal::CONT)
    }

    /// URL of every member.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.members.iter().map(|member| format!("{scheme}://{}", member.client)).collect()
    }

    /// Client address of a member.
    pub fn address(&self, index: usize) -> Result<SocketAddr> {
        Ok(self.member(index)?.client)
    }

    /// The member that leads, by its index.
    pub async fn leader(&self) -> Result<usize> {
        for (index, member) in self.members.iter().enumerate() {
            if member.process.pid().is_none() {
                continue;
            }
            let status = self.client_of(index).await?.status().await?;
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                return Ok(index);
            }
        }
        bail!("no member leads")
    }

    /// A client of the first member that runs.
    pub async fn client(&self) -> Result<Client> {
        let index = self.members.iter().position(|member| member.process.pid().is_some());
        self.client_of(index.context("no member of etcd runs")?).await
    }

    async fn client_of(&self, index: usize) -> Result<Client> {
        let mut options =
            ConnectOptions::new().with_connect_timeout(Duration::from_secs(2)).with_timeout(Duration::from_secs(4));
        if let Some(Tls { authority, identity }) = &self.tls {
            let authority = Certificate::from_pem(std::fs::read(authority)?);
            let own =
                etcd_client::Identity::from_pem(std::fs::read(&identity.certificate)?, std::fs::read(&identity.key)?);
            options = options.with_tls(TlsOptions::new().ca_certificate(authority).identity(own));
        }
        if let Some(password) = self.root.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            options = options.with_user("root", password);
        }
        let endpoint = self.endpoints().swap_remove(index);
        Ok(Client::connect([endpoint], Some(options)).await?)
    }

    /// Puts a key without a lease; the revision.
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<i64> {
        let put = self.client().await?.put(key, value, None).await?;
        Ok(put.header().map_or(0, etcd_client::ResponseHeader::revision))
    }

    /// Puts a key on a lease.
    pub async fn put_with_lease(&self, key: &str, value: impl Into<Vec<u8>>, lease: i64) -> Result<()> {
        self.client().await?.put(key, value, Some(PutOptions::new().with_lease(lease))).await?;
        Ok(())
    }

    /// Puts many keys, in as few transactions as etcd allows.
    pub async fn put_many(&self, entries: &[(String, String)]) -> Result<()> {
        let mut client = self.client().await?;
        for chunk in entries.chunks(OPS_PER_TXN) {
            let puts: Vec<TxnOp> =
                chunk.iter().map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), None)).collect();
            client.txn(Txn::new().and_then(puts)).await?;
        }
        Ok(())
    }

    /// Deletes a key; an error if there was none.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let deleted = self.client().await?.delete(key, None).await?.deleted();
        ensure!(deleted == 1, "deleted {deleted} keys instead of {key}");
        Ok(())
    }

    /// Deletes all keys that start with `prefix`; how many there were.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<i64> {
        Ok(self.client().await?.delete(prefix, Some(DeleteOptions::new().with_prefix())).await?.deleted())
    }

    /// A key's entry.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.range(key, None).await?.pop())
    }

    /// All entries that start with `prefix`.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.range(prefix, Some(GetOptions::new().with_prefix())).await
    }

    async fn range(&self, key: &str, options: Option<GetOptions>) -> Result<Vec<Entry>> {
        let found = self.client().await?.get(key, options).await?;
        let entry = |pair: &etcd_client::KeyValue| Entry {
            key: String::from_utf8_lossy(pair.key()).into_owned(),
            value: String::from_utf8_lossy(pair.value()).into_owned(),
            lease: pair.lease(),
            create_revision: pair.create_revision(),
        };
        Ok(found.kvs().iter().map(entry).collect())
    }

    /// The store's current revision.
    pub async fn revision(&self) -> Result<i64> {
        let found = self.client().await?.get("waypost-tests-no-such-key", None).await?;
        Ok(found.header().context("etcd answered without a header")?.revision())
    }

    /// Compacts everything before the current revision away; that revision.
    pub async fn compact(&self) -> Result<i64> {
        let revision = self.revision().await?;
        self.client().await?.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
        Ok(revision)
    }

    /// Grants a lease of `ttl` seconds; its id.
    pub async fn grant(&self, ttl: i64) -> Result<i64> {
        Ok(self.client().await?.lease_grant(ttl, None).await?.id())
    }

    /// Revokes a lease.
    pub async fn revoke(&self, lease: i64) -> Result<()> {
        self.client().await?.lease_revoke(lease).await?;
        Ok(())
    }

    /// Ids of all leases.
    pub async fn leases(&self) -> Result<Vec<i64>> {
        let leases = self.client().await?.leases().await?;
        Ok(leases.leases().iter().map(etcd_client::LeaseStatus::id).collect())
    }

    fn member(&self, index: usize) -> Result<&Member> {
        self.members.get(index).with_context(|| format!("etcd has no member {index}"))
    }

    async fn wait_up(&self, index: usize) -> Result<()> {
        let member = self.member(index)?;
        wait::eventually(START, format!("{} to answer", member.process.name()), || async {
            member.process.ensure_running()?;
            let status = self.client_of(index).await?.status().await?;
            ensure!(status.leader() != 0, "it has no leader yet");
            Ok(())
        })
        .await
    }
}
