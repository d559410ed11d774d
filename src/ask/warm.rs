//! `piecewised warm`: has all graph files of a folder compiled ahead of time, as for an image; by a running daemon, or by one of its own that ends when
//! everything is durable.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, bail};
use clap::Args;
use piecewised_client::{Client, ClientError, Priority};
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    Place,
    compile::{Compiled, Step, bar, compile},
    graph_file::{self, NoGraphFiles},
    one_line,
    own_daemon::OwnDaemon,
    table, write_table,
};
use crate::{exit::Exit, signals::Shutdown, surroundings::Surroundings};

#[derive(Debug, Clone, Args)]
pub(crate) struct WarmArguments {
    #[command(flatten)]
    place: Place,
    /// The folder, with all below it: files that end in .pwgraph, as `piecewised.save_graph` and `piecewised.record_graphs` write them.
    folder: PathBuf,
    /// Start a daemon on this store for the time, and have it end when everything in it is durable; no daemon is asked that runs already.
    #[arg(long, value_name = "FOLDER", conflicts_with = "endpoint")]
    store_dir: Option<PathBuf>,
    /// Flags of `piecewised serve` for the daemon that is started: `-- --python /opt/venv/bin/python --verify sample`.
    #[arg(last = true, requires = "store_dir", value_name = "SERVE FLAGS")]
    serve: Vec<String>,
}

/// What became of all files.
#[derive(Debug, Serialize)]
struct Warmed {
    files: Vec<File>,
    n_files: usize,
    n_files_failed: usize,
    elapsed_s: f64,
}

/// What became of one file.
#[derive(Debug, Serialize)]
struct File {
    file: PathBuf,
    #[serde(flatten)]
    compiled: Compiled,
    /// Why it was not compiled at all.
    error: Option<String>,
}

impl File {
    fn is_whole(&self) -> bool {
        self.error.is_none() && self.compiled.n_failed == 0
    }
}

pub(super) async fn run(arguments: &WarmArguments, surroundings: &Surroundings) -> anyhow::Result<Exit> {
    let place = &arguments.place;
    let folder = arguments.folder.clone();
    let files = tokio::task::spawn_blocking(move || graph_file::below(&folder)).await??;
    if files.is_empty() {
        return Err(NoGraphFiles::new(&arguments.folder).into());
    }
    let shutdown = Shutdown::on_signals().context("cannot watch for signals")?;
    let (own, client) = match &arguments.store_dir {
        Some(store) => {
            let own = OwnDaemon::start(store, &arguments.serve, surroundings, &shutdown).await?;
            let client = own.client().clone();
            (Some(own), client)
        }
        None => (None, place.connect(surroundings).await?),
    };
    let started = Instant::now();
    let warmed = tokio::select! {
        warmed = all(&client, files) => warmed,
        () = shutdown.drain.cancelled() => Err(anyhow::anyhow!("it was told to end before everything was compiled")),
    };
    let stored = if warmed.is_ok() { durable(&client).await } else { Ok(()) };
    // Also where something went wrong: it must not stay behind.
    let ended = match own {
        Some(own) => own.end().await,
        None => Ok(()),
    };
    let files = match (warmed, &ended) {
        (Ok(files), _) => files,
        // Why nothing could be compiled any more.
        (Err(error), Err(_)) => return ended.map(|()| Exit::Failure).with_context(|| format!("{error:#}")),
        (Err(error), Ok(())) => return Err(error),
    };
    let n_files_failed = files.iter().filter(|file| !file.is_whole()).count();
    let elapsed_s = started.elapsed().as_secs_f64();
    let warmed = Warmed { n_files: files.len(), n_files_failed, files, elapsed_s };
    place.write(&warmed, |out, warmed| say(out, &arguments.folder, warmed))?;
    stored?;
    ended?;
    Ok(if n_files_failed == 0 { Exit::Success } else { Exit::NotCompiled })
}

