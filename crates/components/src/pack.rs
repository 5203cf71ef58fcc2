//! A core module becomes a component: what `wasm-tools component new` does, without that tool.

use wit_component::ComponentEncoder;

use crate::engine::{Kind, kind};

/// Why a module becomes no component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The bytes are something else.
    #[error("this is no WebAssembly")]
    NotWasm,
    /// Nothing is left to do.
    #[error("this is a component already")]
    Component,
    /// It was compiled for another system.
    #[error("the module needs WASI, which no strategy gets: compile it for wasm32-unknown-unknown")]
    Wasi,
    /// It says nothing about an interface, or one that it does not keep to.
    #[error("the module does not become a component; was it made with wit-bindgen? {0}")]
    Encode(String),
}

/// Makes a component of a core module that wit-bindgen has written its world into.
///
/// # Errors
/// [`PackError`].
pub fn pack(module: &[u8]) -> Result<Vec<u8>, PackError> {
    match kind(module) {
        Kind::CoreModule => {}
        Kind::Component => return Err(PackError::Component),
        Kind::Other => return Err(PackError::NotWasm),
    }
    let encoder = ComponentEncoder::default().validate(true).module(module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| {
        let text = format!("{error:#}");
        if text.contains("wasi_snapshot_preview1") { PackError::Wasi } else { PackError::Encode(text) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{component, module};

    #[test]
    fn a_module_becomes_a_component_once() {
        let module = module(
            "(func (export \"weigh\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable)",
        );
        let packed = pack(&module).unwrap();
        assert!(matches!(kind(&packed), Kind::Component));
        assert_eq!(pack(&packed), Err(PackError::Component));
        assert_eq!(
            packed,
            component(
                "(func (export \"weigh\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable)"
            )
        );
    }

    #[test]
    fn what_cannot_become_one_is_told_with_what_to_do() {
        assert_eq!(pack(b"#!/bin/sh\n"), Err(PackError::NotWasm));
        let wasi =
            wat::parse_str("(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32))))").unwrap();
        assert_eq!(pack(&wasi), Err(PackError::Wasi));
        let unknown = wat::parse_str("(module (import \"env\" \"open\" (func (param i32))))").unwrap();
        assert!(matches!(pack(&unknown), Err(PackError::Encode(text)) if text.contains("env")));
    }
}
