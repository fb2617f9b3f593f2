//! The shell: it reads the configuration, binds the socket, and drives one device by its lifecycle until it is told to
//! stop or to read the configuration anew. It decides nothing about the identity.

mod device;
mod failures;
mod identity;
mod orders;
mod provisioned;
mod restore;
mod server;
mod signals;
mod trust;
mod waits;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{self, Config, ConfigError, Salvaged};
use crate::hint::Hint as _;
use crate::keys::ProviderKind;
use crate::lifecycle::{Event, LastError, Report, Step};
use crate::platform::access::shell_word;
use crate::platform::inotify::FileWatch;
use crate::platform::systemd::{self, PassedSocket};
use crate::platform::timer::{Alarm, Woken};
use crate::platform::{clock, random};
use crate::publish::CONFIGURATION;
use crate::publish::Snapshot;
use crate::publish::broadcast::Publication;
use crate::server::admin::{Order, Orders};
use crate::server::context::Lines;
use crate::server::listener::BindError;
use crate::state::{Store, StoreError};
use device::Device;
use orders::Standing;
use provisioned::Provisioned;
use server::{Server, Threads};
use signals::{Signals, Told};

/// A configuration in several files is complete when nothing has changed for so long.
const QUIET: Duration = Duration::from_secs(1);
/// How often a state that cannot be read is tried again.
const STATE_POLL: Duration = Duration::from_secs(5);
/// Network and TPM have limits of their own, far below this: an action that takes longer hangs.
const LONGEST_ACTION: Duration = Duration::from_secs(300);

/// What ends the agent. Everything else it lives with, and shows in its status.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The sockets cannot be served.
    #[error(
        "the operating system refuses threads for the agent's sockets: {0}. Check TasksMax= and MemoryMax= in the agent's unit"
    )]
    Threads(std::io::Error),
    /// A socket is not served any more although nobody closed it.
    #[error(
        "{0}.sock is not served any more. Report this with the log: it is an error in the agent. It ends, and systemd starts it again"
    )]
    SocketLost(&'static str),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for: {0}")]
    Signals(std::io::Error),
    /// Time cannot be waited for.
    #[error("the operating system refuses timers: {0}")]
    Timers(std::io::Error),
}

/// Where the configuration is, and what systemd says of the state folder.
#[derive(Clone, Debug)]
pub struct Place {
    /// The configuration file.
    pub file: PathBuf,
    /// `STATE_DIRECTORY`, where set.
    pub state_directory: Option<PathBuf>,
}

impl Place {
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

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration anew; a bad one keeps the old. Where the first one is
/// bad, what is held is served, with what could be salvaged of it. `passed` are the sockets that the service manager listens
/// on for the agent.
///
/// # Errors
/// [`AgentError`].
pub async fn run(
    place: &Place,
    loaded: Result<Config, (ConfigError, Config)>,
    passed: Vec<PassedSocket>,
) -> Result<(), AgentError> {
    let (orders, at_loop) = Orders::channel();
    let (threads, mut lost) = Threads::start().map_err(AgentError::Threads)?;
    let mut signals = Signals::new(place.watch(), at_loop, threads.pulses()).map_err(AgentError::Signals)?;
    let mut alarm = Alarm::new().map_err(AgentError::Timers)?;
    let (Ok(usable) | Err((_, usable))) = &loaded;
    let (socket, textfile) = (usable.socket.clone(), usable.textfile.clone());
    let mut life = Life::begin(place, loaded.map_err(|(e, _)| e), None).await;
    // What is held is served from the first answer on: it is read before the socket is there.
    let publish = Publication::new(life.snapshot(), clock::now().wall);
    let lines = Lines::new(&publish, orders);
    let mut server = Server::start(threads, passed, &socket, textfile.as_deref(), &lines)?;
    systemd::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "miaf-agent is up");

    let lives = async {
        while let Some((loaded, provisioned)) = life.live(place, &publish, &mut signals, &mut alarm).await {
            if let Ok(config) = &loaded {
                server.follow(&config.socket, config.textfile.as_deref(), &lines).await;
            }
            life = Life::begin(place, loaded, provisioned).await;
        }
    };
    let ended = tokio::select! {
        () = lives => Ok(()),
        Some(right) = lost.recv() => Err(AgentError::SocketLost(right.as_str())),
    };
    systemd::stopping();
    tracing::info!("miaf-agent ends");
    drop(signals); // who waits for an order to be taken is told that it is not
    server.stop().await;
    lines.signatures.end_all();
    lines.keys_given.end_all();
    ended
}

