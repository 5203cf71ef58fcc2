//! Generates the gRPC service of the catalog's protocol, without `protoc`. Its messages are `waypost_catalog`'s own.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protocol = "../crates/catalog/proto";
    println!("cargo:rerun-if-changed={protocol}");
    let files = protox::compile(["waypost/catalog/v1/catalog.proto"], [protocol])?;
    tonic_prost_build::configure().extern_path(".waypost.catalog.v1", "::waypost_catalog::wire").compile_fds(files)?;
    Ok(())
}
