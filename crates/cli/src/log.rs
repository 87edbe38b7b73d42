//! Where the agent's log goes, and in which form.
//!
//! ```text
//! run by systemd, standard error is the journal's   fields for journald: STERNA_JOB, STERNA_VM, ...
//!   its socket cannot be used                       lines with <N> priorities, which journald understands
//! else                                              lines with the time, coloured on a terminal
//! ```
//!
//! What concerns a job is logged in its span, so that every line of it has `job` and `vm`.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// What our fields are called in the journal: `STERNA_JOB` for `job`.
const FIELD_PREFIX: &str = "STERNA";
/// `journalctl -t sterna`.
const IDENTIFIER: &str = "sterna";

/// Where the log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// To journald, by fields or at least by priorities.
    Journal,
    /// To whoever reads standard error.
    Lines,
}

/// Begins to log. `STERNA_LOG` chooses what (`debug`, `sterna_agent=trace`).
pub(crate) fn begin() {
    let filter = EnvFilter::try_from_env("STERNA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let stderr = std::fs::metadata("/proc/self/fd/2").ok();
    let stderr = stderr.map(|stderr| (stderr.dev(), stderr.ino()));
    match form(std::env::var("JOURNAL_STREAM").ok().as_deref(), stderr) {
        Form::Journal => match tracing_journald::layer() {
            Ok(journal) => {
                let journal = journal.with_field_prefix(Some(FIELD_PREFIX.to_owned()));
                registry.with(journal.with_syslog_identifier(IDENTIFIER.to_owned())).init();
            }
            Err(_) => {
                let lines = tracing_subscriber::fmt::layer().with_ansi(false);
                let lines = lines.event_format(Prioritized::default()).with_writer(io::stderr);
                registry.with(lines).init();
            }
        },
        Form::Lines => {
            let is_coloured = io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let lines = tracing_subscriber::fmt::layer().with_ansi(is_coloured);
            registry.with(lines.with_writer(io::stderr)).init();
        }
    }
}

/// systemd names the stream that it has connected to the journal, by device and inode. Only if standard error is still
/// that one does the journal read it.
fn form(journal_stream: Option<&str>, stderr: Option<(u64, u64)>) -> Form {
    let named = journal_stream.and_then(|text| text.split_once(':'));
    let named = named.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    match (named, stderr) {
        (Some(named), Some(stderr)) if named == stderr => Form::Journal,
        _ => Form::Lines,
    }
}

/// Lines without the time, which journald knows, after the priority of syslog that stands for their level.
#[derive(Default)]
struct Prioritized(Format<Full>);

impl<S, N> FormatEvent<S, N> for Prioritized
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.clone().without_time().with_level(false).format_event(context, writer, event)
    }
}

/// As tracing-journald has them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 5,
        Level::DEBUG => 6,
        Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_the_journals_own_stream_is_the_journal() {
        let stderr = Some((9, 4711));
        assert_eq!(form(Some("9:4711"), stderr), Form::Journal);
        for (stream, stderr) in [
            (None, stderr),
            (Some("9:4712"), stderr),
            (Some("8:4711"), stderr),
            (Some("nonsense"), stderr),
            (Some("9:4711"), None),
        ] {
            assert_eq!(form(stream, stderr), Form::Lines, "{stream:?}");
        }
    }

    #[test]
    fn lines_for_the_journal_begin_with_their_priority_and_carry_the_job() {
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = tracing_subscriber::fmt::layer().with_ansi(false);
        let lines = lines.event_format(Prioritized::default()).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::error_span!("move", job = "job-1", vm = "web");
            span.in_scope(|| tracing::warn!(found = 7, "it is odd"));
            tracing::error!("no more");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("<4>move{job=\"job-1\" vm=\"web\"}: "), "{text}");
        assert!(lines[0].ends_with("it is odd found=7"), "{text}");
        assert!(lines[1].starts_with("<3>"), "{text}");
    }
}
