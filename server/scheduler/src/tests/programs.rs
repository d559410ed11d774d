//! Runs of programs: what fits, what does not, and when one is complete.

use std::time::{Duration, Instant};

use piecewised_graph::{Digest, PhaseTiming};
use piecewised_plan::Range;

use super::handle;
use crate::programs::{CameFrom, Place, Programs, RunStatus};

const MAX_PIECES: u32 = 8;

fn place(run: &str, index: u32, n_pieces: u32) -> Place {
    Place { program: "llama".parse().unwrap(), run: run.parse().unwrap(), index, n_pieces }
}

struct Harness {
    programs: Programs,
    now: Instant,
}

impl Harness {
    fn new() -> Self {
        Self { programs: Programs::default(), now: Instant::now() }
    }

    /// Submits a piece with these keys; its graph is named by the first of them.
    fn submit(&self, place: &Place, keys: &[u8]) -> Result<(), &'static str> {
        let entries = (1..).zip(keys).map(|(size, _)| Range::single(size).unwrap()).collect();
        let keys: Vec<_> = keys.iter().map(|&key| Digest([key; 32])).collect();
        let submitted = self.programs.submit(place, keys[0], keys, entries, MAX_PIECES, self.now);
        submitted.map_err(|error| error.reason())
    }

    fn ready(&self, place: &Place, position: usize, key: u8, from: CameFrom) -> RunStatus {
        self.programs.ready(place, position, handle(key), from, self.now);
        self.status(place).unwrap()
    }

    fn status(&self, place: &Place) -> Option<RunStatus> {
        self.programs.status(place, self.now, 7)
    }
}

#[test]
fn a_program_is_complete_with_the_last_range_of_the_last_piece_and_not_before() {
    let it = Harness::new();
    let (first, last) = (place("r", 0, 2), place("r", 1, 2));
    // The last piece may come first.
    it.submit(&last, &[1, 3]).unwrap();
    assert!(it.ready(&last, 1, 3, CameFrom::Compiled).manifest.is_none());
    assert!(it.ready(&last, 0, 1, CameFrom::Store).manifest.is_none());
    it.submit(&first, &[1]).unwrap();
    assert_eq!(it.status(&first).unwrap().n_pieces_ready, 1);
    let status = it.ready(&first, 0, 1, CameFrom::Joined);
    assert_eq!((status.n_pieces, status.n_pieces_ready, status.n_distinct_pieces), (2, 2, 1));
    assert_eq!((status.n_from_store, status.n_compiled, status.n_joined), (1, 1, 1));
    // Key 1 is in two pieces and was compiled once.
    assert_eq!(status.phases, [PhaseTiming { phase: "compile".into(), seconds: 4.0 }]);
    let manifest = status.manifest.unwrap();
    assert_eq!(manifest.pieces.iter().map(|piece| piece.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(manifest.pieces[1].handles.iter().map(|handle| handle.key.0[0]).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(manifest.created_unix_ms, 7);
}

#[test]
fn entries_that_one_compile_serves_have_one_key_and_are_counted_each() {
    let it = Harness::new();
    let place = place("r", 0, 1);
    it.submit(&place, &[1, 1, 4]).unwrap();
    assert_eq!(it.ready(&place, 2, 4, CameFrom::Compiled).n_pieces_ready, 0);
    assert_eq!(it.ready(&place, 1, 1, CameFrom::Compiled).n_pieces_ready, 0);
    let status = it.ready(&place, 0, 1, CameFrom::Joined);
    assert_eq!((status.n_pieces_ready, status.n_compiled, status.n_joined), (1, 2, 1));
    assert_eq!(status.phases, [PhaseTiming { phase: "compile".into(), seconds: 5.0 }]);
    let manifest = status.manifest.unwrap();
    assert_eq!(manifest.pieces[0].entries.len(), 3);
    assert_eq!(manifest.pieces[0].handles.iter().map(|handle| handle.key.0[0]).collect::<Vec<_>>(), [1, 1, 4]);
    // The same key for other entries is another plan.
    let entries = vec![Range::new(1, 8).unwrap(), Range::new(9, 16).unwrap(), Range::single(3).unwrap()];
    let keys = vec![Digest([1; 32]), Digest([1; 32]), Digest([4; 32])];
    let other = it.programs.submit(&place, Digest([1; 32]), keys, entries, MAX_PIECES, it.now);
    assert_eq!(other.unwrap_err().reason(), "DIFFERENT_PIECE");
}

#[test]
fn runs_do_not_mix() {
    let it = Harness::new();
    it.submit(&place("a", 0, 2), &[1]).unwrap();
    it.ready(&place("a", 0, 2), 0, 1, CameFrom::Compiled);
    it.submit(&place("b", 1, 2), &[2]).unwrap();
    let status = it.ready(&place("b", 1, 2), 0, 2, CameFrom::Compiled);
    assert_eq!((status.n_pieces_ready, status.manifest), (1, None));
    // Another run of the program may have other pieces, and another number of them.
    it.submit(&place("c", 0, 1), &[9]).unwrap();
    assert!(it.ready(&place("c", 0, 1), 0, 9, CameFrom::Compiled).manifest.is_some());
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let it = Harness::new();
    it.submit(&place("r", 0, 2), &[1]).unwrap();
    assert_eq!(it.submit(&place("r", 2, 2), &[2]), Err("BAD_PIECE_INDEX"));
    assert_eq!(it.submit(&place("r", 0, 0), &[2]), Err("BAD_PIECE_INDEX"));
    assert_eq!(it.submit(&place("r", 0, MAX_PIECES + 1), &[2]), Err("BAD_PIECE_INDEX"));
    assert_eq!(it.submit(&place("r", 1, 3), &[2]), Err("DIFFERENT_TOTALS"));
    assert_eq!(it.submit(&place("r", 0, 2), &[2]), Err("DIFFERENT_PIECE"));
    it.submit(&place("r", 0, 2), &[1]).unwrap();
    it.submit(&place("r", 1, 2), &[2]).unwrap();
    it.ready(&place("r", 0, 2), 0, 1, CameFrom::Compiled);
    // Beyond its entries: of no meaning, and not counted.
    it.ready(&place("r", 1, 2), 5, 2, CameFrom::Compiled);
    assert!(it.ready(&place("r", 1, 2), 0, 2, CameFrom::Compiled).manifest.is_some());
}

#[test]
fn an_abandoned_run_is_forgotten() {
    let mut it = Harness::new();
    it.submit(&place("r", 0, 2), &[1]).unwrap();
    it.now += Duration::from_secs(3601);
    it.submit(&place("other", 0, 1), &[2]).unwrap();
    assert_eq!(it.status(&place("r", 0, 2)), None);
}