/// The agent under one configuration.
enum Life {
    /// Where its keys will be made.
    Unconfigured(ProviderKind),
    /// The configuration cannot be used. What is held is served, as far as it is found.
    Misconfigured(LastError, ProviderKind, Option<Box<Device>>),
    /// The state cannot be read now.
    Stateless(Box<Config>, StoreError, Box<Provisioned>),
    Configured(Box<Device>),
}

impl Life {
    /// `before` is what was provisioned under the configuration before, if there was one.
    async fn begin(place: &Place, loaded: Loaded, before: Option<Provisioned>) -> Self {
        let config = match loaded {
            Ok(config) if config.mis.is_none() => return Self::Unconfigured(config.key.provider),
            Ok(config) => config,
            Err(e) => return Self::misconfigured(place, &e).await,
        };
        let provisioned = Provisioned::under(&config, before);
        match Device::restore(config.clone(), provisioned.clone(), clock::now()).await {
            Ok(device) => Self::Configured(Box::new(device)),
            Err(e) => Self::Stateless(Box::new(config), e, Box::new(provisioned)),
        }
    }

    /// Nothing is contacted, and nothing made where no state is found: that may be elsewhere.
    async fn misconfigured(place: &Place, e: &ConfigError) -> Self {
        let error = configuration_error(&e.with_hint());
        let salvaged = place.salvage().ok();
        let provider = salvaged.as_ref().map_or(ProviderKind::Tpm, |salvaged| salvaged.config.key.provider);
        let has_state = |config: &Config| Store::new(&config.state_dir).private().is_dir();
        let device = match salvaged.filter(|salvaged| has_state(&salvaged.config)) {
            Some(Salvaged { config, is_state_known: false }) => {
                // What lies at the default may have been left there long ago.
                tracing::error!(
                    "nothing that is held is served: where state_dir says that it is cannot be read, and what is in {} \
                     may be old. Correct state_dir in the configuration",
                    shell_word(&config.state_dir)
                );
                None
            }
            Some(Salvaged { config, is_state_known: true }) => {
                let provisioned = Provisioned::under(&config, None);
                Device::restore(config, provisioned, clock::now())
                    .await
                    .map_err(|e| tracing::error!("{}", e.with_hint()))
                    .ok()
            }
            None => None,
        };
        Self::Misconfigured(error, provider, device.map(Box::new))
    }

    fn snapshot(&self) -> Snapshot {
        let now = clock::now();
        match self {
            Self::Unconfigured(provider) => Snapshot::unconfigured().with_provider(*provider),
            Self::Misconfigured(error, provider, None) => {
                Snapshot::blocked(error.clone(), None).with_provider(*provider)
            }
            Self::Misconfigured(error, _, Some(device)) => {
                device.snapshot(now, None, None).standing_still(error.clone())
            }
            Self::Stateless(config, e, _) => {
                let report = Report::of_agent("state", "The agent's state cannot be read", &e.with_hint());
                Snapshot::blocked(
                    LastError { report, at: now.wall, permanent: true },
                    Some(now.wall.after(STATE_POLL)),
                )
                .with_provider(config.key.provider)
            }
            Self::Configured(device) => device.snapshot(now, None, None),
        }
    }

