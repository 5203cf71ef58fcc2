//! Components for the tests of this crate, written as core modules in text.

use std::sync::LazyLock;

use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::{Component, Engine, Input, Limits, Locality, Node, WIT, model::Health, pack::pack};

/// One for all tests: it has a thread.
pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(Limits::default()).unwrap());

/// What every module needs: a memory, and an allocator that never gives anything back. `$answer` writes an answer of
/// `$count` decisions, each of weight `$weight` and priority `$priority`.
const COMMON: &str = r#"
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 1024))
    (func $allocate (export "cabi_realloc") (param i32 i32) (param $align i32) (param $bytes i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and
            (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
            (i32.sub (i32.const 0) (local.get $align))))
        (global.set $free (i32.add (local.get $at) (local.get $bytes)))
        (loop $more
            (if (i32.gt_u (global.get $free) (i32.mul (memory.size) (i32.const 65536)))
                (then
                    (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
                    (br $more))))
        (local.get $at))
    (func $answer (param $count i32) (param $weight i32) (param $priority i32) (result i32)
        (local $list i32) (local $at i32)
        (local.set $list (call $allocate (i32.const 0) (i32.const 0) (i32.const 4)
            (i32.mul (local.get $count) (i32.const 8))))
        (local.set $at (local.get $list))
        (block $done (loop $next
            (br_if $done (i32.eq (local.get $at)
                (i32.add (local.get $list) (i32.mul (local.get $count) (i32.const 8)))))
            (i32.store (local.get $at) (local.get $weight))
            (i32.store8 offset=4 (local.get $at) (local.get $priority))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br $next)))
        (i32.store8 (i32.const 16) (i32.const 0))
        (i32.store (i32.const 20) (local.get $list))
        (i32.store (i32.const 24) (local.get $count))
        (i32.store8 (i32.const 28) (i32.const 0))
        (i32.const 16))
"#;

/// How `weigh` begins: a question is ten numbers, of which the fourth is the number of nodes.
pub(crate) const WEIGH: &str = "(func (export \"weigh\") (param i32 i32 i32) (param $nodes i32) \
                                (param i32 i32 i32 i32 i32 i32) (result i32)";

/// A core module of our world. Imports have to come first, so they are apart.
fn module_of(imports: &str, body: &str) -> Vec<u8> {
    let mut module = wat::parse_str(format!("(module {imports} {COMMON} {body})")).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("strategy.wit", WIT).unwrap();
    let world = resolve.select_world(&[package], Some("strategy")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

pub(crate) fn module(body: &str) -> Vec<u8> {
    module_of("", body)
}

pub(crate) fn component(body: &str) -> Vec<u8> {
    pack(&module(body)).unwrap()
}

/// A compiled component with this body of `weigh`.
pub(crate) fn weighing(body: &str) -> Component {
    ENGINE.compile(&component(&format!("{WEIGH} {body})"))).unwrap()
}

/// One that may also import.
pub(crate) fn importing(imports: &str, body: &str) -> Component {
    ENGINE.compile(&pack(&module_of(imports, body)).unwrap()).unwrap()
}

/// A question about this many nodes of weight 1.
pub(crate) fn input(nodes: usize) -> Input {
    let node = |n: usize| Node {
        id: format!("host-{n}"),
        address: format!("10.0.{}.{}:8080", n / 256, n % 256),
        weight: 1,
        health: Health::Passing,
        ..Node::default()
    };
    Input {
        service: "web".to_owned(),
        nodes: (0..nodes).map(node).collect(),
        parameters: "{}".to_owned(),
        local: Locality::default(),
    }
}
