//! Runs of programs: which pieces a worker has submitted, and which entries are ready.
//!
//! A plain state machine behind one lock; the clock is passed in. A run lives from its first piece until its manifest was handed out and
//! it has been idle for [`IDLE`], or until it was idle for so long without completing: then it is abandoned and leaves nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use piecewised_graph::{Digest, Handle, Manifest, ManifestPiece, PhaseTiming, ProgramName};
use piecewised_plan::Range;
use thiserror::Error;

/// A run that heard nothing for this long is over.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs that are remembered at a time; one more drops the one that was idle for longest.
const MAX_RUNS: usize = 4096;

/// A piece that does not fit its run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The index is not below the total, or the total is 0 or too large.
    #[error(
        "piece {index} of {n_pieces} is not possible: indices go from 0 to n_pieces - 1, and a program has 1 to {limit} pieces"
    )]
    BadPieceIndex {
        /// As given.
        index: u32,
        /// As given.
        n_pieces: u32,
        /// The most pieces a program may have.
        limit: u32,
    },
    /// Two totals in one run.
    #[error("this run of program {program} was begun with {begun} pieces and now says {n_pieces}; begin another run")]
    DifferentTotals {
        /// The program.
        program: ProgramName,
        /// What its first piece said.
        begun: u32,
        /// What this one says.
        n_pieces: u32,
    },
    /// Two different pieces at one index.
    #[error(
        "piece {index} of this run of program {program} was submitted with another graph, plan or options; begin another run"
    )]
    DifferentPiece {
        /// The program.
        program: ProgramName,
        /// The piece.
        index: u32,
    },
}

impl ProgramError {
    /// The stable name of this error in `google.rpc.ErrorInfo`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadPieceIndex { .. } => "BAD_PIECE_INDEX",
            Self::DifferentTotals { .. } => "DIFFERENT_TOTALS",
            Self::DifferentPiece { .. } => "DIFFERENT_PIECE",
        }
    }
}

/// A piece's place: program, run, index, total.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented once, at the proto's ProgramPiece")]
pub struct Place {
    pub program: ProgramName,
    pub run: ProgramName,
    pub index: u32,
    pub n_pieces: u32,
}

/// How a handle came to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in the proto's Source")]
pub enum CameFrom {
    Store,
    Compiled,
    Joined,
}

/// How far a run is. `piecewised/v1/program.proto` documents each field at ProgramStatus.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "documented once, at the proto's ProgramStatus")]
pub struct RunStatus {
    pub program: ProgramName,
    pub n_pieces: u32,
    pub n_pieces_ready: u32,
    pub n_distinct_pieces: u32,
    pub elapsed: Duration,
    pub n_from_store: u32,
    pub n_compiled: u32,
    pub n_joined: u32,
    pub phases: Vec<PhaseTiming>,
    /// Set while every piece is ready.
    pub manifest: Option<Manifest>,
}

/// Every run that is under way.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    runs: Mutex<HashMap<(ProgramName, ProgramName), Run>>,
}

#[derive(Debug)]
struct Run {
    n_pieces: u32,
    pieces: BTreeMap<u32, Piece>,
    begun: Instant,
    last_heard: Instant,
}

#[derive(Debug)]
struct Piece {
    graph_digest: Digest,
    /// The keys of its entries, in the plan's order: equal keys are equal graphs, ranges, options, everything. Entries that one compile
    /// serves have one key.
    keys: Vec<Digest>,
    entries: Vec<Range>,
    ready: BTreeMap<usize, (Handle, CameFrom)>,
}

impl Piece {
    fn is_ready(&self) -> bool {
        self.ready.len() == self.keys.len()
    }
}

