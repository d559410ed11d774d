//! `piecewised store`: checks, exports, imports and collections of a store that no daemon has open.
//!
//! What they do is in the store's crate. Here: which store, what is written for people and for scripts, and the exit code.
//! Results go to stdout, everything else to stderr.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use piecewised_graph::ProgramName;
use piecewised_store::{CheckReport, ExportReport, GcGoal, GcReport, ImportReport, Store, StoreConfig, StoreError};
use serde::Serialize;

use crate::{cli::ServeArguments, config::Config, exit::Exit};

/// For `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done, and nothing is wrong, or all of it was repaired
  1  failed
  2  the command line or the configuration is wrong
  4  a daemon has the store open: end it first
  5  something is damaged or missing; what is said above";

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Read every file, record and manifest of a store, and say what is wrong. Changes nothing without --repair.
    #[command(after_help = HELP)]
    Check {
        #[command(flatten)]
        place: Place,
        /// Drop what does not verify and bring index and files into line. Artifacts that are dropped are compiled again when
        /// they are asked for.
        #[arg(long)]
        repair: bool,
    },
    /// Write artifacts, handles and manifests into one file, a tar that `piecewised store import` reads. The same content
    /// makes the same file.
    #[command(after_help = HELP)]
    Export {
        #[command(flatten)]
        place: Place,
        /// The file; written whole or not at all, in place of any that is there.
        file: PathBuf,
        /// Only this program, with all that it names; may be repeated [default: everything].
        #[arg(long, value_name = "NAME")]
        program: Vec<ProgramName>,
    },
    /// Take in what an export holds and the store does not have. The store is made where there is none. Each entry is
    /// verified; what is damaged or missing is left out and said.
    #[command(after_help = HELP)]
    Import {
        #[command(flatten)]
        place: Place,
        /// The file.
        file: PathBuf,
    },
    /// Evict what was used least recently, down to the budget, and remove what nothing names and failures that are too old. What a manifest names, and
    /// what is pinned, stays.
    #[command(after_help = GC_HELP)]
    Gc {
        #[command(flatten)]
        place: Place,
        /// What artifacts may take on the disk [default: store_max_bytes of the configuration, else all that the disk has but for store_reserve_bytes].
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<u64>,
        /// Delete also what earlier starts could not use and set aside.
        #[arg(long)]
        set_aside: bool,
    },
}

/// For `--help`.
const GC_HELP: &str = "\
Exit codes:
  0  done, and the store is within its budget
  1  failed
  2  the command line or the configuration is wrong
  4  a daemon has the store open: it evicts by itself
  5  done, and manifests and pins still take more than the budget";

/// Which store, and how to say what became of it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// The store's folder [default: as for `piecewised serve`, from its configuration].
    #[arg(long, value_name = "FOLDER")]
    store_dir: Option<PathBuf>,
    /// The configuration file, as for `piecewised serve`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl StoreCommand {
    /// The flags of `serve` that say which configuration this is about.
    pub(crate) fn arguments(&self) -> ServeArguments {
        let place = self.place();
        ServeArguments::of_store(place.config.clone(), place.store_dir.clone())
    }

    fn place(&self) -> &Place {
        match self {
            Self::Check { place, .. }
            | Self::Export { place, .. }
            | Self::Import { place, .. }
            | Self::Gc { place, .. } => place,
        }
    }
}

/// Runs a command and writes its result.
///
/// # Errors
/// Whatever ends it; [`Exit::of`] knows which exit code that means.
pub(crate) async fn run(command: StoreCommand, config: &Config) -> anyhow::Result<Exit> {
    let json = command.place().json;
    // Nothing is evicted or forgotten here, but on request: that is the daemon's business.
    let store = StoreConfig { may_evict: false, failure_ttl: std::time::Duration::MAX, ..config.store_config() };
    let done = match command {
        StoreCommand::Check { repair, .. } => {
            let report = piecewised_store::check(&store, repair).await.map_err(in_words)?;
            write(json, &report, |out| say_check(out, &report, repair))?;
            report.problems.is_empty()
        }
        StoreCommand::Export { file, program, .. } => {
            let (store, _) = Store::open(StoreConfig { create: false, ..store }).await.map_err(in_words)?;
            let exported = store.export(&file, program).await;
            store.close().await?;
            let report = exported?;
            write(json, &report, |out| say_export(out, &report, &file))?;
            report.n_left_out == 0
        }
        StoreCommand::Import { file, .. } => {
            let (store, _) = Store::open(store).await.map_err(in_words)?;
            let imported = store.import(&file).await;
            store.close().await?;
            let report = imported?;
            write(json, &report, |out| say_import(out, &report))?;
            report.is_complete()
        }
        StoreCommand::Gc { max_bytes, set_aside, .. } => {
            // The budget is the collection's and not the store's, so that nothing is evicted in the background and counted by nobody.
            let store = StoreConfig {
                create: false,
                may_evict: true,
                max_bytes: None,
                reserve_bytes: 0,
                ..config.store_config()
            };
            let (store, opened) = Store::open(store).await.map_err(in_words)?;
            let goal = GcGoal {
                max_bytes: max_bytes.or(config.store_max_bytes),
                reserve_bytes: config.store_reserve_bytes,
                also_set_aside: set_aside,
            };
            let collected = store.gc(goal).await;
            store.close().await?;
            let collected = Collected { report: collected?, n_dropped: opened.n_dropped };
            write(json, &collected, |out| say_gc(out, &collected))?;
            collected.report.is_within_budget
        }
    };
    Ok(if done { Exit::Success } else { Exit::Damaged })
}

