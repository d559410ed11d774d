//! `/metrics`: what the daemon does, in OpenMetrics' text form, which Prometheus reads.
//!
//! Everything is read when it is asked for, from where it is counted. Labels take values from small fixed sets, or bounded ones
//! ([`crate::tally`]): never keys, peers, labels or names of programs. docs/metrics.md lists every metric.

use std::fmt;

use piecewised_scheduler::{Counts, DURATION_BOUNDS_S, ToolchainStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::Site;

/// What [`text`] gives.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics as they are now.
pub(crate) fn text(site: &Site) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("piecewised");
    registry.register_collector(Box::new(site.clone()));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Site {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.daemon(&mut page)?;
        self.requests(&mut page)?;
        self.connections(&mut page)?;
        compiles(&mut page, &self.scheduler.counters().counts())?;
        self.store(&mut page)
    }
}

impl Site {
    fn daemon(&self, page: &mut Page<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauges("build_info", "Which version runs; always 1", [(version, 1)])?;
        page.gauge("start_time_seconds", "When the daemon started, in seconds since 1970", self.started_unix_s)?;
        let is_ready = u64::from(self.not_ready().is_none());
        page.gauge("ready", "1 where the daemon takes compiles: its toolchain works, and it is not ending", is_ready)?;
        let (n_queued, n_running) = self.scheduler.n_jobs();
        let state = |state| [("state", state)];
        let jobs = [(state("queued"), n_queued as u64), (state("running"), n_running as u64)];
        page.gauges("jobs", "Compiles that wait, and that run", jobs)?;
        page.gauge("executors_idle", "Executors that wait for a job", self.scheduler.n_idle_executors() as u64)?;
        let n_most = self.scheduler.config().n_executors as u64;
        page.gauge("executors_max", "Compiles that may run side by side", n_most)?;
        let n_gpus = match self.scheduler.toolchain() {
            ToolchainStatus::Ready(info) => info.gpus.len(),
            ToolchainStatus::Probing | ToolchainStatus::Unusable { .. } => 0,
        };
        page.gauge("gpus", "GPUs that are compiled for", n_gpus as u64)
    }

    fn requests(&self, page: &mut Page<'_>) -> fmt::Result {
        let (all, _) = self.scheduler.activities().report();
        let source = |source| [("source", source)];
        let keys = [
            (source("compiled"), all.n_compiled),
            (source("joined"), all.n_joined),
            (source("store"), all.n_from_store),
            (source("failed"), all.n_failed),
        ];
        page.counters("keys", "Compiles that requests needed, by where they came from: store is a hit", keys)?;
        let help = "Seconds of compiles that requests were spared, since the result was in the store or under way";
        page.counter("compile_seconds_saved", help, all.saved_s)?;
        let (n_fetches, fetched_bytes) = self.tally.fetched();
        page.counter("fetches", "Artifacts that clients began to fetch", n_fetches)?;
        page.counter("fetched_bytes", "Bytes of artifacts that were sent to clients", fetched_bytes)?;
        let fallbacks = self.tally.fallbacks();
        let fallbacks = fallbacks.iter().map(|(reason, n)| ([("reason", reason.as_str())], *n));
        page.counters(
            "client_fallbacks",
            "Pieces that clients compiled by themselves and told of, by reason",
            fallbacks,
        )?;
        let help = "Requests that were given up since their message came too slowly";
        page.counter("slow_messages", help, self.tally.slow_messages())
    }

