//! Logging: to journald with its fields when run under it, else to stderr as text.

use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

use serde::Deserialize;

/// The target of the audit log: which user signed or sent an admin command. Its events are logged
/// whatever `log.level` says.
pub(crate) const AUDIT: &str = "miaf_agent::audit";

/// `log.level`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Starts logging. The agent's own events are logged from `level` on, those of its libraries from
/// `warn` on.
pub(crate) fn start(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("miaf_agent", level)
        // It warns of what peers send, as often as they send it.
        .with_target("h2", LevelFilter::OFF)
        .with_target(AUDIT, level.max(LevelFilter::INFO));
    let journal = stderr_is_the_journal().then(tracing_journald::layer).and_then(Result::ok);
    let terminal = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .with_filter(filter.clone())
    });
    let journal = journal.map(|layer| layer.with_field_prefix(Some("MIAF".into())).with_filter(filter));
    // Fails only where a subscriber is set already, as in a test: then that one is used.
    let _ = Registry::default().with(journal).with(terminal).try_init();
}

/// systemd names the stream it gave in `JOURNAL_STREAM` (systemd.exec(5)): a redirected stderr is
/// not it.
fn stderr_is_the_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stream| named == format!("{}:{}", stream.dev(), stream.ino()))
}
