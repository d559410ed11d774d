//! Stages the executor's Python source for embedding.
//!
//! Copies `python/piecewised_executor` into `OUT_DIR`, symbolic links followed (its `runtime` is the client's), bytecode
//! caches and hidden files left out, so that the binary holds the source and nothing that a test run left behind.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("not run by cargo"))?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("not run by cargo"))?);
    println!("cargo::rerun-if-changed=build.rs");

    let staged = out.join("python");
    match fs::remove_dir_all(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let package = manifest.join("python/piecewised_executor");
    stage(&package, &staged.join("piecewised_executor"))
}

fn stage(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let explain = |error| io::Error::other(format!("{}: {error}", from.display()));
    for entry in fs::read_dir(from).map_err(explain)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == "__pycache__" || text.starts_with('.') || text.ends_with(".pyc") {
            continue;
        }
        let path = entry.path();
        let kind = fs::metadata(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        if kind.is_dir() {
            stage(&path, &to.join(name))?;
        } else {
            // Files by their real paths, not folders: cargo looks at all of a folder, bytecode caches included, and a new
            // module comes with a change in a file that imports it.
            println!("cargo::rerun-if-changed={}", path.canonicalize()?.display());
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
