//! What the machine can run side by side: executors, memory, GPUs.
//!
//! Pure arithmetic; [`crate::queue`] asks it whether a job fits and tells it when one has ended.

use std::collections::BTreeMap;

use piecewised_graph::request::DeviceKind;

/// What one job is taken to need before any job like it was measured: a Python with torch in it, and a compiler beside it.
const UNMEASURED_BYTES: u64 = 1536 << 20;

/// Faults in a row after which a GPU gets no jobs any more while another of its kind is well. A graph whose own code faults does so on each GPU that it is
/// tried on: that alone must not be taken for a broken GPU.
const MAX_FAULTS: u32 = 3;

/// Unless the operator says how many jobs a GPU has at a time: one for so much of its memory, within bounds. A job holds a context, its kernels, and what
/// the piece computes with at the end of its range.
const GPU_BYTES_PER_JOB: u64 = 16 << 30;
const JOBS_PER_GPU: std::ops::RangeInclusive<u64> = 2..=8;

/// What a job has to have to run. Jobs with equal needs are taken to use as much memory as each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Need {
    /// "cuda", "cpu".
    pub(crate) device_type: String,
    /// Which GPUs will do: those of this kind. `None`: it needs no GPU.
    pub(crate) gpu_kind: Option<String>,
    /// Tuning holds several compiled candidates at a time.
    pub(crate) is_tuned: bool,
}

impl Need {
    pub(crate) fn new(device: &DeviceKind, is_tuned: bool) -> Self {
        let gpu_kind = (device.r#type != "cpu").then(|| kind(device));
        Self { device_type: device.r#type.clone(), gpu_kind, is_tuned }
    }
}

/// What GPUs that run the same code have in common.
pub(crate) fn kind(device: &DeviceKind) -> String {
    format!("{} {} {}", device.r#type, device.name, device.capability)
}

/// What a running job holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Grant {
    /// Position among the GPUs. `None`: it needs none, or none is known that it could have, and it has to find its own.
    pub(crate) gpu: Option<usize>,
    memory_bytes: u64,
}

/// Whether a job can start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    Fits(Grant),
    /// Every executor is busy.
    NoExecutor,
    /// What runs may need the memory.
    NoMemory,
    /// Every GPU of its kind has as many jobs as it takes.
    NoGpu,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Gpu {
    kind: String,
    max_jobs: usize,
    n_jobs: usize,
    /// Jobs in a row that lost their context on it; not counted beyond [`MAX_FAULTS`].
    n_faults: u32,
}

impl Gpu {
    fn is_quarantined(&self) -> bool {
        self.n_faults >= MAX_FAULTS
    }
}

/// What there is, and what of it is in use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Slots {
    n_executors: usize,
    n_running: usize,
    max_memory_bytes: u64,
    memory_bytes: u64,
    max_jobs_per_gpu: Option<usize>,
    gpus: Vec<Gpu>,
    /// The most that jobs of these needs took, fading.
    peaks: BTreeMap<Need, u64>,
}

impl Slots {
    /// Nothing in use, and no GPUs yet. `max_jobs_per_gpu`: `None` goes by the GPU's memory.
    pub(crate) fn new(n_executors: usize, max_memory_bytes: u64, max_jobs_per_gpu: Option<usize>) -> Self {
        Self {
            n_executors,
            n_running: 0,
            max_memory_bytes,
            memory_bytes: 0,
            max_jobs_per_gpu,
            gpus: Vec::new(),
            peaks: BTreeMap::new(),
        }
    }

    /// The GPUs, by kind and memory in bytes, once they are known.
    pub(crate) fn set_gpus(&mut self, gpus: impl IntoIterator<Item = (String, u64)>) {
        let max_jobs = |memory_bytes: u64| {
            let by_memory = (memory_bytes / GPU_BYTES_PER_JOB).clamp(*JOBS_PER_GPU.start(), *JOBS_PER_GPU.end());
            self.max_jobs_per_gpu.unwrap_or(by_memory as usize)
        };
        let gpu = |(kind, memory_bytes)| Gpu { kind, max_jobs: max_jobs(memory_bytes), n_jobs: 0, n_faults: 0 };
        self.gpus = gpus.into_iter().map(gpu).collect();
    }

    /// Whether a job of this need can start now, and with what.
    ///
    /// One job alone always can: a job that is expected to need more memory than there is may be wrong about it, and if it is right,
    /// its executor's own limit ends it.
    pub(crate) fn fit(&self, need: &Need) -> Fit {
        if self.n_running >= self.n_executors {
            return Fit::NoExecutor;
        }
        let memory_bytes = self.peaks.get(need).copied().unwrap_or(UNMEASURED_BYTES);
        if self.n_running > 0 && self.memory_bytes + memory_bytes > self.max_memory_bytes {
            return Fit::NoMemory;
        }
        match self.gpu(need, None) {
            Ok(gpu) => Fit::Fits(Grant { gpu, memory_bytes }),
            Err(()) => Fit::NoGpu,
        }
    }

