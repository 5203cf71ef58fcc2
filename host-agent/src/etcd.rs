//! The configuration's etcd section as a connector: the only place where certificates and passwords are read.

use std::{fs, path::Path};

use anyhow::Context as _;
use waypost_registry::{ConnectOptions, Connector, Credentials, TlsOptions};

use crate::config::{Etcd, Password};

/// How etcd is reached, with certificates and password as their files hold them now.
///
/// # Errors
/// A file that cannot be read.
pub fn options(etcd: &Etcd) -> anyhow::Result<ConnectOptions> {
    let auth = match &etcd.auth {
        Some(auth) => Some(Credentials { username: auth.username.clone(), password: password(&auth.password)? }),
        None => None,
    };
    let ca_pem = etcd.ca_file.as_deref().map(|path| read("etcd.ca_file", path)).transpose()?;
    let identity = match &etcd.identity {
        Some((cert, key)) => Some((read("etcd.cert_file", cert)?, read("etcd.key_file", key)?)),
        None => None,
    };
    let tls = (ca_pem.is_some() || identity.is_some()).then_some(TlsOptions { ca_pem, identity });
    Ok(ConnectOptions {
        endpoints: etcd.endpoints.clone(),
        auth,
        tls,
        connect_timeout: etcd.connect_timeout,
        request_timeout: etcd.request_timeout,
    })
}

/// The connector. Nothing is connected yet.
///
/// # Errors
/// A file that cannot be read, or an endpoint or certificate that cannot be used.
pub fn connector(etcd: &Etcd) -> anyhow::Result<Connector> {
    Connector::new(options(etcd)?).context("etcd cannot be reached as configured")
}

fn read(key: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{key}: cannot read {}", path.display()))
}

fn password(password: &Password) -> anyhow::Result<String> {
    match password {
        Password::Literal(text) => Ok(text.clone()),
        Password::File(path) => {
            let text = String::from_utf8(read("etcd.password_file", path)?);
            let text = text.with_context(|| format!("etcd.password_file: {} is no text", path.display()))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Auth;

    fn etcd(password: Password) -> Etcd {
        Etcd {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            auth: Some(Auth { username: "waypost".into(), password }),
            ca_file: None,
            identity: None,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_password_file_counts_without_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "s3cret \r\n").unwrap();
        assert_eq!(password(&Password::File(path.clone())).unwrap(), "s3cret ");
        let etcd = etcd(Password::File(path.clone()));
        let before = options(&etcd).unwrap();
        connector(&etcd).unwrap();
        fs::write(&path, "an0ther").unwrap();
        assert_ne!(options(&etcd).unwrap(), before, "read anew each time");
    }

    #[test]
    fn a_missing_file_is_named_with_its_key() {
        let error = options(&etcd(Password::File("/nowhere/password".into()))).unwrap_err();
        assert_eq!(error.to_string(), "etcd.password_file: cannot read /nowhere/password");
    }

    #[test]
    fn a_password_is_never_shown() {
        let shown = format!("{:?}", etcd(Password::Literal("s3cret".into())));
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
