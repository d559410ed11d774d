//! A `Compile` as a span of OpenTelemetry's, which continues the caller's trace (W3C Trace Context in the call's metadata).
//!
//! Only OpenTelemetry's interface is used, which does nothing until the program installs an SDK and a propagator.

use opentelemetry::{
    Context, KeyValue, global,
    propagation::Extractor,
    trace::{SpanKind, Status as SpanStatus, TraceContextExt as _, Tracer as _},
};
use piecewised_proto::v1;
use tonic::{Status, metadata::MetadataMap};

const TRACER: &str = "piecewised";

/// One request, up to its stream's end. Ends when it is dropped, as where the caller leaves.
#[derive(Debug)]
pub(crate) struct RequestSpan(Context);

impl RequestSpan {
    /// Begins one for a call with this metadata.
    pub(crate) fn new(metadata: &MetadataMap) -> Self {
        let parent = global::get_text_map_propagator(|propagator| propagator.extract(&Carrier(metadata)));
        let tracer = global::tracer(TRACER);
        let span = tracer
            .span_builder("piecewised.v1.CompileService/Compile")
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", "piecewised.v1.CompileService"),
                KeyValue::new("rpc.method", "Compile"),
            ])
            .start_with_context(&tracer, &parent);
        Self(Context::new().with_span(span))
    }

    /// One that nobody records.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(Context::new())
    }

    /// In which what is done for the request belongs.
    pub(crate) fn context(&self) -> Context {
        self.0.clone()
    }

    /// What is asked for.
    pub(crate) fn asked(&self, label: &str, n_entries: usize) {
        let span = self.0.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new("piecewised.label", label.to_owned()));
            span.set_attribute(KeyValue::new("piecewised.entries", i64::try_from(n_entries).unwrap_or(i64::MAX)));
        }
    }

    /// It came to its end.
    pub(crate) fn completed(&self, summary: &v1::Completed) {
        let span = self.0.span();
        if !span.is_recording() {
            return;
        }
        let counts = [
            ("piecewised.ready", summary.n_ready),
            ("piecewised.from_store", summary.n_from_store),
            ("piecewised.compiled", summary.n_compiled),
            ("piecewised.joined", summary.n_joined),
            ("piecewised.failed", summary.n_failed),
        ];
        span.set_attributes(counts.map(|(name, n)| KeyValue::new(name, i64::from(n))));
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", 0));
    }

    /// It was refused, or ended before it was complete.
    pub(crate) fn failed(&self, status: &Status) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(status.code()))));
        span.set_status(SpanStatus::error(status.message().to_owned()));
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// A call's metadata, as propagators read it.
struct Carrier<'a>(&'a MetadataMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        // Propagators ask for what they know by name.
        Vec::new()
    }
}
