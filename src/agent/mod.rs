//! The agent around the lifecycle: start, reload and shutdown. It executes what the lifecycle
//! decides, and decides nothing about an identity itself.

mod admin;
mod est;
mod event_loop;
mod events;
mod executor;
mod identity;
mod listeners;
mod operator;
mod persist;
mod provisioning;
mod removed;
mod reporting;
mod restore;
mod retry_after;
mod snapshot;
mod trust_domain;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::{self, Config, ConfigError, Salvaged};
use crate::hint::{Hint, Reason};
use crate::keys::ProviderKind;
use crate::platform::access::shell_word;
use crate::platform::clock;
use crate::platform::inotify::FileWatch;
use crate::platform::systemd::{self, PassedSocket};
use crate::platform::timer::Alarm;
use crate::problem::{LastError, ProblemCode, Report};
use crate::publish::Snapshot;
use crate::publish::broadcast::Broadcaster;
use crate::server::command_queue::CommandQueue;
use crate::server::context::ServerContext;
use crate::server::listener::BindError;
use crate::state::{Store, StoreError};
use event_loop::EventLoop;
use events::{ExternalEvent, ExternalEvents};
use executor::Executor;
use listeners::{Listeners, Threads};
use provisioning::Provisioned;
use restore::Scope;

/// A configuration in several files counts as complete when nothing has changed for so long.
const CONFIGURATION_QUIET: Duration = Duration::from_secs(1);
/// Interval between attempts to read a state that cannot be read.
const STATE_POLL: Duration = Duration::from_secs(5);

/// An error that ends the agent. Every other one is shown in its status.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The sockets cannot be served.
    #[error("the operating system refuses threads for the agent's sockets: {0}")]
    Threads(std::io::Error),
    /// A socket is not served any more although it was not closed.
    #[error("{0}.sock is not served any more, by an error in the agent, which ends")]
    SocketLost(&'static str),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for: {0}")]
    Signals(std::io::Error),
    /// Time cannot be waited for.
    #[error("the operating system refuses timers: {0}")]
    Timers(std::io::Error),
}

impl Hint for AgentError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::Socket(why) => return why.hint(),
            Self::Threads(_) => "Check TasksMax= and MemoryMax= in the agent's unit",
            Self::SocketLost(_) => "Report this with the log; systemd starts the agent again",
            Self::Signals(_) | Self::Timers(_) => return None,
        };
        Some(fixed.into())
    }
}

/// Where the configuration is, and what systemd says of the state directory.
#[derive(Clone, Debug)]
pub struct ConfigLocation {
    /// The configuration file.
    pub file: PathBuf,
    /// `STATE_DIRECTORY`, where set.
    pub state_directory: Option<PathBuf>,
}

impl ConfigLocation {
    /// Reads the configuration.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.file, self.state_directory.as_deref())
    }

    /// What can be read of a configuration that cannot be used.
    ///
    /// # Errors
    /// [`ConfigError`], where not even that is left.
    pub fn salvage(&self) -> Result<Salvaged, ConfigError> {
        Config::salvage(&self.file, self.state_directory.as_deref())
    }

    /// Watches the files that the configuration is in, from now on.
    fn watch(&self) -> FileWatch {
        FileWatch::on(self.file.clone(), config::drop_in_directory(&self.file))
    }
}

/// What the configuration says, or why it cannot be used.
pub type Loaded = Result<Config, ConfigError>;

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration anew; an invalid one keeps the
/// current one. Where the first one is invalid, what is stored is served, under what could be
/// salvaged of it. `passed` are the sockets that the service manager listens on for the agent.
///
/// # Errors
/// [`AgentError`].
pub async fn run(
    place: &ConfigLocation,
    loaded: Result<Config, (ConfigError, Config)>,
    passed: Vec<PassedSocket>,
) -> Result<(), AgentError> {
    let (commands, at_loop) = CommandQueue::new();
    let (threads, mut lost) = Threads::start().map_err(AgentError::Threads)?;
    let mut external =
        ExternalEvents::new(place.watch(), at_loop, threads.pulses()).map_err(AgentError::Signals)?;
    let mut timer = Alarm::new().map_err(AgentError::Timers)?;
    let (Ok(usable) | Err((_, usable))) = &loaded;
    let (socket, textfile) = (usable.socket.clone(), usable.textfile.clone());
    let loaded = loaded.map_err(|(e, _)| e);
    let mut warnings = Vec::new();
    log_warnings(&loaded, &mut warnings);
    let mut mode = Mode::begin(place, loaded, None).await;
    // What is stored is served from the first response on: it is read before the socket is there.
    let publication = Broadcaster::new(mode.snapshot(), clock::now().wall);
    let context = ServerContext::new(&publication, commands);
    let mut listeners = Listeners::start(threads, passed, &socket, textfile.as_deref(), &context)?;
    systemd::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "miaf-agent is up");

    let runs = async {
        while let Some((loaded, provisioned)) = mode.run(place, &publication, &mut external, &mut timer).await
        {
            if let Ok(config) = &loaded {
                listeners.follow(&config.socket, config.textfile.as_deref(), &context).await;
            }
            log_warnings(&loaded, &mut warnings);
            mode = Mode::begin(place, loaded, provisioned).await;
        }
    };
    let ended = tokio::select! {
        () = runs => Ok(()),
        Some(role) = lost.recv() => Err(AgentError::SocketLost(role.as_str())),
    };
    systemd::stopping();
    tracing::info!("miaf-agent ends");
    drop(external); // commands that wait for a response are refused
    listeners.stop().await;
    context.signatures.end_all();
    context.keys_sent.end_all();
    ended
}