    /// The idlest GPU that will do and is not `avoided`, among those that are well, or, where none is, among all; `Err`: each has enough.
    fn gpu(&self, need: &Need, avoided: Option<usize>) -> Result<Option<usize>, ()> {
        let Some(kind) = &need.gpu_kind else { return Ok(None) };
        let mut fitting: Vec<_> = self.gpus.iter().enumerate().filter(|(_, gpu)| gpu.kind == *kind).collect();
        if fitting.is_empty() {
            return Ok(None);
        }
        if fitting.iter().any(|(_, gpu)| !gpu.is_quarantined()) {
            fitting.retain(|(_, gpu)| !gpu.is_quarantined());
        }
        let free = fitting.into_iter().filter(|(at, gpu)| gpu.n_jobs < gpu.max_jobs && Some(*at) != avoided);
        free.min_by_key(|(_, gpu)| gpu.n_jobs).map(|(at, _)| Some(at)).ok_or(())
    }

    /// Marks what [`Slots::fit`] gave as in use.
    pub(crate) fn hold(&mut self, grant: Grant) {
        self.n_running += 1;
        self.memory_bytes += grant.memory_bytes;
        if let Some(gpu) = grant.gpu {
            self.gpus[gpu].n_jobs += 1;
        }
    }

    /// Gives it back.
    pub(crate) fn release(&mut self, grant: Grant) {
        self.n_running -= 1;
        self.memory_bytes -= grant.memory_bytes;
        if let Some(gpu) = grant.gpu {
            self.gpus[gpu].n_jobs -= 1;
        }
    }

    /// The GPU of `grant` has failed the job: another one of its kind takes its place, where one is free. Gives the GPU where it is quarantined by this.
    pub(crate) fn gpu_failed(&mut self, need: &Need, grant: &mut Grant) -> Option<usize> {
        let old = grant.gpu?;
        let was_quarantined = self.gpus[old].is_quarantined();
        self.gpus[old].n_faults = (self.gpus[old].n_faults + 1).min(MAX_FAULTS);
        if let Ok(Some(new)) = self.gpu(need, Some(old)) {
            self.gpus[old].n_jobs -= 1;
            self.gpus[new].n_jobs += 1;
            grant.gpu = Some(new);
        }
        (self.gpus[old].is_quarantined() && !was_quarantined).then_some(old)
    }

    /// A job has come through on the GPU of `grant`. Gives the GPU where that ends its quarantine.
    pub(crate) fn gpu_worked(&mut self, grant: Grant) -> Option<usize> {
        let at = grant.gpu?;
        let was_quarantined = self.gpus[at].is_quarantined();
        self.gpus[at].n_faults = 0;
        was_quarantined.then_some(at)
    }

    /// Notes what a job of this need took at most. Larger ones count at once; smaller ones let an old peak fade, since one large graph
    /// must not keep executors idle for ever.
    pub(crate) fn measured(&mut self, need: &Need, peak_bytes: u64) {
        let before = self.peaks.get(need).copied().unwrap_or(0);
        self.peaks.insert(need.clone(), peak_bytes.max(before - (before - before.min(peak_bytes)) / 8));
    }

