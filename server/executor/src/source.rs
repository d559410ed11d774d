//! The executor's own Python source, which travels inside the binary.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use include_dir::{Dir, DirEntry, include_dir};
use piecewised_graph::Digest;

/// `python/piecewised_executor` as build.rs staged it: links followed, bytecode left out.
static EMBEDDED: Dir<'static> = include_dir!("$OUT_DIR/python");

/// The embedded source.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecutorSource;

impl ExecutorSource {
    /// Writes the source into a folder of its own within `folder` and returns that: what `PYTHONPATH` must be.
    ///
    /// The folder is named after the source's digest and appears whole or not at all; one that is there already is used as it
    /// is, so `folder` must be private to this daemon.
    ///
    /// # Errors
    /// Where `folder` cannot be written to.
    pub fn lay_down(&self, folder: &Path) -> io::Result<PathBuf> {
        let target = folder.join(format!("source-{}", self.digest().short()));
        if target.is_dir() {
            return Ok(target);
        }
        let staging = tempfile::Builder::new()
            .prefix(".source-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(folder)?;
        write(&EMBEDDED, staging.path())?;
        match fs::rename(staging.path(), &target) {
            Ok(()) => {
                // Renamed away: there is nothing left to remove under the old name.
                let _ = staging.keep();
                Ok(target)
            }
            Err(_) if target.is_dir() => Ok(target),
            Err(error) => Err(error),
        }
    }

    /// Digest of every path and its content: another one is another executor.
    pub fn digest(&self) -> Digest {
        let mut text = Vec::new();
        for (path, content) in files(&EMBEDDED) {
            for part in [path.to_string_lossy().as_bytes(), content] {
                text.extend_from_slice(&(part.len() as u64).to_be_bytes());
                text.extend_from_slice(part);
            }
        }
        Digest::of(&text)
    }

    /// The paths that it holds, relative and sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        files(&EMBEDDED).into_iter().map(|(path, _)| path.to_owned()).collect()
    }
}

fn files(dir: &'static Dir<'static>) -> Vec<(&'static Path, &'static [u8])> {
    let mut found = Vec::new();
    for entry in dir.entries() {
        match entry {
            DirEntry::Dir(dir) => found.extend(files(dir)),
            DirEntry::File(file) => found.push((file.path(), file.contents())),
        }
    }
    found.sort();
    found
}

fn write(dir: &'static Dir<'static>, folder: &Path) -> io::Result<()> {
    for (path, content) in files(dir) {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_laid_down_whole_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = ExecutorSource.lay_down(folder.path()).unwrap();
        for (path, content) in files(&EMBEDDED) {
            assert_eq!(fs::read(first.join(path)).unwrap(), content, "{}", path.display());
        }
        assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(ExecutorSource.lay_down(folder.path()).unwrap(), first);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn it_holds_source_only_and_all_of_it() {
        let mut expected = Vec::new();
        in_the_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("python"), Path::new(""), &mut expected);
        expected.sort();
        assert_eq!(ExecutorSource.paths(), expected, "touch server/executor/build.rs and build again");
        assert!(expected.iter().all(|path| path.extension().is_some_and(|kind| kind == "py")), "{expected:?}");
        assert!(expected.iter().any(|path| path.starts_with("piecewised_executor/runtime")), "{expected:?}");
    }

    fn in_the_tree(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if path.ends_with("__pycache__") {
                continue;
            }
            if root.join(&path).is_dir() { in_the_tree(root, &path, found) } else { found.push(path) }
        }
    }
}