/// Logs the warnings of a configuration that it did not have before: the same one is begun with again
/// and again, while the state cannot be read for example.
fn log_warnings(loaded: &Loaded, known: &mut Vec<Reason>) {
    let Ok(config) = loaded else { return };
    let warnings = config.warnings();
    for warning in warnings.iter().filter(|warning| !known.contains(warning)) {
        tracing::warn!(hint = reporting::hint(warning), "{}", reporting::cause(warning));
    }
    *known = warnings;
}

/// What the agent can do under the present configuration.
enum Mode {
    /// No MIS is configured. Keys will be created by this provider.
    Unconfigured(ProviderKind),
    /// The configuration cannot be used. What is stored is served, as far as it is found.
    Misconfigured(LastError, ProviderKind, Option<Box<Executor>>),
    /// The state cannot be read now.
    Stateless(Box<Config>, StoreError, Box<Provisioned>),
    /// Everything.
    Configured(Box<Executor>),
}

impl Mode {
    /// `before` is the provisioned input of the configuration before, if there was one.
    async fn begin(place: &ConfigLocation, loaded: Loaded, before: Option<Provisioned>) -> Self {
        let config = match loaded {
            Ok(config) if config.mis.is_none() => return Self::Unconfigured(config.key.provider),
            Ok(config) => config,
            Err(e) => return Self::misconfigured(place, &e).await,
        };
        let provisioned = Provisioned::under(&config, before);
        match Executor::restore(config.clone(), provisioned.clone(), Scope::Configured, clock::now()).await {
            Ok(executor) => Self::Configured(Box::new(executor)),
            Err(e) => Self::Stateless(Box::new(config), e, Box::new(provisioned)),
        }
    }

    /// Contacts nothing, and creates nothing where no state is found: that may be at another place.
    async fn misconfigured(place: &ConfigLocation, e: &ConfigError) -> Self {
        let error = configuration_error(e);
        let salvaged = place.salvage().ok();
        let provider = salvaged.as_ref().map_or(ProviderKind::Tpm, |salvaged| salvaged.config.key.provider);
        let has_state = |config: &Config| Store::new(&config.state_dir).private().is_dir();
        let executor = match salvaged.filter(|salvaged| has_state(&salvaged.config)) {
            Some(Salvaged { config, is_state_known: false }) => {
                // What lies at the default may have been left there long ago.
                tracing::error!(
                    "nothing that is stored is served: where state_dir says that it is cannot be read, and what is in {} \
                     may be old. Correct state_dir in the configuration",
                    shell_word(&config.state_dir)
                );
                None
            }
            Some(Salvaged { config, is_state_known: true }) => {
                let provisioned = Provisioned::under(&config, None);
                Executor::restore(config, provisioned, Scope::Stored, clock::now())
                    .await
                    .map_err(|e| {
                        let code = ProblemCode::State.as_str();
                        tracing::error!(code, hint = reporting::hint(&e), "{e}");
                    })
                    .ok()
            }
            None => None,
        };
        Self::Misconfigured(error, provider, executor.map(Box::new))
    }

    fn snapshot(&self) -> Snapshot {
        let now = clock::now();
        match self {
            Self::Unconfigured(provider) => Snapshot::unconfigured(*provider),
            Self::Misconfigured(error, provider, None) => Snapshot::blocked((error.clone(), None), *provider),
            Self::Misconfigured(error, _, Some(executor)) => {
                executor.snapshot(now, &[]).halted(error.clone())
            }
            Self::Stateless(config, e, _) => {
                let report = Report::of(ProblemCode::State, "The agent's state cannot be read", e);
                let error = LastError { report, at: now.wall, permanent: true };
                Snapshot::blocked((error, Some(now.wall.after(STATE_POLL))), config.key.provider)
            }
            Self::Configured(executor) => executor.snapshot(now, &[]),
        }
    }

