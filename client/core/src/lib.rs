//! The client that every language shares: connect, compile, fetch, verify, materialise, dispatch.
//!
//! * Nothing is read from the process environment below [`Endpoint::resolve`], [`Credentials::resolve`], [`Keyring::resolve`] and
//!   [`cache_folder`], and those take it as an argument: configuration is passed in.
//! * Nothing is fetched, unpacked or handed on that no daemon has signed whose key is trusted ([`Keyring`]).
//! * Bytes are never used before their digest was checked, and files never before they were checked against the manifest.
//! * Every error says whether the caller has to change the request ([`ClientError::is_callers_mistake`]) or whether the
//!   daemon just can't help now, so that the caller compiles by itself ([`ClientError::falls_back`]).
//!
//! Deliberately absent: loading an artifact (that is the language's own job) and any policy about what to do without a
//! daemon.

mod admin;
mod answer;
mod bundle;
mod cache;
mod client;
mod connect;
mod container;
mod credentials;
mod dispatch;
mod endpoint;
mod error;
mod event;
mod explain;
mod fetch;
mod graph_file;
mod known;
mod manifest;
mod pack;
mod program;
mod snapshot;
mod status;
mod trace;
mod trust;

pub use admin::{Admin, CompiledRange, Job, ManifestSummary, RememberedFailure, StoredArtifact, StoredWhat};
pub use bundle::{BUNDLE_VERSION, MAGIC, from_bundle, to_bundle};
pub use cache::{Cache, cache_folder};
pub use client::{Client, ClientOptions, CompileRequest, CompileStream, FetchOptions, Priority};
pub use container::{ContainerError, unpack};
pub use credentials::Credentials;
pub use dispatch::{Dispatcher, Target, ValuePlace};
pub use endpoint::{Endpoint, EndpointError, is_this_machine};
pub use error::{ClientError, Refusal};
pub use event::{Capabilities, Completed, Difference, Event, EventKind, Limits, Source};
pub use explain::{Explanation, KeyComponent};
pub use fetch::Fetched;
pub use graph_file::{GRAPH_FILE_MAGIC, GraphFileError, read_graph_file, write_graph_file};
pub use manifest::{Manifest, ManifestEntry, ManifestFile};
pub use piecewised_wire::Delivery;
pub use program::{ProgramPiece, ProgramStatus, check_manifest};
pub use status::{
    Activity, Confinement, JobTotals, MissingMeasure, NodeStatus, PartStatus, PieceDifference, StoreStatus,
};
pub use trace::TraceContext;
pub use trust::{Keyring, TrustError};
