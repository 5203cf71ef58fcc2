//! `waypost strategy new`: a crate to start from, with the contract.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::cli::output;

/// Path and text of each file. `NAME` is the crate's name, `MODULE` that of what the compiler makes of it.
const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.txt")),
    ("README.md", include_str!("template/README.md.txt")),
    ("src/lib.rs", include_str!("template/lib.rs.txt")),
    ("wit/strategy.wit", waypost_components::WIT),
    (".gitignore", "/target\n*.wasm\n"),
];

#[derive(Debug, Args)]
pub(in crate::cli) struct New {
    /// The crate's name: lower-case letters, digits, - and _
    #[arg(value_name = "NAME", value_parser = name)]
    name: String,
    /// Where to put it [default: a directory of its name]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// What cargo takes for a name, less what it only warns of.
fn name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
    match text.as_bytes() {
        [b'a'..=b'z', rest @ ..] if rest.len() < 64 && rest.iter().all(|b| fits(*b)) && text != "test" => {
            Ok(text.to_owned())
        }
        _ => Err("a letter, then up to 63 of a-z, 0-9, - and _; not `test`".to_owned()),
    }
}

impl New {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let directory = self.directory.unwrap_or_else(|| PathBuf::from(&self.name));
        if fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is there and not empty", directory.display());
        }
        let module = self.name.replace('-', "_");
        for (path, text) in FILES {
            let path = directory.join(path);
            let folder = path.parent().unwrap_or(&directory);
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            // The contract is not a template.
            let text = match path.ends_with("wit/strategy.wit") {
                true => text.to_owned(),
                false => text.replace("NAME", &self.name).replace("MODULE", &module),
            };
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        output::print(&format!("{}: written; its README.md says how to build and try it\n", directory.display()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_cargo_takes() {
        assert_eq!(name("my-strategy_2"), Ok("my-strategy_2".to_owned()));
        for wrong in ["", "2", "-a", "a b", "a/b", "A", "test", &"a".repeat(65)] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_file_is_written_with_its_name_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let new = || New { name: "by-zone".to_owned(), directory: Some(folder.path().join("by-zone")) };
        new().run().unwrap();
        let read = |path| fs::read_to_string(folder.path().join("by-zone").join(path)).unwrap();
        assert!(read("Cargo.toml").contains("name = \"by-zone\""));
        assert!(read("README.md").contains("release/by_zone.wasm --output by-zone.wasm"));
        assert!(!read("README.md").contains("NAME") && !read("src/lib.rs").contains("NAME"));
        assert_eq!(read("wit/strategy.wit"), waypost_components::WIT);
        assert!(new().run().unwrap_err().to_string().contains("not empty"));
    }
}
