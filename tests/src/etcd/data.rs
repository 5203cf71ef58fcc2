//! The data of all members: lost, saved, and put back.
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Etcd, Member};
use crate::tools;

impl Etcd {
    /// SIGKILL to every member that runs.
    pub async fn kill_all(&self) -> Result<()> {
        for member in self.members.iter().filter(|member| member.process.pid().is_some()) {
            member.process.kill().await?;
        }
        Ok(())
    }

    /// Removes the data of every member; none may run.
    pub fn forget_all(&self) -> Result<()> {
        for member in &self.members {
            std::fs::remove_dir_all(&member.data)?;
        }
        Ok(())
    }

    /// Saves what etcd holds now to a file.
    pub async fn save_snapshot(&self, to: &Path) -> Result<()> {
        let mut stream = self.client().await?.snapshot().await?;
        let mut file = std::fs::File::create(to)?;
        while let Some(part) = stream.message().await? {
            std::io::Write::write_all(&mut file, part.blob())?;
        }
        Ok(())
    }

    /// Replaces the data of every member by a snapshot; none may run.
    pub fn restore_snapshot(&self, from: &Path) -> Result<()> {
        self.forget_all()?;
        let cluster: Vec<String> =
            self.members.iter().map(|member| format!("{}=http://{}", member.process.name(), member.peer)).collect();
        // Only etcdutl does it from 3.6 on, and 3.4 has none.
        let tool = tools::tool("etcdutl").or_else(|_| tools::tool("etcdctl"))?;
        for member in &self.members {
            let restored = Command::new(&tool)
                .env("ETCDCTL_API", "3")
                .args([OsString::from("snapshot"), "restore".into(), from.into()])
                .args(restore_options(member, &cluster.join(",")))
                .output()
                .with_context(|| format!("cannot start {}", tool.display()))?;
            let said = String::from_utf8_lossy(&restored.stderr);
            ensure!(restored.status.success(), "{} did not restore the snapshot: {said}", tool.display());
        }
        Ok(())
    }
}

fn restore_options(member: &Member, cluster: &str) -> [String; 4] {
    [
        format!("--name={}", member.process.name()),
        format!("--data-dir={}", member.data.display()),
        format!("--initial-cluster={cluster}"),
        format!("--initial-advertise-peer-urls=http://{}", member.peer),
    ]
}
