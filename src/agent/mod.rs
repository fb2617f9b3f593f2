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

use crate::config::{self, Config, ConfigError};
use crate::deliver::Snapshot;
use crate::deliver::lines::Lines;
use crate::deliver::order::{Order, Orders};
use crate::deliver::socket::BindError;
use crate::deliver::watch::Publication;
use crate::lifecycle::{Event, LastError, Report, Step};
use crate::store::StoreError;
use crate::system::alarm::{Alarm, Woken};
use crate::system::service::{self, PassedSocket};
use crate::system::{clock, random};
use device::Device;
use orders::Standing;
use provisioned::Provisioned;
use server::Server;
use signals::{Signals, Told};

/// How long an unconfigured device relies on being told of every change to its configuration.
const CONFIGURATION_LOOK: Duration = Duration::from_secs(300);
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

    /// The folders that the configuration is in.
    fn folders(&self) -> [PathBuf; 2] {
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        [folder.to_owned(), config::drop_in_folder(&self.file)]
    }
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration anew; a bad one keeps the old. `passed` are the sockets
/// that the service manager listens on for the agent.
///
/// # Errors
/// [`AgentError`].
pub async fn run(place: &Place, config: Config, passed: Vec<PassedSocket>) -> Result<(), AgentError> {
    let (orders, at_loop) = Orders::channel();
    let mut signals = Signals::new(place.folders(), at_loop).map_err(AgentError::Signals)?;
    let mut alarm = Alarm::new().map_err(AgentError::Timers)?;
    let (socket, textfile) = (config.socket.clone(), config.textfile.clone());
    let mut life = Life::begin(config, None).await;
    // What is held is served from the first answer on: it is read before the socket is there.
    let publish = Publication::new(life.snapshot(), clock::now().wall);
    let lines = Lines::new(&publish, orders);
    let mut server = Server::start(passed, &socket, textfile.as_deref(), &lines)?;
    service::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "miaf-agent is up");

    while let Some((config, provisioned)) = life.live(place, &publish, &mut signals, &mut alarm).await {
        server.follow(&config.socket, config.textfile.as_deref(), &lines).await;
        life = Life::begin(config, provisioned).await;
    }
    service::stopping();
    tracing::info!("miaf-agent ends");
    drop(signals); // who waits for an order to be taken is told that it is not
    server.stop().await;
    Ok(())
}

/// The agent under one configuration.
enum Life {
    Unconfigured,
    /// The state cannot be read now.
    Stateless(Box<Config>, StoreError, Box<Provisioned>),
    Configured(Box<Device>),
}

impl Life {
    /// `before` is what was provisioned under the configuration before, if there was one.
    async fn begin(config: Config, before: Option<Provisioned>) -> Self {
        if config.mis.is_none() {
            return Self::Unconfigured;
        }
        let provisioned = Provisioned::under(&config, before);
        match Device::restore(config.clone(), provisioned.clone(), clock::now()).await {
            Ok(device) => Self::Configured(Box::new(device)),
            Err(e) => Self::Stateless(Box::new(config), e, Box::new(provisioned)),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let now = clock::now();
        match self {
            Self::Unconfigured => Snapshot::unconfigured(),
            Self::Stateless(_, e, _) => {
                let report = Report::of_agent("state", "The agent's state cannot be read", e);
                Snapshot::blocked(
                    LastError { report, at: now.wall, permanent: true },
                    now.wall.after(STATE_POLL),
                )
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
    ) -> Option<(Config, Option<Provisioned>)> {
        if !matches!(self, Self::Configured(_)) {
            publish.tell(self.snapshot(), clock::now().wall); // a device tells more itself, after its first step
        }
        match self {
            Self::Unconfigured => wait_for_configuration(place, signals).await.map(|config| (config, None)),
            Self::Stateless(config, e, provisioned) => {
                signals.wait_begins(None);
                tracing::error!("{e}. Nothing is done before it can be read: it may hold the device's key");
                service::status("blocked: the state cannot be read");
                let config = tokio::select! {
                    told = signals.next(false) => match told {
                        Told::Stop => None,
                        Told::Reload | Told::Changed => Some(reload(place).unwrap_or(*config)),
                        Told::Order(given) => {
                            let why = "The agent's state cannot be read, and nothing is done before it can be: its \
                                       status says what to correct. It is looked at again now.";
                            orders::refuse(given, why);
                            Some(*config)
                        }
                    },
                    () = tokio::time::sleep(STATE_POLL) => Some(*config),
                };
                config.map(|config| (config, Some(*provisioned)))
            }
            Self::Configured(mut device) => {
                let config = drive(&mut device, place, publish, signals, alarm).await?;
                device.leave_for(&config);
                Some((config, Some(device.into_provisioned())))
            }
        }
    }
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
                told = signals.next(is_new) => match told {
                    Told::Stop => return None,
                    // An action is never dropped half-way: a key may just be written, an answer on its way. A bad
                    // configuration does not even disturb it.
                    Told::Reload => reloaded = reload(place).or(reloaded),
                    Told::Changed => reloaded = changed(place, &current).or(reloaded),
                    Told::Order(given) => signals.taken.take(given, standing, place),
                },
            }
            if asleep && (reloaded.is_some() || !signals.taken.is_empty()) {
                break Event::Wake;
            }
        };
    }
}

async fn wait_for_configuration(place: &Place, signals: &mut Signals) -> Option<Config> {
    service::status("unconfigured: waiting for [mis] to appear in the configuration");
    tracing::info!(file = %place.file.display(), "no MIS is configured yet: waiting for [mis] to appear");
    signals.wait_begins(None);
    let mut complained_of = None;
    loop {
        match place.load() {
            Ok(config) if config.mis.is_some() => return Some(config),
            Ok(_) => complained_of = None,
            Err(e) => {
                let complaint = e.to_string();
                if complained_of.as_ref() != Some(&complaint) {
                    tracing::error!("{complaint}");
                    complained_of = Some(complaint);
                }
            }
        }
        let mut told = tokio::time::timeout(CONFIGURATION_LOOK, signals.next(true)).await;
        while matches!(told, Ok(Told::Changed)) {
            told = tokio::time::timeout(QUIET, signals.next(true)).await;
        }
        match told {
            Ok(Told::Stop) => return None,
            Ok(Told::Order(given)) => {
                let file = place.file.display();
                let why =
                    format!("This device is not configured: set [mis] in {file}. It goes on by itself then.");
                orders::refuse(given, &why);
            }
            _ => {}
        }
    }
}

/// A configuration to take the place of the one in use. One that is gone, or no longer names a MIS, is as bad as one
/// that cannot be read: a device leaves its trust domain deliberately, not by a slip.
fn reload(place: &Place) -> Option<Config> {
    match place.load() {
        Ok(config) if config.mis.is_none() => {
            let file = place.file.display();
            tracing::error!("{file}: names no [mis] any more. The configuration before it stays in use");
            None
        }
        Ok(config) => {
            tracing::info!(file = %place.file.display(), "the configuration has been read anew");
            Some(config)
        }
        Err(e) => {
            tracing::error!("{e}. The configuration before it stays in use");
            None
        }
    }
}

/// A configuration that says something else than the one in use: other files come and go beside it.
fn changed(place: &Place, current: &Config) -> Option<Config> {
    match place.load() {
        Ok(config) if config == *current => None,
        _ => reload(place),
    }
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
