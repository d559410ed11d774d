//! What executors are kept from: what the configuration asks for, held against what this machine has.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use piecewised_executor::{Confinement, Missing};

use crate::{choices::ConfineExecutors, config::Config, layers::ConfigError};

/// Where libtorch unpacks AOTInductor packages to load them: written in its code, and in no variable.
pub(crate) const PACKAGES: &str = "/tmp";

/// Finds out what this machine has.
///
/// # Errors
/// [`ConfigError`] where all of it is required and something is missing, or a folder is.
pub(crate) fn of(config: &Config) -> anyhow::Result<Confinement> {
    let is_bad = |folder: &&PathBuf| !folder.is_absolute() || !folder.is_dir() && **folder != Path::new(PACKAGES);
    if let Some(folder) = config.executor_writable_dirs.iter().find(is_bad) {
        let problem = format!(
            "executor_writable_dirs: {} is no folder that is there, by its whole path; make it, or leave it out",
            folder.display()
        );
        return Err(ConfigError::new(problem).into());
    }
    if config.confine_executors == ConfineExecutors::Off {
        return Ok(Confinement::off());
    }
    let found = Confinement::strongest(secrets(config)).context("cannot find out what executors can be kept from")?;
    if config.confine_executors == ConfineExecutors::Require && !found.missing().is_empty() {
        let reasons: Vec<String> = found.missing().iter().map(words).collect();
        let problem = format!(
            "confine_executors: \"require\" needs what this machine does not have: {}; get it, or set \"auto\", which goes without",
            reasons.join("; ")
        );
        return Err(ConfigError::new(problem).into());
    }
    Ok(found)
}

/// What is missing, why, and what it means.
pub(crate) fn words(missing: &Missing) -> String {
    format!("{} ({}), so that {}", missing.measure, missing.reason, missing.measure.without())
}

/// What is in force, for people.
pub(crate) fn in_force(found: &Confinement) -> String {
    found.in_force().iter().map(|measure| measure.name()).collect::<Vec<_>>().join(", ")
}

/// Says once what is in force, and what lies where executors may write. `writable`: `executor_writable_dirs`.
///
/// # Errors
/// As [`Confinement::exposed`].
pub(crate) fn announce(found: &Confinement, writable: &[PathBuf]) -> io::Result<()> {
    if found.in_force().is_empty() && found.missing().is_empty() {
        tracing::warn!("executors are not confined (confine_executors = \"off\"): they may what the daemon's user may");
        return Ok(());
    }
    tracing::info!(in_force = in_force(found), "executors are confined");
    for path in found.exposed(writable)? {
        tracing::warn!(
            path = %path.display(),
            "executors may read and write this, since it lies in one of executor_writable_dirs (/tmp by default); put it elsewhere"
        );
    }
    for missing in found.missing() {
        tracing::warn!("executors are not confined in all ways: {}", words(missing));
    }
    Ok(())
}

/// What holds keys, and what is signed with them once it is handed out.
fn secrets(config: &Config) -> Vec<PathBuf> {
    let files = [&config.signing_key, &config.tls_key, &config.tokens, &config.otlp_key, &config.otlp_headers];
    files.into_iter().flatten().cloned().chain([config.store_dir.clone()]).collect()
}
