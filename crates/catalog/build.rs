//! Generates the wire messages from `proto/`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["waypost/catalog/v1/catalog.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // A map with an order, so that a node has one encoding and one hash.
    config.btree_map(["."]);
    config.bytes(["."]);
    config.compile_fds(files)?;
    Ok(())
}
