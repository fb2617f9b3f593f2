//! `miaf-agent run`

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::agent;
use crate::system::log::{self, LogLevel};
use crate::system::{files, process, service};

/// `EX_CONFIG` of sysexits.h: starting again does not help before the configuration is corrected.
const EXIT_CONFIG: u8 = 78;

pub(super) fn run(config: &Path) -> ExitCode {
    files::set_umask();
    process::keep_memory_private();
    let place = agent::place(Some(config));
    let config = match place.load() {
        Ok(config) => config,
        Err(e) => {
            log::start(LogLevel::default());
            tracing::error!("{e}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    log::start(config.log_level);
    process::allow_open_files();
    let passed = service::passed_sockets();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            tracing::error!("the operating system refuses an event queue: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(agent::run(&place, config, passed));
    // A chip or a disk that hangs must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}
