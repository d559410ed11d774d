//! Executors killed at random moments in the middle of real compiles: whoever asked gets the right result from another one, or a typed
//! error, and nothing of the killed one stays.
//!
//! `PIECEWISED_TEST_KILLS` is the number of rounds (4 otherwise); `PIECEWISED_TEST_SEED` the seed, which a failure names.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails where it unwraps nothing, and says what it counted"
)]

mod common;

use std::{fs, sync::Arc, time::Duration};

use common::{
    eventually, members,
    real::{config, job},
};
use piecewised_executor::{Executor, ExecutorError, Launcher, Placement, Unshared};
use piecewised_graph::VerificationOutcome;
use rustix::process::{Pid, Signal, kill_process};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The splitmix64 generator: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_end_in_a_typed_error_and_leave_nothing() {
    let n_rounds = number("PIECEWISED_TEST_KILLS", 4);
    let seed = number("PIECEWISED_TEST_SEED", u64::from(std::process::id()));
    let (config, _runtime, root) = config();
    let launcher = Launcher::new(Arc::new(config));
    let mut random = Random(seed);
    // Also how long a compile takes here: kills are spread over all of it and some more.
    let mut executor = launcher.launch(&Placement::default()).await.unwrap();
    compile(&mut executor, 0).await.unwrap();
    let start = std::time::Instant::now();
    compile(&mut executor, 1).await.unwrap();
    let usual = start.elapsed() * 2;
    executor.shutdown().await;

    let mut n_survived = 0;
    for round in 0..n_rounds {
        let mut executor = launcher.launch(&Placement::default()).await.unwrap();
        let pid = executor.pid();
        let delay = Duration::from_micros(random.below(u64::try_from(usual.as_micros()).unwrap()));
        let choice = random.next();
        let killer = tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            // The executor in most rounds, in the others whatever works for it.
            let mut victims = members(pid);
            victims.sort_unstable();
            let victim = if choice.is_multiple_of(4) {
                victims.get((choice / 4) as usize % victims.len().max(1))
            } else {
                Some(&pid)
            };
            if let Some(victim) = victim.and_then(|pid| Pid::from_raw(i32::try_from(*pid).unwrap())) {
                let _ = kill_process(victim, Signal::KILL);
            }
        });
        let result = compile(&mut executor, round).await;
        killer.await.unwrap();
        match result {
            Ok(()) => n_survived += 1,
            Err(ExecutorError::Crashed { .. }) => {
                assert!(!executor.is_usable());
                // The same job on another one.
                let mut other = launcher.launch(&Placement::default()).await.unwrap();
                compile(&mut other, round).await.unwrap();
                other.shutdown().await;
            }
            // A killed compiler, or a killed process that tries the artifact, is told as what it looks like.
            Err(ExecutorError::Failed { .. }) if choice.is_multiple_of(4) => {}
            Err(error) => panic!("seed {seed}, round {round}: {error:?}"),
        }
        drop(executor);
        eventually("no process of the group is left", || members(pid).is_empty()).await;
    }
    println!("{n_rounds} kills, {n_survived} of them after the compile had ended; seed {seed}");
    launcher.shutdown().await;
    eventually("no folder is left", || fs::read_dir(root.path()).unwrap().next().is_none()).await;
}

async fn compile(executor: &mut Executor, round: u64) -> Result<(), ExecutorError> {
    let functions = ["torch.add", "torch.mul", "torch.sub"];
    let function = functions[usize::try_from(round).unwrap() % functions.len()];
    let job = job(executor, &format!("round {round}"), function, (1, 16));
    let outcome = executor.compile(&job, &mut Unshared(|_: &str| ())).await?;
    assert_eq!(outcome.verification.outcome, VerificationOutcome::Passed);
    assert!(!outcome.artifact.is_empty() && outcome.peak_memory_bytes > 0);
    Ok(())
}
