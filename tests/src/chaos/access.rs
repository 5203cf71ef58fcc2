//! How etcd is secured, and what agents and users of the library need for it, as files that can be replaced.
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use etcd_client::Permission;
use waypost_registry::{ConnectOptions, Credentials, TlsOptions};

use crate::agent::EtcdConfig;
use crate::authority::{Authority, Identity};
use crate::etcd::{Etcd, EtcdOptions};
use crate::scene::Scene;
use crate::tools;

const USER: &str = "waypost";

/// What etcd asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Nothing.
    Open,
    /// A user and a password; tokens that are not used end within a second.
    Password,
    /// A certificate, over TLS.
    Certificate,
}

/// The means of access.
pub(super) struct Access {
    password: Option<PathBuf>,
    tls: Option<Mutex<Authority>>,
    identity: Option<Identity>,
    authority: Option<PathBuf>,
}

impl Access {
    pub(super) fn new(scene: &Scene, security: Security) -> Result<Self> {
        let mut access = Self { password: None, tls: None, identity: None, authority: None };
        match security {
            Security::Open => {}
            Security::Password => {
                let path = scene.path().join("password");
                std::fs::write(&path, "first")?;
                access.password = Some(path);
            }
            Security::Certificate => {
                let authority = Authority::new(scene, "chaos")?;
                access.identity = Some(authority.issue(USER)?);
                access.authority = Some(authority.certificate().to_owned());
                access.tls = Some(Mutex::new(authority));
            }
        }
        Ok(access)
    }

    pub(super) async fn start_etcd(&self, scene: &Scene, members: usize) -> Result<Etcd> {
        let mut options = EtcdOptions::members(members);
        let authority = self.tls.as_ref().map(locked);
        if let Some(authority) = authority.as_deref() {
            options = options.tls(authority);
        }
        // etcd 3.4 knows no such setting: its tokens end after five minutes, or with the member.
        if self.password.is_some() && tools::etcd_knows("auth-token-ttl")? {
            options = options.argument("--auth-token-ttl=1");
        }
        let etcd = Etcd::prepare_with(scene, options)?;
        drop(authority);
        etcd.start_all().await?;
        if let Some(password) = self.read_password()? {
            etcd.enable_auth("root").await?;
            etcd.add_user(USER, &password, vec![Permission::read_write("").with_all_keys()]).await?;
        }
        Ok(etcd)
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The agents' configuration.
    pub(super) fn agents(&self, endpoints: Vec<String>) -> EtcdConfig {
        EtcdConfig {
            endpoints,
            ca_file: self.authority.clone(),
            cert_file: self.identity.as_ref().map(|identity| identity.certificate.clone()),
            key_file: self.identity.as_ref().map(|identity| identity.key.clone()),
            username: self.password.as_ref().map(|_| USER.to_owned()),
            password_file: self.password.clone(),
        }
    }

    /// The library's options, with what the files hold now.
    pub(super) fn users(&self, endpoints: Vec<String>) -> Result<ConnectOptions> {
        let auth = self.read_password()?.map(|password| Credentials { username: USER.to_owned(), password });
        let mut tls = None;
        if let (Some(authority), Some(identity)) = (&self.authority, &self.identity) {
            let identity = (std::fs::read(&identity.certificate)?, std::fs::read(&identity.key)?);
            tls = Some(TlsOptions { ca_pem: Some(std::fs::read(authority)?), identity: Some(identity) });
        }
        Ok(ConnectOptions { endpoints, auth, tls, ..ConnectOptions::default() })
    }

    fn read_password(&self) -> Result<Option<String>> {
        Ok(self.password.as_ref().map(std::fs::read_to_string).transpose()?)
    }

    /// Another password, in etcd and in the file.
    pub(super) async fn change_password(&self, etcd: &Etcd) -> Result<()> {
        let path = self.password.as_ref().context("there are no passwords")?;
        let password = format!("{}-changed", std::fs::read_to_string(path)?);
        etcd.change_password(USER, &password).await?;
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, password)?;
        Ok(std::fs::rename(fresh, path)?)
    }

    /// Another authority, and everybody's certificates from it, in the same files.
    pub(super) fn replace_certificates(&self, scene: &Scene) -> Result<()> {
        let tls = self.tls.as_ref().context("there are no certificates")?;
        let authority = Authority::new(scene, "chaos")?;
        for name in ["etcd", "harness", USER] {
            authority.issue(name)?;
        }
        *locked(tls) = authority;
        Ok(())
    }
}

fn locked(tls: &Mutex<Authority>) -> MutexGuard<'_, Authority> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}
