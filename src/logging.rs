//! The log: through tracing-subscriber to stderr, for people or as JSON.
//!
//! Colour is for terminals only, and not where NO_COLOR is set. Under systemd, whose journal has its own times (it says so with
//! JOURNAL_STREAM), `auto` leaves them out.
//!
//! An event is a line: what would end one, or move a terminal's cursor, is escaped, since messages hold what callers and compilers wrote.

use std::fmt::{self, Write as _};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    field::MakeExt as _,
    fmt::format::{FormatFields, Writer, debug_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

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
        LogFormat::Auto | LogFormat::Human if has_times => layer.fmt_fields(fields()).boxed(),
        LogFormat::Auto | LogFormat::Human => layer.fmt_fields(fields()).without_time().boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(|error| ConfigError::new(error.to_string()))
}

/// An event's fields, for people.
fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer, field, value| match field.name() {
        "message" => write!(Clean(writer), "{value:?}"),
        name => write!(Clean(writer), "{name}={value:?}"),
    })
    .delimited(" ")
}

/// Writes no control characters, nor Unicode's own ends of lines.
struct Clean<'a, 'writer>(&'a mut Writer<'writer>);

impl fmt::Write for Clean<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_unclean) {
            let mut chars = part.chars();
            match chars.next_back() {
                Some(last) if is_unclean(last) => write!(self.0, "{}{}", chars.as_str(), last.escape_default())?,
                _ => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

fn is_unclean(c: char) -> bool {
    (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_line_or_moves_a_cursor_is_escaped() {
        let mut text = String::new();
        write!(Clean(&mut Writer::new(&mut text)), "a\nb\r\x1b[2J\u{85}c\u{2028}d\te\u{e9}").unwrap();
        assert_eq!(text, "a\\nb\\r\\u{1b}[2J\\u{85}c\\u{2028}d\te\u{e9}");
    }
}