    /// How many jobs run.
    pub(crate) fn n_running(&self) -> usize {
        self.n_running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn need(device_type: &str, name: &str) -> Need {
        let text = |text: &str| text.to_owned();
        Need::new(&DeviceKind { r#type: text(device_type), name: text(name), capability: String::new() }, false)
    }

    fn take(slots: &mut Slots, need: &Need) -> Result<Grant, Fit> {
        match slots.fit(need) {
            Fit::Fits(grant) => {
                slots.hold(grant);
                Ok(grant)
            }
            other => Err(other),
        }
    }

    #[test]
    fn jobs_run_side_by_side_as_far_as_their_memory_goes() {
        let mut slots = Slots::new(4, 10 * GIB, Some(1));
        let (small, large) = (need("cpu", "small"), Need { is_tuned: true, ..need("cpu", "large") });
        slots.measured(&small, GIB);
        slots.measured(&large, 6 * GIB);
        let first = take(&mut slots, &large).unwrap();
        assert_eq!(take(&mut slots, &large), Err(Fit::NoMemory));
        take(&mut slots, &small).unwrap();
        slots.release(first);
        take(&mut slots, &large).unwrap();
        take(&mut slots, &small).unwrap();
        take(&mut slots, &small).unwrap();
        assert_eq!(take(&mut slots, &small), Err(Fit::NoExecutor));
    }

    #[test]
    fn one_job_runs_however_much_it_needs() {
        let mut slots = Slots::new(2, GIB, Some(1));
        let job = need("cpu", "");
        slots.measured(&job, 100 * GIB);
        let grant = take(&mut slots, &job).unwrap();
        assert_eq!(take(&mut slots, &job), Err(Fit::NoMemory));
        slots.release(grant);
        take(&mut slots, &job).unwrap();
    }

    #[test]
    fn a_large_peak_counts_at_once_and_fades() {
        let mut slots = Slots::new(2, 10 * GIB, Some(1));
        let job = need("cpu", "");
        let peak = |slots: &Slots| slots.peaks[&job];
        slots.measured(&job, GIB);
        slots.measured(&job, 9 * GIB);
        assert_eq!(peak(&slots), 9 * GIB);
        slots.measured(&job, GIB);
        assert_eq!(peak(&slots), 8 * GIB);
        (0..100).for_each(|_| slots.measured(&job, GIB));
        assert!(peak(&slots) < GIB + GIB / 100);
    }

    #[test]
    fn jobs_are_spread_over_the_gpus_of_their_kind() {
        let mut slots = Slots::new(8, 100 * GIB, Some(2));
        let (h200, l4, cpu) = (need("cuda", "H200"), need("cuda", "L4"), need("cpu", ""));
        slots.set_gpus([h200.clone(), l4.clone(), h200.clone()].map(|need| (need.gpu_kind.unwrap(), 0)));
        let mut gpus: Vec<_> = (0..4).map(|_| take(&mut slots, &h200).unwrap()).collect();
        assert_eq!(gpus.iter().map(|grant| grant.gpu.unwrap()).collect::<Vec<_>>(), [0, 2, 0, 2]);
        assert_eq!(take(&mut slots, &h200), Err(Fit::NoGpu));
        assert_eq!(take(&mut slots, &l4).unwrap().gpu, Some(1));
        assert_eq!(take(&mut slots, &cpu).unwrap().gpu, None);
        // A GPU that failed a job is left for the other one, where that has room.
        slots.gpu_failed(&h200, &mut gpus[0]);
        assert_eq!(gpus[0].gpu, Some(0), "the other one is full");
        slots.release(gpus[3]);
        slots.gpu_failed(&h200, &mut gpus[0]);
        assert_eq!(gpus[0].gpu, Some(2));
        assert_eq!(take(&mut slots, &h200).unwrap().gpu, Some(0));
    }

    #[test]
    fn a_gpu_has_as_many_jobs_as_its_memory_allows() {
        let most = |configured: Option<usize>, memory_bytes: u64| {
            let mut slots = Slots::new(100, 1000 * GIB, configured);
            let job = need("cuda", "H200");
            slots.set_gpus([(job.gpu_kind.clone().unwrap(), memory_bytes)]);
            (0..).take_while(|_| take(&mut slots, &job).is_ok()).count()
        };
        assert_eq!([8, 24, 80, 141, 288].map(|gib| most(None, gib * GIB)), [2, 2, 5, 8, 8]);
        assert_eq!(most(Some(1), 80 * GIB), 1);
    }

    #[test]
    fn a_gpu_that_fails_job_after_job_gets_no_more_while_another_is_well() {
        let mut slots = Slots::new(8, 100 * GIB, Some(1));
        let h200 = need("cuda", "H200");
        slots.set_gpus([h200.clone(), h200.clone()].map(|need| (need.gpu_kind.unwrap(), 0)));
        let fail = |slots: &mut Slots, on: usize| {
            let mut grant = take(slots, &h200).unwrap();
            assert_eq!(grant.gpu, Some(on));
            let quarantined = slots.gpu_failed(&h200, &mut grant);
            slots.release(grant);
            quarantined
        };
        // One that works between two faults is well.
        assert_eq!((fail(&mut slots, 0), fail(&mut slots, 0)), (None, None));
        let grant = take(&mut slots, &h200).unwrap();
        assert_eq!(slots.gpu_worked(grant), None);
        slots.release(grant);
        assert_eq!([0; 3].map(|on| fail(&mut slots, on)), [None, None, Some(0)]);

        let other = take(&mut slots, &h200).unwrap();
        assert_eq!(other.gpu, Some(1));
        assert_eq!(take(&mut slots, &h200), Err(Fit::NoGpu), "waits for the one that is well");
        slots.release(other);
        // Where none is well, any is better than none, and the first success ends it.
        assert_eq!([1; 3].map(|on| fail(&mut slots, on)), [None, None, Some(1)]);
        let grant = take(&mut slots, &h200).unwrap();
        assert_eq!(slots.gpu_worked(grant), grant.gpu);
    }

    #[test]
    fn a_gpu_that_nobody_listed_bounds_nothing() {
        let mut slots = Slots::new(2, 100 * GIB, Some(1));
        assert_eq!(take(&mut slots, &need("cuda", "H200")).unwrap().gpu, None);
        take(&mut slots, &need("cuda", "H200")).unwrap();
    }
}