    /// Until another configuration is to be lived under, or none: the agent is to end. What was provisioned is handed
    /// on.
    async fn live(
        self,
        place: &Place,
        publish: &Publication,
        signals: &mut Signals,
        alarm: &mut Alarm,
    ) -> Option<(Loaded, Option<Provisioned>)> {
        if !matches!(self, Self::Configured(_)) {
            publish.tell(self.snapshot(), clock::now().wall); // a device tells more itself, after its first step
        }
        match self {
            Self::Unconfigured(_) => {
                wait_for_configuration(place, signals).await.map(|loaded| (loaded, None))
            }
            Self::Misconfigured(error, _, device) => {
                let loaded = wait_for_correction(&error, place, signals).await?;
                Some((loaded, device.map(|device| device.into_provisioned())))
            }
            Self::Stateless(config, e, provisioned) => {
                signals.wait_begins(None);
                let complaint = format!(
                    "{}. Nothing is done before it can be used: it may hold the device's key",
                    e.with_hint()
                );
                if signals.complaint.is_news(&complaint) {
                    tracing::error!("{complaint}");
                }
                systemd::status("blocked: the state cannot be used");
                let config = tokio::select! {
                    told = signals.next(false) => match told {
                        Told::Stop => None,
                        Told::Reload | Told::Changed => Some(reload(place, signals, None).unwrap_or(*config)),
                        Told::Order(given) => {
                            let why = "The agent's state cannot be read, and nothing is done before it can be: its \
                                       status says what to correct. It is looked at again now.";
                            orders::refuse(given, why);
                            Some(*config)
                        }
                    },
                    () = tokio::time::sleep(STATE_POLL) => Some(*config),
                };
                config.map(|config| (Ok(config), Some(*provisioned)))
            }
            Self::Configured(mut device) => {
                signals.complaint.is_over();
                let config = drive(&mut device, place, publish, signals, alarm).await?;
                device.leave_for(&config);
                Some((Ok(config), Some(device.into_provisioned())))
            }
        }
    }
}

fn configuration_error(e: &dyn std::fmt::Display) -> LastError {
    let report = Report::of_agent(CONFIGURATION, "The configuration cannot be used", e);
    LastError { report, at: clock::now().wall, permanent: true }
}

async fn drive(
    device: &mut Device,
    place: &Place,
    publish: &Publication,
    signals: &mut Signals,
    alarm: &mut Alarm,
) -> Option<Config> {
    let mut event = Event::Wake;
    let mut reloaded = None;
    if signals.rejected.is_some() {
        // It may have been corrected while the device was on its way here.
        signals.complete_at.get_or_insert_with(|| Instant::now() + QUIET);
    }
    loop {
        let mut step = device.step(event, clock::now(), &mut random::unit);
        let mut leaves = false;
        // An order that came with another configuration is for the device under that one.
        while reloaded.is_none()
            && !leaves
            && let Some(order) = signals.taken.next()
        {
            if order == Order::ResetIdentity {
                leaves = true;
            } else {
                let ordered = device.order(order);
                let after = device.step(ordered, clock::now(), &mut random::unit);
                step = Step { action: step.action.or(after.action), ..after };
            }
        }
        device.rejected.clone_from(&signals.rejected);
        signals.wait_begins(Some(LONGEST_ACTION));
        let publish_again = signals.undisturbed(device.settle(clock::now(), publish)).await;
        if leaves {
            return Some(signals.undisturbed(device.leave_identity(place)).await);
        }
        if reloaded.is_some() {
            return reloaded; // what was under way has ended and is settled
        }
        if step.action.is_none() && device.has_waits_to_restore(clock::now()) {
            return Some(device.config.clone());
        }
        let look = device.next_look_in(clock::now());
        let nap = [step.wake_in, publish_again].into_iter().flatten().fold(look, Duration::min);
        let asleep = step.action.is_none();
        signals.wait_begins((!asleep).then_some(LONGEST_ACTION));
        // Whoever sets up a new device need not tell the agent of each change. Later it would be too easily by a slip.
        let is_new = !device.has_identity();
        let standing = Standing { has_identity: !is_new, is_busy: !asleep };
        // Nor need whoever corrects what was rejected: a reload was asked for.
        let shown = signals.rejected.clone();
        let follows = is_new || shown.is_some() || signals.complete_at.is_some();
        let current = device.config.clone();
        let work = async {
            let looked = device.look_at_provisioned(clock::now()).await;
            match step.action {
                Some(action) => device.carry_out(action).await,
                None if looked => Event::Wake, // what was found is to be seen
                None => {
                    if alarm.sleep(nap).await == Woken::ClockSet {
                        tracing::info!("the wall clock was set, or the machine was suspended");
                        device.look_at_provisioned_again();
                    }
                    Event::Wake
                }
            }
        };
        let mut work = std::pin::pin!(work);
        event = loop {
            tokio::select! {
                event = &mut work => break event,
                () = quiet_until(signals.complete_at) => {
                    signals.complete_at = None;
                    let next = reloaded.as_ref().unwrap_or(&current);
                    reloaded = reload(place, signals, Some(next)).or(reloaded);
                }
                told = signals.next(follows) => match told {
                    Told::Stop => return None,
                    // An action is never dropped half-way: a key may just be written, an answer on its way. A bad
                    // configuration does not even disturb it.
                    Told::Reload => {
                        signals.complete_at = None;
                        reloaded = reload(place, signals, None).or(reloaded);
                    }
                    Told::Changed => signals.complete_at = Some(Instant::now() + QUIET),
                    Told::Order(given) => signals.taken.take(given, standing, place),
                },
            }
            if asleep && (reloaded.is_some() || !signals.taken.is_empty() || signals.rejected != shown) {
                break Event::Wake;
            }
        };
    }
}

