//! Fills in a YAML file at the places that comments mark, and leaves all else as it is.
//!
//! ```text
//! key: "default" #= name      the value is replaced, whatever it is
//! #+ name                     a block, written once for each set of values: none, one or many times
//! #- name                     its end
//! #< name                     a text, at the mark's indentation
//! ```
//!
//! To a YAML parser the marks are comments, so the file is what it says before anything is filled in. Values are
//! written as JSON, which YAML reads as exactly that value: none can end its place and begin something else.

use std::collections::BTreeMap;

use serde_json::Value;

/// Values by name.
pub type Values = BTreeMap<&'static str, Value>;

/// What is filled in.
#[derive(Clone, Debug, Default)]
pub struct Filling {
    /// Values that hold everywhere.
    pub values: Values,
    /// Of each block, the values of each time it is written; they come before those that hold everywhere.
    pub blocks: BTreeMap<&'static str, Vec<Values>>,
    /// Texts.
    pub texts: BTreeMap<&'static str, &'static str>,
}

/// A template that does not fit what is filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the template's line {line}: {fault}")]
pub struct TemplateError {
    line: usize,
    fault: &'static str,
}

/// The template, filled in.
///
/// # Errors
/// [`TemplateError`] if it has a mark that nothing is known of, or a block without an end.
pub fn fill(template: &str, filling: &Filling) -> Result<String, TemplateError> {
    let lines: Vec<_> = template.lines().zip(1..).collect();
    let mut filled = String::with_capacity(template.len() * 2);
    write(&lines, filling, &Values::new(), &mut filled)?;
    Ok(filled)
}

fn write(
    mut lines: &[(&str, usize)],
    filling: &Filling,
    inner: &Values,
    filled: &mut String,
) -> Result<(), TemplateError> {
    while let Some(((text, line), rest)) = lines.split_first() {
        lines = rest;
        let failed = |fault| TemplateError { line: *line, fault };
        let content = text.trim_start();
        let indentation = &text[..text.len() - content.len()];
        if let Some(name) = content.strip_prefix("#+ ") {
            let end = format!("#- {name}");
            let length = lines.iter().position(|(text, _)| text.trim_start() == end);
            let (block, rest) =
                length.and_then(|at| lines.split_at_checked(at)).ok_or(failed("no end of the block"))?;
            for values in filling.blocks.get(name).ok_or(failed("an unknown block"))? {
                // A block in a block: what holds around it holds in it.
                let mut around = inner.clone();
                around.extend(values.iter().map(|(name, value)| (*name, value.clone())));
                write(block, filling, &around, filled)?;
            }
            lines = rest.get(1..).unwrap_or_default();
        } else if let Some(name) = content.strip_prefix("#< ") {
            for line in filling.texts.get(name).ok_or(failed("an unknown text"))?.lines() {
                push(filled, &[if line.is_empty() { "" } else { indentation }, line]);
            }
        } else if let Some((before, name)) = text.rsplit_once(" #= ") {
            let value = inner.get(name).or_else(|| filling.values.get(name)).ok_or(failed("an unknown value"))?;
            let (key, _) = before.split_once(": ").ok_or(failed("no key before the value"))?;
            push(filled, &[key, ": ", &value.to_string()]);
        } else {
            push(filled, &[text]);
        }
    }
    Ok(())
}

fn push(filled: &mut String, parts: &[&str]) {
    filled.extend(parts.iter().copied());
    filled.push('\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filling() -> Filling {
        Filling {
            values: Values::from([("port", json!(80)), ("name", json!("outer"))]),
            blocks: BTreeMap::from([
                ("each", vec![Values::from([("name", json!("a"))]), Values::from([("name", json!("b\" #= port"))])]),
                ("off", vec![]),
                ("on", vec![Values::new()]),
            ]),
            texts: BTreeMap::from([("text", "x: 1\n\ny: 2")]),
        }
    }

    #[test]
    fn values_blocks_and_texts_are_filled_in_and_marks_are_gone() {
        let template = "\
# kept
port: 1 #= port
#+ each
- name: \"x\" #= name
  port: 2 #= port
#- each
#+ off
gone: true
#- off
#+ on
name: x #= name
#- on
  #< text
end: true
";
        let expected = "\
# kept
port: 80
- name: \"a\"
  port: 80
- name: \"b\\\" #= port\"
  port: 80
name: \"outer\"
  x: 1

  y: 2
end: true
";
        assert_eq!(fill(template, &filling()).unwrap(), expected);
    }

    #[test]
    fn a_mark_that_nothing_is_known_of_is_an_error_with_its_line() {
        for (template, fault) in [
            ("a: 1\nb: 2 #= other", "the template's line 2: an unknown value"),
            ("#+ other\n#- other", "the template's line 1: an unknown block"),
            ("#+ each\na: 1", "the template's line 1: no end of the block"),
            ("#< other", "the template's line 1: an unknown text"),
            ("- 1 #= port", "the template's line 1: no key before the value"),
        ] {
            assert_eq!(fill(template, &filling()).unwrap_err().to_string(), fault);
        }
    }
}
