//! The libraries, and where each keeps its services in etcd.

/// A library, by the format that Waypost has for it.
pub struct Library {
    /// The format.
    pub format: &'static str,
    /// Where its services are, unless the service's name is all that comes before a node.
    folder: Option<&'static str>,
    /// What a `[[service]]` must name as its root; none: the format knows it.
    pub root: Option<&'static str>,
}

/// All of them.
pub const LIBRARIES: [Library; 5] = [
    Library { format: "grpc-naming", folder: Some("grpc/"), root: Some("grpc/") },
    Library { format: "go-zero", folder: None, root: None },
    Library { format: "kratos", folder: Some("/microservices/"), root: None },
    Library { format: "kitex", folder: Some("kitex/registry-etcd/"), root: None },
    Library { format: "go-micro", folder: Some("/micro/registry/"), root: None },
];

impl Library {
    /// The service that the Go program registers.
    pub fn theirs(&self) -> String {
        format!("theirs-{}", self.format)
    }

    /// The service that the agent registers.
    pub fn ours(&self) -> String {
        format!("ours-{}", self.format)
    }

    /// The prefix of the `[[watch]]` that brings in what the Go program registers.
    pub fn watched(&self) -> String {
        self.folder.map_or_else(|| self.key_prefix(&self.theirs()), str::to_owned)
    }

    /// What a service's keys begin with.
    pub fn key_prefix(&self, service: &str) -> String {
        format!("{}{service}/", self.folder.unwrap_or_default())
    }
}
