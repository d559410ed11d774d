//! How long a call takes: the median of some rounds. On a GPU a round ends when the GPU has done its calls, so that what is timed is the
//! launching or the kernels, whichever takes longer.

use std::time::Instant;

use anyhow::Result;
use piecewised_tch::{Package, synchronise};
use tch::Tensor;

const N_ROUNDS: usize = 15;
const MAX_REPEATS: f64 = 1000.0;

/// Microseconds of a call, in some `seconds` in all.
pub(crate) fn median_us(package: &Package, inputs: &[&Tensor], seconds: f64) -> Result<f64> {
    let round = |n_calls: usize| -> Result<f64> {
        synchronise(package.device())?;
        let started = Instant::now();
        for _ in 0..n_calls {
            package.forward(inputs)?;
        }
        synchronise(package.device())?;
        Ok(started.elapsed().as_secs_f64() / n_calls as f64)
    };
    round(1)?;
    let repeats = (seconds / N_ROUNDS as f64 / round(1)?.max(1e-7)).clamp(1.0, MAX_REPEATS) as usize;
    let mut times = (0..N_ROUNDS).map(|_| round(repeats)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[N_ROUNDS / 2] * 1e6)
}
