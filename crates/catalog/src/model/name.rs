//! The name of a service.

use std::{borrow::Borrow, fmt, sync::Arc};

/// Name of a service: 1 to 255 bytes of ASCII letters, digits and `. _ - : ~ @`.
///
/// It becomes the name of an Envoy cluster, a segment of an etcd key and a label of metrics, so nothing that means
/// something in any of them is allowed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

/// Why a text is no [`ServiceName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no service name: 1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed")]
pub struct InvalidServiceName(pub String);

impl ServiceName {
    /// The name, checked.
    ///
    /// # Errors
    /// [`InvalidServiceName`] with the text (cut to 80 characters).
    pub fn new(name: &str) -> Result<Self, InvalidServiceName> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-:~@".contains(&b);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(fits) {
            return Err(InvalidServiceName(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for ServiceName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