    /// Runs until the configuration changes (and returns it, with the provisioned input) or until
    /// shutdown (`None`).
    async fn run(
        self,
        place: &ConfigLocation,
        publication: &Broadcaster,
        external: &mut ExternalEvents,
        timer: &mut Alarm,
    ) -> Option<(Loaded, Option<Provisioned>)> {
        if !matches!(self, Self::Configured(_)) {
            publication.send(self.snapshot(), clock::now().wall); // a configured agent does it after its first step
        }
        match self {
            Self::Unconfigured(_) => {
                wait_for_configuration(place, external).await.map(|loaded| (loaded, None))
            }
            Self::Misconfigured(error, _, executor) => {
                let loaded = wait_for_correction(&error, place, external).await?;
                Some((loaded, executor.map(|executor| executor.into_provisioned())))
            }
            Self::Stateless(config, e, provisioned) => {
                external.wait_begins(None);
                if external.repeats.is_news(&e.with_hint().to_string()) {
                    let code = ProblemCode::State.as_str();
                    tracing::error!(
                        code,
                        hint = reporting::hint(&e),
                        "{e}. Nothing is done before it can be used: it may hold the device's key"
                    );
                }
                systemd::status("blocked: the state cannot be used");
                let config = tokio::select! {
                    event = external.next(false) => match event {
                        ExternalEvent::Shutdown => None,
                        ExternalEvent::Reload | ExternalEvent::ConfigurationChanged => {
                            Some(reload(place, external, None).unwrap_or(*config))
                        }
                        ExternalEvent::InputChanged => Some(*config),
                        ExternalEvent::Command(given) => {
                            let why = "the agent's state cannot be read, and nothing is done before it can be; it is \
                                       read again now";
                            let hint = "Correct what the status shows: GET /v1/status, or miaf-agent status";
                            admin::reject(given, &Reason::from(why).with_hint_text(hint));
                            Some(*config)
                        }
                    },
                    () = tokio::time::sleep(STATE_POLL) => Some(*config),
                };
                config.map(|config| (Ok(config), Some(*provisioned)))
            }
            Self::Configured(mut executor) => {
                external.repeats.is_over();
                external.watch_inputs(executor.operator_files());
                let event_loop = EventLoop {
                    executor: &mut executor,
                    place,
                    publication,
                    external,
                    timer,
                    next_config: None,
                };
                let config = event_loop.run().await?;
                executor.withdraw_secrets_before(&config).await;
                let former_files = executor.former_files(&config);
                let mut provisioned = executor.into_provisioned();
                provisioned.former_files = former_files;
                Some((Ok(config), Some(provisioned)))
            }
        }
    }
}

fn configuration_error(e: &ConfigError) -> LastError {
    let report = Report::of(ProblemCode::Configuration, "The configuration cannot be used", e);
    LastError { report, at: clock::now().wall, permanent: true }
}

async fn wait_for_configuration(place: &ConfigLocation, external: &mut ExternalEvents) -> Option<Loaded> {
    systemd::status("unconfigured: waiting for [mis] to appear in the configuration");
    tracing::info!(file = %place.file.display(), "no MIS is configured yet: waiting for [mis] to appear");
    external.repeats.is_over();
    let file = place.file.display();
    let why = Reason::from("this device is not configured")
        .with_hint_text(format!("Set [mis] in {file}; the agent reloads it by itself"));
    loop {
        match place.load() {
            Ok(config) if config.mis.is_none() => {}
            loaded => return Some(loaded),
        }
        wait_for_change(external, &why).await?;
    }
}

/// What the configuration says once it can be used, or says something else that cannot be.
async fn wait_for_correction(
    error: &LastError,
    place: &ConfigLocation,
    external: &mut ExternalEvents,
) -> Option<Loaded> {
    let complaint = error.report.detail.clone().unwrap_or_default();
    systemd::status(&format!("blocked: {complaint}"));
    if external.repeats.is_news(&complaint) {
        let (code, hint) = (error.report.code.as_str(), error.report.hint());
        tracing::error!(
            code,
            hint,
            "{complaint}. What is stored is served, and nothing else is done before that is corrected"
        );
    }
    let why = Reason {
        what: format!("the configuration cannot be used: {complaint}"),
        hint: error.report.hint().map(str::to_owned),
    };
    loop {
        match place.load() {
            // As it is reported: shortened, and on one line.
            Err(e) if configuration_error(&e).report == error.report => {}
            loaded => return Some(loaded),
        }
        wait_for_change(external, &why).await?;
    }
}