fn in_words(error: StoreError) -> anyhow::Error {
    let is_locked = matches!(error, StoreError::Locked { .. });
    let error = anyhow::Error::new(error);
    if is_locked { error.context("a store is looked after by hand only while no daemon has it open") } else { error }
}

fn write(
    json: bool,
    report: &impl Serialize,
    say: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let written = if json {
        let text = serde_json::to_string(report).context("the report has no JSON form")?;
        writeln!(out, "{text}")
    } else {
        say(&mut out)
    };
    written.and_then(|()| out.flush()).context("cannot write the result to stdout")
}

fn say_check(out: &mut dyn Write, report: &CheckReport, repair: bool) -> io::Result<()> {
    for problem in &report.problems {
        // The kind as in JSON.
        let kind = serde_json::to_value(problem.kind).map_err(io::Error::other)?;
        writeln!(out, "{}: {}: {}", kind.as_str().unwrap_or_default(), problem.what, problem.detail)?;
    }
    let CheckReport { n_artifacts, n_handles, n_manifests, n_failures, n_repaired, .. } = report;
    writeln!(
        out,
        "{n_artifacts} artifacts ({:.1} MB), {n_handles} handles, {n_manifests} manifests, {n_failures} remembered failures",
        report.artifact_bytes as f64 / 1e6
    )?;
    match (report.problems.len(), repair) {
        (0, false) => writeln!(out, "nothing is wrong"),
        (0, true) => writeln!(out, "nothing is wrong; {n_repaired} problems were repaired"),
        (n, false) => writeln!(out, "{n} problems; --repair does away with what can be repaired"),
        (n, true) => writeln!(out, "{n} problems are left; {n_repaired} were repaired"),
    }
}

fn say_export(out: &mut dyn Write, report: &ExportReport, file: &std::path::Path) -> io::Result<()> {
    let ExportReport { n_artifacts, n_handles, n_manifests, n_left_out, digest, .. } = report;
    writeln!(
        out,
        "{}: {n_artifacts} artifacts ({:.1} MB), {n_handles} handles, {n_manifests} manifests; content {digest}",
        file.display(),
        report.artifact_bytes as f64 / 1e6
    )?;
    if *n_left_out > 0 {
        writeln!(out, "{n_left_out} are damaged or missing and were left out; see `piecewised store check`")?;
    }
    Ok(())
}

/// What a collection did, and what the open before it dropped because it did not match.
#[derive(Serialize)]
struct Collected {
    #[serde(flatten)]
    report: GcReport,
    n_dropped: usize,
}

fn say_gc(out: &mut dyn Write, collected: &Collected) -> io::Result<()> {
    let Collected { report, n_dropped } = collected;
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let n_unnamed = report.n_unnamed + *n_dropped as u64;
    writeln!(
        out,
        "evicted {} artifacts, removed {n_unnamed} that nothing named; freed {}",
        report.n_evicted,
        megabytes(report.freed_bytes)
    )?;
    writeln!(out, "forgot {} failures", report.n_failures)?;
    if report.n_set_aside > 0 {
        writeln!(
            out,
            "deleted {} folders that were set aside ({})",
            report.n_set_aside,
            megabytes(report.set_aside_bytes)
        )?;
    }
    writeln!(
        out,
        "{} artifacts are left; they count for {}, of which {} are pinned",
        report.n_artifacts,
        megabytes(report.disk_bytes),
        megabytes(report.pinned_bytes)
    )?;
    if !report.is_within_budget {
        writeln!(out, "that is more than the budget: remove manifests, unpin keys, or give the store more")?;
    }
    Ok(())
}

fn say_import(out: &mut dyn Write, report: &ImportReport) -> io::Result<()> {
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    if report.n_problems > report.problems.len() {
        writeln!(out, "and {} more", report.n_problems - report.problems.len())?;
    }
    let ImportReport { n_artifacts, n_handles, n_manifests, n_known_handles, n_known_manifests, .. } = report;
    writeln!(
        out,
        "took {n_artifacts} artifacts ({:.1} MB), {n_handles} handles, {n_manifests} manifests; \
         {n_known_handles} handles and {n_known_manifests} manifests were there already",
        report.artifact_bytes as f64 / 1e6
    )?;
    if !report.is_complete() {
        writeln!(out, "{} entries of the file were not taken", report.n_problems)?;
    }
    Ok(())
}
