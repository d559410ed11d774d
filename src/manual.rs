//! Shell completions and manual pages, made of the command line itself, so that they know every command and flag.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;

const NAME: &str = "piecewised";

/// The completions of a shell.
///
/// # Errors
/// Where they are no text.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    String::from_utf8(script).context("the completions are no text")
}

/// The page of `piecewised` itself, with a list of its commands.
///
/// # Errors
/// Where it is no text.
pub(crate) fn page() -> anyhow::Result<String> {
    render(Cli::command())
}

/// Writes the pages of `piecewised` and of all its commands into a folder; says which.
///
/// # Errors
/// Where the folder cannot be made or written to.
pub(crate) fn pages(folder: &Path) -> anyhow::Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut written = String::new();
    for command in all(Cli::command(), NAME) {
        let path = folder.join(format!("{}.1", command.get_name()));
        fs::write(&path, render(command)?).with_context(|| format!("cannot write {}", path.display()))?;
        written += &format!("{}\n", path.display());
    }
    Ok(written)
}

/// A command and those below it, each named as its page is: "piecewised-store-check".
fn all(command: Command, name: &str) -> Vec<Command> {
    let below = command.get_subcommands().filter(|it| !it.is_hide_set() && it.get_name() != "help");
    let below: Vec<Command> = below.flat_map(|it| all(it.clone(), &format!("{name}-{}", it.get_name()))).collect();
    let called = name.replace('-', " ");
    let command = command.name(name.to_owned()).bin_name(called).version(env!("CARGO_PKG_VERSION"));
    [vec![command], below].concat()
}

fn render(command: Command) -> anyhow::Result<String> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page).context("cannot make the manual page")?;
    String::from_utf8(page).context("the manual page is no text")
}

#[cfg(test)]
mod tests {
    use std::process::{Command as Process, Stdio};

    use super::*;

    /// Every command that is not hidden, as its page is named.
    fn names() -> Vec<String> {
        all(Cli::command(), NAME).iter().map(|command| command.get_name().to_owned()).collect()
    }

    #[test]
    fn every_command_has_a_page_and_the_first_one_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let written = pages(folder.path()).unwrap();
        let names = names();
        assert!(names.len() > 15 && names.contains(&"piecewised-store-gc".to_owned()), "{names:?}");
        assert_eq!(written.lines().count(), names.len());
        for name in &names {
            let page = fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
        }
        let page = page().unwrap().replace('\\', "");
        for command in Cli::command().get_subcommands().filter(|it| !it.is_hide_set()) {
            assert!(page.contains(&format!("{NAME}-{}(1)", command.get_name())), "{}", command.get_name());
        }
        let gc = fs::read_to_string(folder.path().join("piecewised-store-gc.1")).unwrap().replace('\\', "");
        assert!(gc.contains("--max-bytes") && gc.contains("Exit codes:"), "{gc}");
    }

    #[test]
    fn completions_know_every_command_and_bash_can_read_them() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("n-executors"), "{shell}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("piecewised");
        fs::write(&path, completions(Shell::Bash).unwrap()).unwrap();
        assert!(Process::new("bash").arg("-n").arg(&path).status().unwrap().success());
        // And completes what was begun.
        let script = format!(
            "source {}; COMP_WORDS=(piecewised clear-f); COMP_CWORD=1; _piecewised piecewised clear-f piecewised; echo \"${{COMPREPLY[*]}}\"",
            path.display()
        );
        let completed = Process::new("bash").args(["-c", &script]).stderr(Stdio::inherit()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "clear-failures");
    }
}
