//! Traces: OpenTelemetry's SDK, which sends spans to a collector by OTLP over gRPC. Installed only where an endpoint is configured; what makes spans costs nothing until then.
//!
//! The variables of OpenTelemetry's specification count: OTEL_EXPORTER_OTLP_ENDPOINT and _PROTOCOL (and those with _TRACES_) where `otlp_endpoint` is not set, OTEL_SDK_DISABLED and
//! OTEL_TRACES_EXPORTER=none, and, read by the SDK itself, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT and OTEL_BSP_*.

use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};

use crate::config::Config;

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
        let Some(endpoint) = endpoint(config) else { return Ok(Self(None)) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&endpoint).build();
        let exporter = exporter.with_context(|| format!("cannot send traces to {endpoint}"))?;
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

    /// Sends what is left, for a moment.
    pub(crate) async fn shutdown(self) {
        let Some(provider) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_EXPORT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!("not all traces were sent: {error}");
        }
    }
}

/// Where spans are sent to; `None`: nowhere. Variables are often set for all programs of a machine: those that mean something that is not done here are no reason not to
/// start.
fn endpoint(config: &Config) -> Option<String> {
    let surroundings = &config.surroundings;
    let text = |name: &str| surroundings.variable(name).and_then(|value| value.to_str()).unwrap_or_default();
    if text("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true") || text("OTEL_TRACES_EXPORTER") == "none" {
        return None;
    }
    if config.otlp_endpoint.is_some() {
        return config.otlp_endpoint.clone();
    }
    let of_traces = |name: &str| {
        let names = [format!("OTEL_EXPORTER_OTLP_TRACES_{name}"), format!("OTEL_EXPORTER_OTLP_{name}")];
        names.iter().map(|name| text(name)).find(|value| !value.is_empty()).unwrap_or_default()
    };
    let (endpoint, protocol) = (of_traces("ENDPOINT"), of_traces("PROTOCOL"));
    if endpoint.is_empty() {
        return None;
    }
    if !endpoint.starts_with("http://") || !(protocol.is_empty() || protocol == "grpc") {
        tracing::warn!(
            endpoint,
            protocol,
            "OpenTelemetry's variables name a collector that traces are not sent to: OTLP over gRPC without TLS is all that there is; otlp_endpoint names another"
        );
        return None;
    }
    Some(endpoint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surroundings::Surroundings;

    fn found(flag: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let surroundings = Surroundings { variables, ..Surroundings::default() };
        let config = Config { otlp_endpoint: flag.map(Into::into), ..Config::defaults(&surroundings) };
        endpoint(&Config { surroundings, ..config })
    }

    #[test]
    fn the_flag_goes_before_the_variables_and_nothing_is_sent_where_none_is_set() {
        let both =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:1"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1")];
        assert_eq!(found(None, &[]), None);
        assert_eq!(found(None, &both[..1]).as_deref(), Some("http://a:1"));
        assert_eq!(found(None, &both).as_deref(), Some("http://b:1"));
        assert_eq!(found(Some("http://c:1"), &both).as_deref(), Some("http://c:1"));
        assert_eq!(found(Some("http://c:1"), &[("OTEL_SDK_DISABLED", "TRUE")]), None);
        assert_eq!(found(Some("http://c:1"), &[("OTEL_TRACES_EXPORTER", "none")]), None);
    }

    #[test]
    fn variables_that_mean_another_way_of_sending_send_nothing() {
        let with = |endpoint, name, value| found(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), (name, value)]);
        assert_eq!(with("https://a:1", "X", ""), None);
        assert_eq!(with("http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), None);
        assert_eq!(with("http://a:1", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"), None);
        assert_eq!(with("http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").as_deref(), Some("http://a:1"));
    }
}
