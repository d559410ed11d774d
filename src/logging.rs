//! The log: through tracing-subscriber to stderr, for people or as JSON.
//!
//! Colour is for terminals only, and not where NO_COLOR is set. Under systemd, whose journal has its own times (it says so with
//! JOURNAL_STREAM), `auto` leaves them out.

use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{choices::LogFormat, config::Config, layers::ConfigError};

/// Starts to log. Once per process.
///
/// # Errors
/// [`ConfigError`] where the directives of `log` are not understood.
pub(crate) fn start(config: &Config) -> Result<(), ConfigError> {
    let filter = EnvFilter::builder().parse(&config.log).map_err(|error| {
        ConfigError::new(format!(
            "log: {:?} is not understood ({error}); write a level, or info,executor=warn",
            config.log
        ))
    })?;
    let surroundings = &config.surroundings;
    let has_colour = surroundings.stderr_is_terminal && surroundings.variable("NO_COLOR").is_none();
    let has_times = config.log_format != LogFormat::Auto || surroundings.variable("JOURNAL_STREAM").is_none();

    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(has_colour);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
        LogFormat::Json => layer.with_ansi(false).json().flatten_event(true).boxed(),
        LogFormat::Auto | LogFormat::Human if has_times => layer.boxed(),
        LogFormat::Auto | LogFormat::Human => layer.without_time().boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|error| ConfigError::new(error.to_string()))
}