/// Compiles files, as many at a time as keep the daemon's executors busy; in the order of their names.
async fn all(client: &Client, files: Vec<PathBuf>) -> anyhow::Result<Vec<File>> {
    let bar = Arc::new(bar(files.len()));
    let n_at_once = client.capabilities().await?.n_executors as usize + 1;
    let mut left: VecDeque<PathBuf> = files.into();
    let (mut running, mut done) = (JoinSet::new(), Vec::new());
    loop {
        while running.len() < n_at_once
            && let Some(path) = left.pop_front()
        {
            let (client, bar) = (client.clone(), Arc::clone(&bar));
            running.spawn(async move {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let on_step = |step| {
                    if let Step::Phase(phase) = step {
                        bar.set_message(one_line(&format!("{name}: {phase}")));
                    }
                };
                let compiled = one(&client, &path, on_step).await;
                bar.inc(1);
                (path, compiled)
            });
        }
        let Some(ended) = running.join_next().await else { break };
        let (file, compiled) = ended?;
        done.push(match compiled {
            Ok(compiled) => File { file, compiled, error: None },
            Err(error) if ends_all(&error) => return Err(error),
            Err(error) => File { file, compiled: Compiled::default(), error: Some(format!("{error:#}")) },
        });
    }
    bar.finish_and_clear();
    done.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(done)
}

async fn one(client: &Client, path: &Path, on_step: impl FnMut(Step)) -> anyhow::Result<Compiled> {
    let mut request = graph_file::read(path).await?;
    // Whoever waits for something now goes first.
    request.priority = Priority::Prefetch;
    Ok(compile(client, request, on_step).await?)
}

/// Whether no other file would fare better.
fn ends_all(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. } | ClientError::Broken { .. }))
}

/// A daemon whose disk is full or fails hands out what it holds in memory.
async fn durable(client: &Client) -> anyhow::Result<()> {
    let store = client.status().await?.store;
    if store.is_full || store.is_failing {
        let what = if store.is_full { "is full" } else { "fails" };
        bail!(
            "the disk of the daemon's store {what}: some of what was compiled is in its memory only, and ends with it"
        );
    }
    Ok(())
}

fn say(out: &mut dyn Write, folder: &Path, warmed: &Warmed) -> io::Result<()> {
    let mut rows = table(["FILE", "LABEL", "RANGES", "COMPILED", "STORE", "JOINED", "FAILED", "TIME"]);
    for File { file, compiled, error } in &warmed.files {
        let name = file.strip_prefix(folder).unwrap_or(file).display().to_string();
        let label = if compiled.label.is_empty() { "-".to_owned() } else { one_line(&compiled.label) };
        let counts = match error {
            Some(_) => [0; 5].map(|_| "-".to_owned()),
            None => [
                compiled.entries.len().to_string(),
                compiled.n_compiled.to_string(),
                compiled.n_from_store.to_string(),
                compiled.n_joined.to_string(),
                compiled.n_failed.to_string(),
            ],
        };
        let time = if error.is_some() { "-".to_owned() } else { format!("{:.1} s", compiled.elapsed_s) };
        rows.add_row([[one_line(&name), label].to_vec(), counts.to_vec(), vec![time]].concat());
    }
    write_table(out, &rows)?;
    for File { file, compiled, error } in &warmed.files {
        if let Some(error) = error {
            writeln!(out, "\n{}: {}", one_line(&file.display().to_string()), one_line(error))?;
        }
        for (range, failure) in compiled.failures() {
            writeln!(out, "\n{}: {range}: {failure}", one_line(&file.display().to_string()))?;
        }
    }
    let Warmed { n_files, n_files_failed, elapsed_s, .. } = warmed;
    match n_files_failed {
        0 => writeln!(out, "\n{n_files} files in {elapsed_s:.1} s, all of them whole"),
        n => writeln!(out, "\n{n_files} files in {elapsed_s:.1} s, of which {n} failed"),
    }
}
