//! Graph files on the command line: which one, and what of its request is to be otherwise.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use piecewised_client::{Client, CompileRequest, GraphFileError, read_graph_file};
use piecewised_graph::request::{self, ArtifactFormat};
use piecewised_plan::{Plan, Range};

/// How the endings of graph files are written.
const SUFFIX: &str = "pwgraph";

/// What of a graph file's request is to be otherwise.
#[derive(Debug, Clone, Args)]
pub(crate) struct Changes {
    /// Ranges of sizes to compile for, both ends included: 1-16,17-256. With --sizes or by themselves in place of the file's plan.
    #[arg(long, value_name = "START-END,...", value_delimiter = ',', value_parser = range)]
    ranges: Vec<Range>,
    /// Single sizes to compile for: 1,2,4. With --ranges or by themselves in place of the file's plan.
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    sizes: Vec<i64>,
    /// How artifacts are packed [default: as the file has it].
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// How hard the compiler tries [default: as the file has it].
    #[arg(long, value_name = "TUNING")]
    tuning: Option<Tuning>,
    /// The daemon's device to compile for, by its kind or name: "cuda", "NVIDIA H200" [default: the daemon's of the kind that the graph is for].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Inductor's code, for workers with Python.
    Inductor,
    /// An AOTInductor package, for workers without.
    Aoti,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tuning {
    /// As little as correct code needs.
    Fast,
    /// Candidates are timed, and the best is kept.
    Full,
    /// Tuned code where the store has it, else fast code.
    Tiered,
}

fn range(text: &str) -> Result<Range, String> {
    let ends = text.split_once('-').and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    let (start, end) = ends.ok_or_else(|| format!("{text:?} is not a range; write START-END, as in 1-16"))?;
    Range::new(start, end).map_err(|error| error.to_string())
}

impl Changes {
    /// The request of a file, changed.
    pub(super) async fn request(&self, client: &Client, file: &Path) -> anyhow::Result<CompileRequest> {
        let mut request = read(file).await?;
        if !(self.ranges.is_empty() && self.sizes.is_empty()) {
            request.plan = Plan::new(&self.ranges, &self.sizes)?;
            // Those of the file are for the file's plan.
            request.delivery.hints.clear();
        }
        match self.format {
            Some(Format::Inductor) => request.format = ArtifactFormat::Inductor,
            Some(Format::Aoti) => request.format = ArtifactFormat::Aoti,
            None => {}
        }
        if let Some(tuning) = self.tuning {
            request.delivery.is_tiered = tuning == Tuning::Tiered;
            let is_full = tuning == Tuning::Full;
            request.options.tuning = if is_full { request::Tuning::Full } else { request::Tuning::Fast };
        }
        if let Some(wanted) = &self.device {
            let devices = client.capabilities().await?.devices;
            let is_wanted = |name: &str| name.eq_ignore_ascii_case(wanted);
            let found = devices.iter().find(|device| is_wanted(&device.r#type) || is_wanted(&device.name));
            let has = || devices.iter().map(|it| format!("{} {}", it.r#type, it.name)).collect::<Vec<_>>().join(", ");
            let found = found.with_context(|| format!("the daemon compiles for no {wanted:?}; it has: {}", has()))?;
            request.device = Some(found.clone());
        }
        Ok(request)
    }
}

/// A folder without a graph file in it.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no graph file (*.{SUFFIX}) in {folder} or below; piecewised.save_graph and piecewised.record_graphs write them"
)]
pub(crate) struct NoGraphFiles {
    folder: String,
}

impl NoGraphFiles {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.display().to_string() }
    }
}

/// The graph files in a folder and below it, by name. Links to folders are not followed.
pub(super) fn below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let cannot = || format!("cannot list {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            if entry.file_type().with_context(cannot)?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|suffix| suffix == SUFFIX) {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The request of a file.
pub(super) async fn read(file: &Path) -> anyhow::Result<CompileRequest> {
    let path: PathBuf = file.to_owned();
    let read: Result<CompileRequest, GraphFileError> =
        tokio::task::spawn_blocking(move || read_graph_file(&path)).await?;
    Ok(read?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graph_files_are_found_below_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deeper.pwgraph")).unwrap();
        for name in ["b.pwgraph", "a.pwgraph", "c.txt", "deeper.pwgraph/d.pwgraph", "pwgraph"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = below(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|it| it.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.pwgraph", "b.pwgraph", "deeper.pwgraph/d.pwgraph"]);
        assert!(below(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn ranges_are_two_sizes() {
        assert_eq!(range("1-16"), Ok(Range::new(1, 16).unwrap()));
        for text in ["", "1", "-1-4", "1-", "4-1", "a-b", "1-2-3"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
