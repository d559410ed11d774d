//! A job as a span of OpenTelemetry's, within the trace of whoever asked for it first; its steps are its children.
//!
//! Only OpenTelemetry's interface is used, which does nothing until the program installs an SDK. A caller's request is the current context where it submits. Callers that join
//! a job are in traces of their own: their request and the job link to each other.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{Span as _, SpanContext, Status, TraceContextExt as _, Tracer as _},
};
use piecewised_graph::Handle;

use crate::{JobFailure, JobSpec, steps::Step};

/// Names who made the spans.
const TRACER: &str = "piecewised";

/// From a job's being queued to its end; where nobody ends it, to its being forgotten.
#[derive(Debug)]
pub(crate) struct JobSpan(Context);

impl JobSpan {
    /// Begins one, as a child of the current context's span.
    pub(crate) fn new(id: &str, spec: &JobSpec, queued_at: SystemTime) -> Self {
        let parent = Context::current();
        let tracer = global::tracer(TRACER);
        let span = tracer.span_builder("job").with_start_time(queued_at).start_with_context(&tracer, &parent);
        let context = Context::new().with_span(span);
        let span = context.span();
        // Texts are made only for who reads them.
        if span.is_recording() {
            span.set_attributes([
                KeyValue::new("piecewised.job", id.to_owned()),
                KeyValue::new("piecewised.key", spec.key.to_string()),
                KeyValue::new("piecewised.label", spec.label.to_string()),
                KeyValue::new("piecewised.device", format!("{} {}", spec.device.r#type, spec.device.name)),
            ]);
            if let Some(range) = spec.range {
                span.set_attribute(KeyValue::new("piecewised.range", range.to_string()));
            }
        }
        Self(context)
    }

    /// Notes that the current context's request waits for the job too.
    pub(crate) fn joined(&self) {
        let caller = Context::current();
        let (job, request) = (self.0.span(), caller.span());
        link(&request, job.span_context(), "joined");
        link(&job, request.span_context(), "joined by");
    }

    /// For the log; `None`: nobody records it.
    pub(crate) fn trace_id(&self) -> Option<String> {
        let span = self.0.span();
        span.is_recording().then(|| span.span_context().trace_id().to_string())
    }

    /// Ends it, with a child for each step.
    pub(crate) fn end(
        &self,
        queued_at: SystemTime,
        took: Duration,
        steps: &[Step],
        outcome: &Result<Handle, JobFailure>,
    ) {
        let span = self.0.span();
        if !span.is_recording() {
            return;
        }
        let tracer = global::tracer(TRACER);
        let ends = steps.iter().skip(1).map(|step| step.at).chain([took]);
        for (step, end) in steps.iter().zip(ends) {
            let mut child = tracer
                .span_builder(step.phase.clone())
                .with_start_time(queued_at + step.at)
                .with_attributes([KeyValue::new("piecewised.attempt", i64::from(step.attempt))])
                .start_with_context(&tracer, &self.0);
            child.end_with_timestamp(queued_at + end);
        }
        match outcome {
            Ok(handle) => {
                span.set_attribute(KeyValue::new("piecewised.artifact_bytes", signed(handle.size_bytes)));
                span.set_status(Status::Ok);
            }
            Err(failure) => {
                span.set_attribute(KeyValue::new("error.type", failure.reason.clone()));
                span.set_status(Status::error(failure.message.lines().next().unwrap_or_default().to_owned()));
            }
        }
        span.end_with_timestamp(queued_at + took);
    }
}

fn link(from: &opentelemetry::trace::SpanRef<'_>, to: &SpanContext, how: &'static str) {
    if to.is_valid() {
        from.add_link(to.clone(), vec![KeyValue::new("piecewised.link", how)]);
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
