//! Takes the exports out of a filter that it does not need: each callback that Envoy finds is entered for every request.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use walrus::Module;

/// What to do with the exports of a module; those not named are deleted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExportRules {
    /// Old name to new name, equal for those that are kept as they are.
    renames: HashMap<String, String>,
}

impl ExportRules {
    /// Reads lines of `keep NAME` and `rename FROM TO`; `#` starts a comment.
    pub fn parse(text: &str) -> Result<Self> {
        let mut rules = Self::default();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let (from, to) = match words.as_slice() {
                [] => continue,
                ["keep", name] => (*name, *name),
                ["rename", from, to] => (*from, *to),
                _ => bail!("line {}: `{}` is neither `keep NAME` nor `rename FROM TO`", index + 1, line.trim()),
            };
            if rules.renames.insert(from.to_owned(), to.to_owned()).is_some() {
                bail!("line {}: `{from}` is named twice", index + 1);
            }
        }
        Ok(rules)
    }
}

/// Applies the rules and drops the code that nothing reaches any more.
pub fn strip_exports(wasm: &[u8], rules: &ExportRules) -> Result<Vec<u8>> {
    let mut module = Module::from_buffer(wasm).context("not a wasm module")?;
    let mut unwanted = Vec::new();
    let mut seen = Vec::new();
    for export in module.exports.iter_mut() {
        match rules.renames.get(&export.name) {
            Some(name) => {
                seen.push(export.name.clone());
                export.name.clone_from(name);
            }
            None => unwanted.push(export.id()),
        }
    }
    if let Some(missing) = rules.renames.keys().find(|name| !seen.contains(name)) {
        bail!("the module exports no `{missing}`: was it renamed, or is the rule out of date?");
    }
    for id in unwanted {
        module.exports.delete(id);
    }
    walrus::passes::gc::run(&mut module);
    Ok(module.emit_wasm())
}

#[cfg(test)]
mod tests {
    use super::*;
    use walrus::FunctionBuilder;

    fn module(names: &[&str]) -> Vec<u8> {
        let mut module = Module::default();
        for name in names {
            let function = FunctionBuilder::new(&mut module.types, &[], &[]).finish(vec![], &mut module.funcs);
            module.exports.add(name, function);
        }
        module.emit_wasm()
    }

    fn exports(wasm: &[u8]) -> Vec<String> {
        let mut names: Vec<_> =
            Module::from_buffer(wasm).unwrap().exports.iter().map(|export| export.name.clone()).collect();
        names.sort();
        names
    }

    #[test]
    fn unnamed_exports_go_with_their_code_and_renamed_ones_answer_to_the_new_name() {
        let rules = ExportRules::parse("# kept\nkeep start\nrename old new # why\n\n").unwrap();
        let stripped = strip_exports(&module(&["start", "old", "log"]), &rules).unwrap();
        assert_eq!(exports(&stripped), ["new", "start"]);
        assert_eq!(Module::from_buffer(&stripped).unwrap().funcs.iter().count(), 2);
    }

    #[test]
    fn a_rule_for_an_export_that_is_not_there_is_an_error() {
        let error = strip_exports(&module(&["start"]), &ExportRules::parse("keep stop").unwrap()).unwrap_err();
        assert!(error.to_string().contains("`stop`"));
    }

    #[test]
    fn a_line_that_is_no_rule_is_named() {
        let error = ExportRules::parse("keep a\ndrop b").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("drop b"), "{error}");
    }
}
