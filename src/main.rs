//! The `piecewised` command: parse, configure, run, exit code.
//!
//! Everything that is decided here is how a process of its own behaves: where configuration comes from, where the log goes, which
//! signal means what, which exit code means what. What the daemon does is in the `server` crates.

mod access;
mod ask;
mod choices;
mod cli;
mod config;
mod config_reference;
mod confinement;
mod descriptors;
mod doctor;
mod exit;
mod init;
mod layers;
mod listen;
mod logging;
mod manual;
mod serve;
mod signals;
mod signing_key;
mod store_command;
mod surroundings;
mod toolchain;
mod traces;

use std::{io::Write, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;

use crate::{
    ask::Ask,
    cli::{Cli, Command, ServeArguments},
    config::Config,
    exit::Exit,
    surroundings::Surroundings,
};

fn main() -> ExitCode {
    let surroundings = Surroundings::of_this_process();
    match Cli::parse().command {
        Command::Ask(ask) => ask_daemon(ask, &surroundings),
        Command::Serve(arguments) if arguments.check => check(&arguments, &surroundings),
        Command::Serve(_) if init::is_first() => match init::run() {
            Ok(code) => code.into(),
            Err(error) => complain(&error),
        },
        Command::Serve(arguments) => {
            configured(&arguments, &surroundings, "", async |config| serve::run(config).await.map(|()| Exit::Success))
        }
        Command::Doctor(arguments) => {
            configured(&arguments.serve, &surroundings, "error", async |config| doctor::run(&arguments, &config).await)
        }
        Command::Completions { shell } => written(|| manual::completions(shell)),
        Command::Man { folder: None } => written(manual::page),
        Command::Man { folder: Some(folder) } => written(|| manual::pages(&folder)),
        Command::ConfigReference => written(|| config_reference::markdown().map_err(anyhow::Error::from)),
        // A command's own words say what it did; the log is for what goes wrong, unless somebody asks for more.
        Command::Store(command) => configured(&command.arguments(), &surroundings, "warn", async |config| {
            store_command::run(command, &config).await
        }),
    }
}

/// Writes to stdout what a command is there to write.
fn written(text: impl FnOnce() -> anyhow::Result<String>) -> ExitCode {
    match text().and_then(|text| write!(std::io::stdout(), "{text}").context("cannot write to stdout")) {
        Ok(()) => Exit::Success.into(),
        Err(error) => complain(&error),
    }
}

/// Loads the configuration as `serve` would, and writes it down.
fn check(arguments: &ServeArguments, surroundings: &Surroundings) -> ExitCode {
    written(|| {
        let config = Config::load(arguments, surroundings)?;
        let text = serde_json::to_string_pretty(&config).context("the configuration has no JSON form")?;
        Ok(format!("{text}\n"))
    })
}

/// Runs what needs the configuration and a log. `log`: what is logged where the environment does not say; empty: as configured.
fn configured(
    arguments: &ServeArguments,
    surroundings: &Surroundings,
    log: &str,
    run: impl AsyncFnOnce(Config) -> anyhow::Result<Exit>,
) -> ExitCode {
    let mut config = match Config::load(arguments, surroundings) {
        Ok(config) => config,
        Err(error) => return complain(&error.into()),
    };
    if !log.is_empty() && surroundings.variable("PIECEWISED_LOG").is_none() {
        config.log = log.into();
    }
    if let Err(error) = logging::start(&config) {
        return complain(&error.into());
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error),
    };
    let result = runtime.block_on(run(config));
    // What still blocks, a store or a process that does not end, must not keep the daemon: it was given its time.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(error) => complain(&error),
    }
}

/// Asks a running daemon: another one's configuration is none of this process's business.
fn ask_daemon(ask: Ask, surroundings: &Surroundings) -> ExitCode {
    let asked = runtime().and_then(|runtime| runtime.block_on(ask::run(ask, surroundings)));
    asked.map_or_else(|error| complain(&error), Into::into)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name("piecewised").build().context("cannot start the runtime")
}

/// Says on stderr what is wrong; it may come before there is a log.
fn complain(error: &anyhow::Error) -> ExitCode {
    // There is nobody left to tell where stderr is closed.
    let _ = writeln!(std::io::stderr(), "piecewised: {error:#}");
    Exit::of(error).into()
}
