//! A strategy that fails as its parameters say: what the agent does about it is tested with it.
//!
//! `{"do": "loop"}`, `"allocate"`, `"trap"`, `"refuse"`, `"nonsense"`, or `"weigh"`: the first node gets `weight`, the
//! others 1.
#![expect(missing_docs, clippy::too_many_arguments, reason = "of the bindings, which are generated")]

use serde::Deserialize;

use crate::waypost::strategy::types::Decision;

wit_bindgen::generate!({ path: "../../wit/strategy.wit", world: "strategy" });

struct Misbehaving;

export!(Misbehaving);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(rename = "do")]
    deed: Deed,
    #[serde(default)]
    weight: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Deed {
    Loop,
    Allocate,
    Trap,
    Refuse,
    Nonsense,
    Weigh,
}

impl Guest for Misbehaving {
    fn weigh(input: Input) -> Result<Answer, String> {
        let Parameters { deed, weight } = serde_json::from_str(&input.parameters).map_err(|error| error.to_string())?;
        let count = input.nodes.len();
        let decisions = match deed {
            Deed::Loop => loop {
                std::hint::black_box(&input);
            },
            Deed::Allocate => {
                let mut kept = Vec::new();
                loop {
                    kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
            Deed::Trap => std::process::abort(),
            Deed::Refuse => return Err("it was told to".to_owned()),
            Deed::Nonsense => vec![Decision { weight: 1, priority: 0 }; count + 1],
            Deed::Weigh => {
                (0..count).map(|node| Decision { weight: if node == 0 { weight } else { 1 }, priority: 0 }).collect()
            }
        };
        Ok(Answer { decisions, ask_again_seconds: None })
    }
}
