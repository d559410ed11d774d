//! Traces: OpenTelemetry's SDK, which sends spans to a collector by OTLP over gRPC. Installed only where an endpoint is configured; what makes spans costs nothing until then.
//!
//! The variables of OpenTelemetry's specification count: OTEL_EXPORTER_OTLP_ENDPOINT, _PROTOCOL, _CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY (and those with _TRACES_) where
//! the configuration's keys are not set, OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER=none, and, read by the SDK itself, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT and OTEL_BSP_*.

mod collector;

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};

use crate::config::Config;

use collector::Collector;

/// How long what was not sent yet is waited for at the end.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// Sends spans until it is shut down.
#[derive(Debug)]
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Installs what sends spans, where that is configured. Within the runtime, which has the connection.
    ///
    /// # Errors
    /// Where the endpoint will not do. That nobody answers there is no error: it may come later.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let Some(collector) = Collector::of(config) else { return Ok(Self(None)) };
        let endpoint = &collector.endpoint;
        let mut exporter =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_metadata(collector.headers()?);
        if let Some(tls) = collector.tls()? {
            exporter = exporter.with_tls_config(tls);
        }
        let exporter = exporter.build().with_context(|| format!("cannot send traces to {endpoint}"))?;
        let surroundings = &config.surroundings;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if surroundings.variable("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("piecewised");
        }
        if let Some(name) = &surroundings.node_name {
            resource = resource.with_attribute(KeyValue::new("host.name", name.clone()));
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        global::set_tracer_provider(provider.clone());
        tracing::info!(endpoint, "sending traces");
        Ok(Self(Some(provider)))
    }

    /// Whether spans are sent at all.
    pub(crate) fn are_sent(&self) -> bool {
        self.0.is_some()
    }

    /// Sends what is left, for a moment.
    pub(crate) async fn shutdown(self) {
        let Some(provider) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_EXPORT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!("not all traces were sent: {error}");
        }
    }
}

/// Checks what can be checked without looking at files.
pub(crate) fn check(config: &Config) -> Result<(), (&'static str, String)> {
    collector::check(config)
}
