//! What an executor prints: into the log, within the span of its job, and the last of it kept for crash messages.
//!
//! The pipe is drained without pause, so a chatty compiler never blocks on it. Everything is bounded: a line's length, the lines
//! per second that reach the log (the rest is counted, and the count logged), the lines kept.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::watch,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Span;

const MAX_LINE_BYTES: usize = 2000;
const MAX_TAIL_LINES: usize = 40;
const MAX_TAIL_BYTES: usize = 16 << 10;
const LINES_AT_ONCE: f64 = 500.0;
const LINES_PER_SECOND: f64 = 100.0;

/// The running record of one executor's stderr.
#[derive(Debug)]
pub(crate) struct Journal {
    shared: Arc<Mutex<Shared>>,
    ended: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    tail: VecDeque<String>,
    n_tail_bytes: usize,
    span: Option<Span>,
}

impl Journal {
    /// Starts to drain `stderr`; until the first job its lines belong to `span`.
    pub(crate) fn keep(mut stderr: impl AsyncRead + Unpin + Send + 'static, span: Span) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (tell, ended) = watch::channel(false);
        let theirs = shared.clone();
        let task = tokio::spawn(async move {
            let mut lines = Lines::default();
            let mut rate = Rate::new(Instant::now());
            let mut buffer = vec![0; 16 << 10];
            loop {
                let n = stderr.read(&mut buffer).await.unwrap_or(0);
                let mut take = |line: String| record(&theirs, &span, &mut rate, line);
                if n == 0 {
                    lines.finish(&mut take);
                    break;
                }
                lines.push(&buffer[..n], &mut take);
            }
            rate.report(&span);
            tell.send_replace(true);
        });
        Self { shared, ended, _task: AbortOnDropHandle::new(task) }
    }

    /// From now on lines belong to `span`: also those that come after its job's answer, which overtakes them in another pipe.
    pub(crate) fn set_span(&self, span: Span) {
        lock(&self.shared).span = Some(span);
    }

    /// The last lines, after those that are still in the pipe of a process that has ended.
    pub(crate) async fn tail(&self) -> String {
        let mut ended = self.ended.clone();
        // A descendant that got away may hold the pipe open: what is there by then has to do.
        let _ = tokio::time::timeout(Duration::from_millis(500), ended.wait_for(|ended| *ended)).await;
        let shared = lock(&self.shared);
        shared.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(shared: &Mutex<Shared>, own: &Span, rate: &mut Rate, line: String) {
    let span = {
        let mut shared = lock(shared);
        shared.n_tail_bytes += line.len();
        shared.tail.push_back(line.clone());
        while shared.tail.len() > MAX_TAIL_LINES || shared.n_tail_bytes > MAX_TAIL_BYTES {
            let n_bytes = shared.tail.pop_front().map_or(0, |line| line.len());
            shared.n_tail_bytes -= n_bytes;
        }
        shared.span.clone().unwrap_or_else(|| own.clone())
    };
    if rate.admits(Instant::now()) {
        rate.report(&span);
        tracing::info!(target: "executor", parent: &span, "{line}");
    }
}

/// A token bucket: so many lines at once, so many more per second.
struct Rate {
    tokens: f64,
    filled: Instant,
    n_left_out: u64,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { tokens: LINES_AT_ONCE, filled: now, n_left_out: 0 }
    }

    fn admits(&mut self, now: Instant) -> bool {
        let gained = now.duration_since(self.filled).as_secs_f64() * LINES_PER_SECOND;
        self.tokens = (self.tokens + gained).min(LINES_AT_ONCE);
        self.filled = now;
        if self.tokens < 1.0 {
            self.n_left_out += 1;
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    fn report(&mut self, span: &Span) {
        if self.n_left_out > 0 {
            tracing::warn!(target: "executor", parent: span, n_lines = self.n_left_out, "lines were left out of the log: too many");
            self.n_left_out = 0;
        }
    }
}

/// Cuts bytes into lines of bounded length that are safe in a log.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    n_cut: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], take: &mut impl FnMut(String)) {
        // A carriage return ends a line too: progress bars are one line otherwise.
        for part in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, is_whole) = match part {
                [text @ .., b'\n' | b'\r'] => (text, true),
                text => (text, false),
            };
            let room = MAX_LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.n_cut += text.len().saturating_sub(room);
            if is_whole {
                self.finish(take);
            }
        }
    }

    fn finish(&mut self, take: &mut impl FnMut(String)) {
        let line = std::mem::take(&mut self.line);
        let n_cut = std::mem::take(&mut self.n_cut);
        let text = String::from_utf8_lossy(&line);
        // Escape sequences of a terminal have no business in a log.
        let mut text: String =
            text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        if n_cut > 0 {
            text.push_str(&format!(" ... ({n_cut} bytes more)"));
        }
        if !text.is_empty() {
            take(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.push(chunk, &mut |line| found.push(line));
        }
        lines.finish(&mut |line| found.push(line));
        found
    }

    #[test]
    fn lines_are_cut_where_they_end_however_they_arrive() {
        assert_eq!(lines(&[b"a\nb", b"c\n\n", b"10%\r20%\r\nlast"]), ["a", "bc", "10%", "20%", "last"]);
    }

    #[test]
    fn a_long_line_is_cut_short_in_bounded_memory() {
        let long = vec![b'x'; 5000];
        assert_eq!(
            lines(&[&long, &long, b"\nnext"]),
            [format!("{} ... (8000 bytes more)", "x".repeat(2000)), "next".into()]
        );
    }

    #[test]
    fn bytes_that_are_no_text_and_escape_sequences_are_replaced() {
        assert_eq!(lines(&[b"\xff\x1b[31mred\tx"]), ["\u{fffd}\u{fffd}[31mred\tx"]);
    }

    #[test]
    fn the_rate_is_bounded_and_what_is_left_out_is_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let n_admitted = (0..2000).filter(|_| rate.admits(start)).count();
        assert_eq!((n_admitted, rate.n_left_out), (500, 1500));
        assert!(rate.admits(start + Duration::from_millis(20)));
    }

    #[tokio::test]
    async fn the_tail_is_the_last_lines_within_bounds() {
        let text: String = (0..100_000).map(|i| format!("line {i}\n")).collect();
        let journal = Journal::keep(std::io::Cursor::new(text.into_bytes()), Span::none());
        let tail = journal.tail().await;
        assert_eq!(tail.lines().count(), MAX_TAIL_LINES);
        assert!(tail.ends_with("line 99998\nline 99999"), "{tail}");
    }
}
