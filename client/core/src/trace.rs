//! The trace that a call belongs to, as W3C Trace Context has it: sent along, so that the daemon's spans are part of the caller's trace.

use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _},
};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

/// The headers of a trace; without any where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl TraceContext {
    /// The one that is active: that of OpenTelemetry's current context, which libraries that make spans (tracing-opentelemetry among them) keep.
    pub fn current() -> Self {
        let context = Context::current();
        let span = context.span();
        let it: &SpanContext = span.span_context();
        if !it.is_valid() {
            return Self::default();
        }
        let traceparent = format!("00-{}-{}-{:02x}", it.trace_id(), it.span_id(), it.trace_flags().to_u8());
        let tracestate = Some(it.trace_state().header()).filter(|state| !state.is_empty());
        Self { traceparent: Some(traceparent), tracestate }
    }

    /// One by its headers, as another language's OpenTelemetry wrote them.
    pub fn from_headers(traceparent: Option<String>, tracestate: Option<String>) -> Self {
        Self { traceparent, tracestate }
    }

    /// What cannot be a header's value is left out: a trace is no reason for a call to fail.
    pub(crate) fn write(&self, metadata: &mut MetadataMap) {
        for (name, value) in [("traceparent", &self.traceparent), ("tracestate", &self.tracestate)] {
            if let Some(value) = value.as_ref().and_then(|value| AsciiMetadataValue::try_from(value.as_str()).ok()) {
                metadata.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};

    use super::*;

    #[test]
    fn the_active_span_is_sent_along_and_nothing_where_there_is_none() {
        assert_eq!(TraceContext::current(), TraceContext::default());
        let trace_state = TraceState::from_key_value([("vendor", "x")]).expect("a state");
        let (trace, span) =
            (TraceId::from(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c), SpanId::from(0xb7ad_6b71_6920_3331));
        let active = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, trace_state);
        let _guard = Context::new().with_remote_span_context(active).attach();
        let mut metadata = MetadataMap::new();
        TraceContext::current().write(&mut metadata);
        let text = |name| metadata.get(name).map(|value| value.to_str().expect("text"));
        assert_eq!(text("traceparent"), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert_eq!(text("tracestate"), Some("vendor=x"));
    }

    #[test]
    fn what_is_no_header_is_left_out() {
        let mut metadata = MetadataMap::new();
        TraceContext::from_headers(Some("a\nb".into()), None).write(&mut metadata);
        assert!(metadata.is_empty());
    }
}
