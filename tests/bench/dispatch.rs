//! Measures the Rust dispatcher: nanoseconds from a size to its entry, for three ranges and more and more single sizes. Prints one JSON object.
//!
//! Two orders of sizes: `same`, one size again and again, as a decode loop asks, where every branch is predicted; `mixed`, half of
//! them single sizes and half of them not, in an order that no branch predictor knows. Each lookup waits for the result of the one
//! before, so that it is the time until there is an answer, not how many of them a core has under way at once. It includes the loop
//! around it and reading the size from an array, which `loop_ns` has alone.
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::{hint::black_box, time::Instant};

use piecewised_plan::{DispatchTable, Plan, Range, ranges_from_endpoints};

type Error = Box<dyn std::error::Error>;

const ENDPOINTS: [i64; 3] = [512, 2048, 8192];
const N_LOOKUPS: usize = 1 << 16;
const N_REPEATS: usize = 201;

fn main() -> Result<(), Error> {
    let mut rows = Vec::new();
    for n_sizes in [0, 8, 64, 1024] {
        // As CUDA graph capture sizes are: 8, 16, 24 and so on.
        let singles: Vec<i64> = (1..=n_sizes).map(|i| i * 8).collect();
        let plan = Plan::new(&ranges_from_endpoints(&ENDPOINTS)?, &singles)?;
        let table = DispatchTable::new(plan.entries().iter().copied().zip(0..))?;
        let mixed = mixed_sizes(&singles);
        check(&table, &plan, &mixed)?;
        rows.push(serde_json::json!({
            "n_ranges": ENDPOINTS.len(),
            "n_sizes": n_sizes,
            "same_ns": median_ns(&vec![1000; N_LOOKUPS], |size| table.lookup(size).map_or(0, |&entry| entry)),
            "mixed_ns": median_ns(&mixed, |size| table.lookup(size).map_or(0, |&entry| entry)),
            "loop_ns": median_ns(&mixed, |size| size),
        }));
    }
    println!("{}", serde_json::json!({ "table": rows }));
    Ok(())
}

/// Sizes in an order of no pattern: single sizes, if there are any, and others.
fn mixed_sizes(singles: &[i64]) -> Vec<i64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |n: usize| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    };
    (0..N_LOOKUPS)
        .map(|_| if !singles.is_empty() && next(2) == 0 { singles[next(singles.len())] } else { 1 + next(8192) as i64 })
        .collect()
}

/// What is measured has to be right: each size's entry by the rule.
fn check(table: &DispatchTable<i64>, plan: &Plan, sizes: &[i64]) -> Result<(), Error> {
    for &size in sizes {
        let exact = plan.entries().iter().position(|&entry| Range::single(size) == Ok(entry));
        let expected = exact.or_else(|| plan.entries().iter().position(|entry| entry.contains(size)));
        if expected != Some(usize::try_from(*table.lookup(size)?)?) {
            return Err(format!("size {size} goes to the wrong entry").into());
        }
    }
    Ok(())
}

/// Nanoseconds until one call has its answer: the median over many rounds of all sizes.
fn median_ns(sizes: &[i64], call: impl Fn(i64) -> i64) -> f64 {
    // Nothing of an answer is left after this, which the compiler cannot know: the next call needs it.
    let nothing = black_box(0);
    let mut rounds: Vec<f64> = (0..N_REPEATS)
        .map(|_| {
            let started = Instant::now();
            let mut answer = 0;
            for &size in sizes {
                answer = call(size | (answer & nothing));
            }
            black_box(answer);
            started.elapsed().as_nanos() as f64 / sizes.len() as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}