    fn connections(&self, page: &mut Page<'_>) -> fmt::Result {
        let open = self.connections.iter().map(|one| ([("listener", one.listener())], one.n_open() as u64));
        page.gauges("connections", "Connections that are open, by listener", open)?;
        let refused = self.connections.iter().flat_map(|one| {
            let labels = |reason| [("listener", one.listener()), ("reason", reason)];
            one.refused().map(|(reason, n)| (labels(reason), n))
        });
        page.counters("connections_refused", "Connections that were closed before they were of use", refused)
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        let stats = self.store.stats();
        page.gauge("store_artifacts", "Artifacts in the store", stats.n_artifacts)?;
        page.gauge("store_artifact_bytes", "Sum of their sizes", stats.artifact_bytes)?;
        page.gauge(
            "store_disk_bytes",
            "What they are taken to need on the disk; store_max_bytes bounds it",
            stats.disk_bytes,
        )?;
        page.gauge(
            "store_pinned_bytes",
            "The part of that which manifests name, or whose keys are pinned, and which is never evicted",
            stats.pinned_bytes,
        )?;
        page.gauge("store_manifests", "Manifests in the store", stats.n_manifests)?;
        page.gauge("store_failures", "Failures that are remembered", stats.n_failures)?;
        page.gauge("store_held_bytes", "Artifacts held in memory since they could not be written", stats.held_bytes)?;
        page.gauge("store_full", "1 where the last write found no room", u64::from(stats.is_full))?;
        page.gauge("store_failing", "1 where the last write failed otherwise", u64::from(stats.is_failing))?;
        let result = |result| [("result", result)];
        let lookups = [(result("hit"), stats.n_hits), (result("miss"), stats.n_misses)];
        page.counters("store_lookups", "Lookups of keys, over all lives of the store", lookups)?;
        page.counter("store_puts", "Artifacts made durable, over all lives of the store", stats.n_puts)?;
        page.counter(
            "store_damaged",
            "Records and artifacts dropped since they did not verify, over all lives of the store",
            stats.n_damaged_dropped,
        )?;
        page.counter("store_evictions", "Artifacts evicted, over all lives of the store", stats.n_evicted)?;
        page.counter("store_evicted_bytes", "Sum of their sizes", stats.evicted_bytes)
    }
}

fn compiles(page: &mut Page<'_>, counts: &Counts) -> fmt::Result {
    let outcome = |outcome| [("outcome", outcome)];
    let failed = counts.n_failed.iter().map(|(reason, n)| (outcome(reason.as_str()), *n));
    let all = std::iter::once((outcome("OK"), counts.n_compiled)).chain(failed);
    page.counters("compiles", "Jobs that ended, by OK or the reason of their failure", all)?;
    page.counter("compile_retries", "Tries beyond a job's first, after its executor was lost", counts.n_retries)?;
    page.counter("compile_cpu_seconds", "CPU seconds of compiles that ended well", counts.cpu_s)?;
    let phases = counts.phase_s.iter().map(|(phase, seconds)| ([("phase", *phase)], *seconds));
    page.counters("phase_seconds", "Seconds of compiles that ended well, by phase", phases)?;
    let verified = counts.verified.iter().map(|(verified, n)| ([("result", *verified)], *n));
    page.counters(
        "verifications",
        "Compiles that ended well, by how the artifact was checked; failed ones are compiles with VERIFICATION_FAILED",
        verified,
    )?;
    page.histogram("compile_duration_seconds", "Seconds in executors of compiles that ended well", counts)
}

/// One page of metrics, written in order.
struct Page<'a>(DescriptorEncoder<'a>);

/// A set of labels.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, value: impl CounterValue) -> fmt::Result {
        value.counter().encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn counters<'b, V: CounterValue, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'b, N>, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.into_iter().try_for_each(|(label, value)| value.counter().encode(family.encode_family(&label)?))
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn gauges<'b, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'b, N>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.into_iter().try_for_each(|(label, value)| ConstGauge::new(value).encode(family.encode_family(&label)?))
    }

    fn histogram(&mut self, name: &str, help: &str, counts: &Counts) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let bounds = DURATION_BOUNDS_S.into_iter().chain([f64::INFINITY]);
        let classes: Vec<(f64, u64)> = bounds.zip(counts.durations).collect();
        metric.encode_histogram::<NoLabelSet>(counts.compile_s, counts.n_compiled, &classes, None)
    }
}

/// What a counter counts in: things, or seconds.
trait CounterValue {
    fn counter(self) -> impl EncodeMetric;
}

impl CounterValue for u64 {
    fn counter(self) -> impl EncodeMetric {
        ConstCounter::new(self)
    }
}

impl CounterValue for f64 {
    fn counter(self) -> impl EncodeMetric {
        ConstCounter::new(self)
    }
}