impl Programs {
    fn lock(&self) -> MutexGuard<'_, HashMap<(ProgramName, ProgramName), Run>> {
        // Each change is one insertion: a panic leaves a whole state behind.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a piece was submitted. `keys`: of its entries in the plan's order; `entries`: their ranges, empty for a graph without
    /// symbolic input. Submitting the same piece again is fine, and forgets nothing.
    pub(crate) fn submit(
        &self,
        place: &Place,
        graph_digest: Digest,
        keys: Vec<Digest>,
        entries: Vec<Range>,
        max_pieces: u32,
        now: Instant,
    ) -> Result<(), ProgramError> {
        let &Place { index, n_pieces, .. } = place;
        if index >= n_pieces || n_pieces > max_pieces {
            return Err(ProgramError::BadPieceIndex { index, n_pieces, limit: max_pieces });
        }
        let mut runs = self.lock();
        runs.retain(|_, run| now.saturating_duration_since(run.last_heard) < IDLE);
        let id = (place.program.clone(), place.run.clone());
        if !runs.contains_key(&id) && runs.len() >= MAX_RUNS {
            let idlest = runs.iter().min_by_key(|(_, run)| run.last_heard).map(|(id, _)| id.clone());
            idlest.and_then(|id| runs.remove(&id));
        }
        let run =
            runs.entry(id).or_insert_with(|| Run { n_pieces, pieces: BTreeMap::new(), begun: now, last_heard: now });
        if run.n_pieces != n_pieces {
            let program = place.program.clone();
            return Err(ProgramError::DifferentTotals { program, begun: run.n_pieces, n_pieces });
        }
        run.last_heard = now;
        let piece = run.pieces.entry(index).or_insert_with(|| Piece {
            graph_digest,
            keys: keys.clone(),
            entries: entries.clone(),
            ready: BTreeMap::new(),
        });
        if piece.keys != keys || piece.entries != entries {
            return Err(ProgramError::DifferentPiece { program: place.program.clone(), index });
        }
        Ok(())
    }

    /// Notes that an entry of a submitted piece is ready.
    pub(crate) fn ready(&self, place: &Place, position: usize, handle: Handle, from: CameFrom, now: Instant) {
        let mut runs = self.lock();
        if let Some(run) = runs.get_mut(&(place.program.clone(), place.run.clone())) {
            run.last_heard = now;
            if let Some(piece) = run.pieces.get_mut(&place.index).filter(|piece| position < piece.keys.len()) {
                piece.ready.entry(position).or_insert((handle, from));
            }
        }
    }

    /// How far the run is; `None`: it was abandoned for so long that it was forgotten.
    pub(crate) fn status(&self, place: &Place, now: Instant, created_unix_ms: u64) -> Option<RunStatus> {
        let runs = self.lock();
        let run = runs.get(&(place.program.clone(), place.run.clone()))?;
        let handles = || run.pieces.values().flat_map(|piece| piece.ready.values());
        let count = |from| count(handles().filter(|(_, came)| *came == from).count());
        let n_pieces_ready = run.pieces.values().filter(|piece| piece.is_ready()).count();
        let distinct: HashSet<Digest> = run.pieces.values().map(|piece| piece.graph_digest).collect();
        let n_distinct_pieces = self::count(distinct.len());
        Some(RunStatus {
            program: place.program.clone(),
            n_pieces: run.n_pieces,
            n_pieces_ready: self::count(n_pieces_ready),
            n_distinct_pieces,
            elapsed: now.saturating_duration_since(run.begun),
            n_from_store: count(CameFrom::Store),
            n_compiled: count(CameFrom::Compiled),
            n_joined: count(CameFrom::Joined),
            phases: phases(handles().map(|(handle, _)| handle)),
            manifest: (self::count(n_pieces_ready) == run.n_pieces)
                .then(|| manifest(place, run, n_distinct_pieces, created_unix_ms))
                .flatten(),
        })
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Seconds by phase over handles, each key once.
fn phases<'a>(handles: impl Iterator<Item = &'a Handle>) -> Vec<PhaseTiming> {
    let mut seen = HashSet::new();
    let mut total: Vec<PhaseTiming> = Vec::new();
    for timing in handles.filter(|handle| seen.insert(handle.key)).flat_map(|handle| &handle.timings.phases) {
        match total.iter_mut().find(|sum| sum.phase == timing.phase) {
            Some(sum) => sum.seconds += timing.seconds,
            None => total.push(timing.clone()),
        }
    }
    total
}

fn manifest(place: &Place, run: &Run, n_distinct_pieces: u32, created_unix_ms: u64) -> Option<Manifest> {
    let pieces: Vec<ManifestPiece> = run
        .pieces
        .iter()
        .map(|(&index, piece)| ManifestPiece {
            index,
            entries: piece.entries.clone(),
            handles: piece.ready.values().map(|(handle, _)| handle.clone()).collect(),
        })
        .collect();
    let first = pieces.first()?.handles.first()?;
    let mut devices = Vec::new();
    for handle in pieces.iter().flat_map(|piece| &piece.handles) {
        if !devices.contains(&handle.device) {
            devices.push(handle.device.clone());
        }
    }
    Some(Manifest {
        program: place.program.clone(),
        toolchain: first.toolchain.clone(),
        devices,
        pieces,
        n_distinct_pieces,
        created_unix_ms,
        signature: None,
    })
}
