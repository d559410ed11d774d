//! What process groups hold of the machine's memory: measured, and held against their limits.
//!
//! One thread for all groups of this process samples `/proc`, since finding the members of a group means a walk over all of it; it
//! runs while there are groups, looks only while one of them has a job or a limit, and seldom where no job is. A page that several processes share (a forked executor's are
//! mostly its zygote's) counts in shares, which is what the group costs the machine.
//!
//! Between two samples a group can hold more than either shows. Left out: the GPU's memory.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::process::Group;

/// Between two samples, at least.
const INTERVAL: Duration = Duration::from_millis(100);

/// Where there is a limit and no job, one sample in so many: little changes there, and the processes of an idle node are to cost nothing.
const IDLE_ROUNDS: u32 = 10;

/// Sampling may take this share of one core: where there are very many processes, samples are rarer.
const COST: u32 = 20;

/// The measurements of one group, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// 0: none.
    limit: AtomicU64,
    last: AtomicU64,
    peak: AtomicU64,
    /// What it held when it was killed for that; 0: it was not.
    went_over: AtomicU64,
    has_job: AtomicBool,
}

impl Meter {
    /// A job begins: its peak is measured from now on.
    pub(crate) fn begin(&self) {
        self.peak.store(0, Relaxed);
        self.has_job.store(true, Relaxed);
    }

    /// The job has ended; the most that was seen during it.
    pub(crate) fn end(&self) -> u64 {
        self.has_job.store(false, Relaxed);
        self.peak.load(Relaxed)
    }

    /// What was last seen.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Relaxed)
    }

    /// The limit and what the group held, where it was killed for that.
    pub(crate) fn went_over(&self) -> Option<(u64, u64)> {
        let used = self.went_over.load(Relaxed);
        (used > 0).then(|| (self.limit.load(Relaxed), used))
    }

    fn is_wanted(&self, round: u32) -> bool {
        self.has_job.load(Relaxed) || (self.limit.load(Relaxed) > 0 && round.is_multiple_of(IDLE_ROUNDS))
    }
}

/// The groups that are sampled, and whether a thread does so.
#[derive(Default)]
struct Watched {
    groups: Vec<Weak<Group>>,
    is_running: bool,
}

static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

/// Samples the group from now on, for as long as somebody keeps it; kills it when it holds more than `limit` bytes.
pub(crate) fn watch(group: &Arc<Group>, limit: Option<u64>) {
    group.meter.limit.store(limit.unwrap_or(0), Relaxed);
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let watched = watched.get_or_insert_default();
    watched.groups.push(Arc::downgrade(group));
    if !watched.is_running {
        watched.is_running = thread::Builder::new().name("memory".into()).spawn(run).is_ok();
        if !watched.is_running {
            tracing::error!("cannot start the thread that measures memory: there are no limits");
        }
    }
}

/// One look at a group outside of the thread's turn, for a job that was over before it. Blocks.
pub(crate) fn sample_now(group: &Arc<Group>) {
    sample(&[Arc::clone(group)]);
}

fn run() {
    for round in (0..IDLE_ROUNDS).cycle() {
        let groups = {
            let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
            let watched = watched.get_or_insert_default();
            watched.groups.retain(|group| group.strong_count() > 0);
            if watched.groups.is_empty() {
                watched.is_running = false;
                return;
            }
            let alive = watched.groups.iter().filter_map(Weak::upgrade);
            alive.filter(|group| group.meter.is_wanted(round)).collect::<Vec<_>>()
        };
        let started = Instant::now();
        if !groups.is_empty() {
            sample(&groups);
        }
        // Not kept while this sleeps: the last user of a group lets go of it.
        drop(groups);
        thread::sleep(INTERVAL.max(started.elapsed() * COST));
    }
}

fn sample(groups: &[Arc<Group>]) {
    let mut used: HashMap<i32, u64> = groups.iter().map(|group| (group.id(), 0)).collect();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(total) = group_of(pid).and_then(|group| used.get_mut(&group)) {
            *total += held_by(pid).unwrap_or(0);
        }
    }
    for group in groups {
        let (meter, used) = (&group.meter, used[&group.id()]);
        if used == 0 {
            continue; // It has ended meanwhile.
        }
        meter.last.store(used, Relaxed);
        meter.peak.fetch_max(used, Relaxed);
        let limit = meter.limit.load(Relaxed);
        if limit > 0 && used > limit && meter.went_over.swap(used, Relaxed) == 0 {
            tracing::warn!(
                executor = group.id(),
                used_bytes = used,
                limit_bytes = limit,
                "ending an executor that holds more memory than it may"
            );
            group.kill();
        }
    }
}

fn group_of(pid: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state ppid pgrp ...", and the name may hold anything.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// Bytes that a process holds, shared pages in shares and what is swapped out included.
fn held_by(pid: u32) -> Option<u64> {
    let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
        // Some kernels and sandboxes do not have it: then shared pages count in full.
        let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let resident: u64 = pages.split_ascii_whitespace().nth(1)?.parse().ok()?;
        return Some(resident * rustix::param::page_size() as u64);
    };
    let kib = rollup.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        matches!(words.next()?, "Pss:" | "SwapPss:").then(|| words.next()?.parse::<u64>().ok())?
    });
    Some(kib.sum::<u64>() * 1024)
}

/// How many processes the system has killed since it started because memory ran out, whether all of it or that of a container.
pub(crate) fn n_killed_by_system() -> u64 {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_in_its_group_and_holds_something() {
        let own = std::process::id();
        assert_eq!(group_of(own), Some(rustix::process::getpgrp().as_raw_nonzero().get()));
        assert!(held_by(own).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(held_by(u32::MAX), None);
    }
}
