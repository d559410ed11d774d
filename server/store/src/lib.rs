//! The store: handles and artifacts, durable before acknowledged, verified before served.
//!
//! * [`Store::put`] returns when handle and artifact survive a power cut, or says that they are only held in memory;
//! * it stays within its budget by evicting what was used least recently, never what a stored manifest names;
//! * what does not verify is dropped, counted and reported as absent; damage never fails an open;
//! * all blocking work passes one bounded gate; async callers never block.
//!
//! Left out: what may be stored and for how long (the callers' business), compression, remote tiers.
//! `docs/store.md` has the layout on disk, the order of a write and the reasons.

mod archive;
mod blob;
mod blobs;
mod catalogue;
mod check;
mod commit;
mod config;
mod counters;
mod engine;
mod error;
mod evict;
mod export;
mod failures;
mod gate;
mod gc;
mod held;
mod import;
mod index;
mod inner;
mod keeper;
mod ladder;
mod layout;
mod listing;
mod lock;
mod lookup;
mod manifests;
mod notes;
mod pins;
mod programs;
mod put;
mod reader;
mod recent;
mod reconcile;
mod record;
mod report;
mod store;

pub use check::{CheckReport, Problem, ProblemKind, check};
pub use config::StoreConfig;
pub use error::StoreError;
pub use export::ExportReport;
pub use failures::FailureRecord;
pub use gc::{GcGoal, GcReport};
pub use import::ImportReport;
pub use layout::HEADERS_FOLDER;
pub use listing::{Listed, ListedItem};
pub use notes::Note;
pub use programs::ManifestInfo;
pub use reader::ArtifactReader;
pub use report::{OpenOutcome, OpenReport, StoreRoom, StoreStats, Stored};
pub use store::Store;
