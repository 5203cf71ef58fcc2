//! Both services on a real Unix socket, as a filter and as an Envoy see them.

mod catalog_stream;
mod delta_xds;
mod served;