async fn wait_for_configuration(place: &Place, signals: &mut Signals) -> Option<Loaded> {
    systemd::status("unconfigured: waiting for [mis] to appear in the configuration");
    tracing::info!(file = %place.file.display(), "no MIS is configured yet: waiting for [mis] to appear");
    signals.complaint.is_over();
    let file = place.file.display();
    let why = format!("This device is not configured: set [mis] in {file}. It goes on by itself then.");
    loop {
        match place.load() {
            Ok(config) if config.mis.is_none() => {}
            loaded => return Some(loaded),
        }
        wait_for_change(signals, &why).await?;
    }
}

/// What the configuration says once it can be used, or says something else that cannot be.
async fn wait_for_correction(error: &LastError, place: &Place, signals: &mut Signals) -> Option<Loaded> {
    let complaint = error.report.detail.clone().unwrap_or_default();
    systemd::status(&format!("blocked: {complaint}"));
    if signals.complaint.is_news(&complaint) {
        tracing::error!(
            "{complaint}. What is held is served, and nothing else is done before that is corrected"
        );
    }
    let why = format!(
        "The configuration cannot be used: {complaint}. Correct it: the agent goes on by itself then."
    );
    loop {
        match place.load() {
            // As it is reported: shortened, and on one line.
            Err(e) if configuration_error(&e.with_hint()).report == error.report => {}
            loaded => return Some(loaded),
        }
        wait_for_change(signals, &why).await?;
    }
}

/// Waits until a change is complete, if there is one.
async fn quiet_until(complete_at: Option<Instant>) {
    match complete_at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits until the configuration has changed, and is complete as far as can be told; or somebody says so. Commands are
/// rejected meanwhile. `None`: the agent is to end.
async fn wait_for_change(signals: &mut Signals, why: &str) -> Option<()> {
    signals.wait_begins(None);
    let mut told = signals.next(true).await;
    while matches!(told, Told::Changed) {
        match tokio::time::timeout(QUIET, signals.next(true)).await {
            Ok(next) => told = next,
            Err(_) => break,
        }
    }
    match told {
        Told::Stop => None,
        Told::Reload | Told::Changed => Some(()),
        Told::Order(given) => {
            orders::refuse(given, why);
            Some(())
        }
    }
}

/// A configuration to take the place of the one in use. One that is gone, or no longer names a MIS, is as bad as one
/// that cannot be read: a device leaves its trust domain deliberately, not by a slip. A bad one is remembered until it
/// is corrected. `current` is the one in use where nobody has asked for another: the same is none then, and the same
/// mistake is logged once.
fn reload(place: &Place, signals: &mut Signals, current: Option<&Config>) -> Option<Config> {
    let complaint = match place.load() {
        Ok(config) if config.mis.is_none() => format!("{}: names no [mis] any more", place.file.display()),
        Err(e) => e.with_hint().to_string(),
        Ok(config) => {
            let was_rejected = signals.rejected.take().is_some();
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
    let complaint = format!("{complaint}. The configuration before it stays in use");
    let rejected = configuration_error(&complaint);
    let is_known = signals.rejected.as_ref().is_some_and(|known| known.report == rejected.report);
    if current.is_none() || !is_known {
        tracing::error!("{complaint}");
    }
    signals.rejected = Some(rejected);
    None
}

/// Where the configuration is by the command line and the environment that systemd sets.
pub fn place(file: Option<&Path>) -> Place {
    // Several folders may be named, separated by colons (systemd.exec(5)); the first is the agent's.
    let state = std::env::var("STATE_DIRECTORY").ok();
    let state = state.as_deref().and_then(|all| all.split(':').next()).filter(|first| !first.is_empty());
    let file = file.unwrap_or(Path::new(crate::config::DEFAULT_FILE));
    Place {
        // Paths in the file are relative to it, and must stay so wherever the agent is started.
        file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
        state_directory: state.map(PathBuf::from),
    }
}
