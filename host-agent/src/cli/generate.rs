//! `waypost completions` and `waypost man`: made from the command line itself, so that they name every command.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, output};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write one page for each command into this directory, which is made if need be
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "waypost", &mut script);
        output::print(&String::from_utf8(script).context("the script is no text")?)?;
        Ok(())
    }
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let pages = pages()?;
        let Some(dir) = self.dir else {
            let main = pages.into_iter().next().map(|page| page.text).unwrap_or_default();
            output::print(&main)?;
            return Ok(());
        };
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for page in pages {
            let path = dir.join(&page.file);
            fs::write(&path, page.text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

struct Page {
    file: String,
    text: String,
}

/// One page for each command, that of `waypost` itself first.
fn pages() -> anyhow::Result<Vec<Page>> {
    let mut command = Cli::command();
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, pages: &mut Vec<Page>) -> anyhow::Result<()> {
    let man = clap_mangen::Man::new(command.clone());
    let file = man.get_filename();
    let mut text = Vec::new();
    man.render(&mut text).with_context(|| format!("page {file} cannot be made"))?;
    let text = String::from_utf8(text).with_context(|| format!("page {file} is no text"))?;
    pages.push(Page { file, text });
    command.get_subcommands().filter(|command| command.get_name() != "help").try_for_each(|command| add(command, pages))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn there_is_a_page_for_each_command_and_each_option_is_on_one() {
        let pages = pages().unwrap();
        let named = |file: &str| pages.iter().find(|page| page.file == file).map(|page| page.text.replace('\\', ""));
        assert_eq!(pages[0].file, "waypost.1");
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(pages[0].text.replace('\\', "").contains(&format!("waypost-{name}(1)")), "{name}");
            let page = named(&format!("waypost-{name}.1")).unwrap_or_else(|| panic!("no page of {name}"));
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(page.contains(&format!("--{option}")), "{name} says nothing of --{option}");
            }
        }
        assert!(named("waypost-envoy-bootstrap.1").is_some(), "subcommands have theirs");
    }

    #[test]
    fn every_shell_is_told_every_command() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "waypost", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }
}
