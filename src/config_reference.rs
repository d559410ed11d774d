//! The reference of the configuration, docs/configuration.md, made of what the program itself reads: flags with their help, and the defaults.
//!
//! A test holds the file to it: `UPDATE_EXPECT=1 cargo test -p piecewised config_reference` writes it anew.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory as _};

use crate::{cli::Cli, config::Config, layers::ConfigError, surroundings::Surroundings};

const HEAD: &str = "\
# Configuration

<!-- Generated: `UPDATE_EXPECT=1 cargo test -p piecewised config_reference` writes this file from the program's own flags. -->

`piecewised serve` works without any configuration. Each key can be set in three places; the later ones win:

1. a TOML file: the one that `--config` or `PIECEWISED_CONFIG` names, else `$XDG_CONFIG_HOME/piecewised/piecewised.toml`, else
   `/etc/piecewised/piecewised.toml`, where there is one;
2. the environment: the key in capitals after `PIECEWISED_`. An empty variable counts as none. Several words are separated by commas;
3. the command line: the key with `-` for `_` after `--`.

A key that does not exist is an error that names the nearest one. `piecewised serve --check` writes down the configuration as it would be used. In TOML, sizes and
times are plain numbers, and several words are a list of strings.

Defaults are those of the program, as JSON; *none* where there is none, *depends* where the machine or its environment decides, as the text says.
";

/// Keys whose defaults follow from the machine or its environment.
const DEPENDS: &[&str] =
    &["socket", "store_dir", "temp_dir", "n_executors", "n_compile_threads", "max_executor_memory_bytes"];

/// Keys that only the command line has.
const NO_KEYS: &[&str] = &["config", "check", "help"];

/// The reference as Markdown.
///
/// # Errors
/// [`ConfigError`] where the defaults have no JSON form.
pub(crate) fn markdown() -> Result<String, ConfigError> {
    let defaults = Config::defaults(&Surroundings::default());
    let defaults = serde_json::to_value(defaults).map_err(|error| ConfigError::new(error.to_string()))?;
    let mut command = Cli::command();
    command.build();
    let flags: Vec<Arg> = command
        .find_subcommand("serve")
        .into_iter()
        .flat_map(|serve| serve.get_arguments().cloned())
        .filter(|flag| !NO_KEYS.contains(&flag.get_id().as_str()))
        .collect();
    let mut headings: Vec<&str> = Vec::new();
    for flag in &flags {
        let heading = flag.get_help_heading().unwrap_or_default();
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let mut text = HEAD.to_owned();
    for heading in headings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n## {heading}");
        for flag in flags.iter().filter(|flag| flag.get_help_heading().unwrap_or_default() == heading) {
            text += &of_key(flag, &defaults);
        }
    }
    Ok(text)
}

fn of_key(flag: &Arg, defaults: &serde_json::Value) -> String {
    let key = flag.get_id().as_str();
    let default = match &defaults[key] {
        _ if DEPENDS.contains(&key) => "*depends*".to_owned(),
        serde_json::Value::Null => "*none*".to_owned(),
        value => format!("`{value}`"),
    };
    let value = flag.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
    let help = flag.get_long_help().or(flag.get_help()).map(ToString::to_string).unwrap_or_default();
    // A line each, so that what is written over several lines in the code is one paragraph here.
    let help = help.lines().map(str::trim).collect::<Vec<_>>().join(" ") + ".";
    let mut text = format!(
        "\n### `{key}`\n\n| flag | environment | default |\n|---|---|---|\n| `--{} {value}` | `PIECEWISED_{}` | {default} |\n\n{}\n",
        key.replace('_', "-"),
        key.to_uppercase(),
        escaped(&help),
    );
    let values: Vec<_> = flag.get_possible_values().into_iter().filter(|value| !value.is_hide_set()).collect();
    if !values.is_empty() {
        text.push('\n');
        for value in values {
            let help = value.get_help().map(|help| format!(": {}", escaped(&help.to_string()))).unwrap_or_default();
            text += &format!("- `{}`{help}\n", value.get_name());
        }
    }
    text
}

/// Text as Markdown: what stands in angle brackets or stars is no markup.
fn escaped(text: &str) -> String {
    text.replace('<', "\\<").replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;
    use crate::config::KEYS;

    #[test]
    fn the_file_is_what_the_program_says() {
        expect_file!["../docs/configuration.md"].assert_eq(&markdown().unwrap());
    }

    #[test]
    fn every_key_is_in_it_and_nothing_of_this_machine() {
        let text = markdown().unwrap();
        for key in KEYS {
            assert!(text.contains(&format!("### `{key}`\n")), "{key}");
            assert!(text.contains(&format!("`PIECEWISED_{}`", key.to_uppercase())), "{key}");
        }
        for line in text.lines().filter(|line| line.starts_with("| `--")) {
            assert!(!line.contains(std::env::var("HOME").unwrap_or("/root/".into()).as_str()), "{line}");
        }
    }
}
