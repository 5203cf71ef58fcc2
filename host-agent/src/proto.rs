//! The gRPC service over which filters receive the catalog, generated: its server, and the client that tests use.

pub use generated::{catalog_service_client, catalog_service_server};

#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    tonic::include_proto!("waypost.catalog.v1");
}
