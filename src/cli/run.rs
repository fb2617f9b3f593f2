//! `miaf-agent run`: the agent itself, as systemd starts it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::EXIT_CONFIG;
use crate::agent;
use crate::hint::{Hint, Reason};
use crate::platform::log::{self, LogLevel};
use crate::platform::{files, process, systemd};

pub(super) fn run(config: &Path) -> ExitCode {
    files::set_umask();
    process::keep_memory_private();
    let source = agent::place(Some(config));
    let loaded = source.load().map_err(|e| (e, source.salvage()));
    let loaded = match loaded {
        Ok(config) => Ok(config),
        Err((e, Ok(salvaged))) => Err((e, salvaged.config)),
        Err((e, Err(_))) => {
            log::start(LogLevel::default());
            log_error(&e);
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let (Ok(usable) | Err((_, usable))) = &loaded;
    log::start(usable.log_level);
    let rejected = loaded.as_ref().err().map(|(e, _)| Reason::of(e));
    process::allow_open_files();
    let passed = systemd::passed_sockets();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("event queue could not be created: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(agent::run(&source, loaded, passed));
    // A TPM or a disk that hangs must not prevent the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if let Some(rejected) = rejected {
                log_error(&rejected); // it may have been about the path of the socket
            }
            log_error(&e);
            ExitCode::FAILURE
        }
    }
}

fn log_error(e: &impl Hint) {
    tracing::error!(hint = e.hint().map(tracing::field::display), "{e}");
}