/// Waits until the configuration has changed, and is complete as far as can be told; or until a
/// reload. Commands are rejected meanwhile. `None`: shutdown.
async fn wait_for_change(external: &mut ExternalEvents, why: &Reason) -> Option<()> {
    external.wait_begins(None);
    let mut event = external.next(true).await;
    while matches!(event, ExternalEvent::ConfigurationChanged) {
        match tokio::time::timeout(CONFIGURATION_QUIET, external.next(true)).await {
            Ok(next) => event = next,
            Err(_) => break,
        }
    }
    match event {
        ExternalEvent::Shutdown => None,
        ExternalEvent::Reload | ExternalEvent::ConfigurationChanged | ExternalEvent::InputChanged => Some(()),
        ExternalEvent::Command(given) => {
            admin::reject(given, why);
            Some(())
        }
    }
}

/// Reads a configuration to replace the one in use. One that is gone, or no longer names an MIS, is
/// as invalid as one that cannot be read: a device leaves its trust domain deliberately, not by a
/// slip. An invalid one is remembered until it is corrected. `current` is the one in use where no
/// reload was asked for: the same counts as none then, and the same mistake is logged once.
fn reload(place: &ConfigLocation, external: &mut ExternalEvents, current: Option<&Config>) -> Option<Config> {
    let title = "The configuration cannot be used";
    let report = match place.load() {
        Ok(config) if config.mis.is_none() => {
            let detail = format!("{}: names no [mis] any more", place.file.display());
            Report::new(ProblemCode::Configuration, title, &detail)
        }
        Err(e) => Report::of(ProblemCode::Configuration, title, &e),
        Ok(config) => {
            let was_rejected = external.rejected.take().is_some();
            if current == Some(&config) {
                if was_rejected {
                    tracing::info!(file = %place.file.display(), "the configuration says what is in use again");
                }
                return None;
            }
            tracing::info!(file = %place.file.display(), "the configuration has been read anew");
            return Some(config);
        }
    };
    let report = report.with_consequence("The configuration before it stays in use");
    let is_known = external.rejected.as_ref().is_some_and(|known| known.report == report);
    if current.is_none() || !is_known {
        let detail = report.detail.as_deref().unwrap_or_default();
        tracing::error!(code = report.code.as_str(), hint = report.hint(), "{detail}");
    }
    external.rejected = Some(LastError { report, at: clock::now().wall, permanent: true });
    None
}

/// Where the configuration is by the command line and the environment that systemd sets.
pub fn place(file: Option<&Path>) -> ConfigLocation {
    // Several directories may be named, separated by colons (systemd.exec(5)); the first is the
    // agent's.
    let state = std::env::var("STATE_DIRECTORY").ok();
    let state = state.as_deref().and_then(|all| all.split(':').next()).filter(|first| !first.is_empty());
    let file = file.unwrap_or(Path::new(crate::config::DEFAULT_FILE));
    ConfigLocation {
        // Paths in the file are relative to it, and must stay so wherever the agent is started.
        file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
        state_directory: state.map(PathBuf::from),
    }
}

/// Where the MIS is found.
fn address(config: &Config) -> Option<String> {
    config.mis.as_ref().map(|mis| mis.source.to_string())
}

/// Does work on a thread that may wait for the disk or the TPM.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // Boxed, so that tokio's task is compiled once, and not for each kind of work.
    let (sender, done) = oneshot::channel();
    let work: Box<dyn FnOnce() + Send> = Box::new(move || drop(sender.send(work())));
    let ended = tokio::task::spawn_blocking(work).await;
    match (done.await, ended) {
        (Ok(done), _) => done,
        (Err(_), Err(e)) => std::panic::resume_unwind(e.into_panic()), // a bug in `work` is a bug here
        (Err(e), Ok(())) => std::panic::resume_unwind(Box::new(e)),    // it sends, or panics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::assert_apart;

    #[test]
    fn error_that_ends_the_agent_has_a_hint_apart_from_its_message() {
        let refused = || std::io::Error::other("refused");
        let socket = BindError::new(Path::new("/run/agent.sock"), &refused());
        for (error, has_hint) in [
            (AgentError::Socket(socket), true),
            (AgentError::Threads(refused()), true),
            (AgentError::SocketLost("sign"), true),
            (AgentError::Signals(refused()), false),
            (AgentError::Timers(refused()), false),
        ] {
            assert_apart(&error);
            assert_eq!(error.hint().is_some(), has_hint, "{error}");
        }
    }
}
