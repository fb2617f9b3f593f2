//! The shell: it reads the configuration, binds the socket, and drives one [`Device`] by its lifecycle until it is told
//! to stop or to read the configuration anew. It decides nothing about the identity.

mod device;
mod failures;
mod identity;
mod restore;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::{self, Config, ConfigError};
use crate::deliver::Snapshot;
use crate::deliver::socket::{BindError, Socket};
use crate::lifecycle::Event;
use crate::system::{clock, notify, random};
use device::Device;

/// How often an unconfigured device looks whether it has been configured.
const CONFIGURATION_POLL: Duration = Duration::from_secs(2);
/// The wall clock may jump while the agent sleeps on another: it looks at least this often.
const LONGEST_NAP: Duration = Duration::from_secs(60);

/// What ends the agent. Everything else it lives with, and shows in its status.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// Signals cannot be waited for.
    #[error("signals cannot be waited for: {0}")]
    Signals(std::io::Error),
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
}

/// Runs until SIGTERM or SIGINT. SIGHUP reads the configuration anew; a bad one keeps the old.
///
/// # Errors
/// [`AgentError`].
pub async fn run(place: &Place, config: Config) -> Result<(), AgentError> {
    let mut signals = Signals::new().map_err(AgentError::Signals)?;
    let socket = config.socket.clone();
    let mut life = Life::begin(config).await;
    // What is held is served from the first answer on: it is read before the socket is there.
    let (publish, snapshots) = watch::channel(Arc::new(life.snapshot()));
    let mut server = Server::start(&socket, &snapshots)?;
    notify::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "miaf-agent is up");

    while let Some(config) = life.live(place, &publish, &mut signals).await {
        server.follow(&config.socket, &snapshots).await;
        life = Life::begin(config).await;
    }
    notify::stopping();
    tracing::info!("miaf-agent ends");
    server.stop().await;
    Ok(())
}

/// The socket, served beside everything else.
struct Server {
    at: config::Socket,
    task: JoinHandle<()>,
}

impl Server {
    fn start(at: &config::Socket, snapshots: &watch::Receiver<Arc<Snapshot>>) -> Result<Self, BindError> {
        let socket = Socket::bind(&at.path, at.group.as_deref())?;
        tracing::info!(socket = %at.path.display(), "local programs are served");
        Ok(Self { at: at.clone(), task: tokio::spawn(socket.serve(snapshots.clone())) })
    }

    /// Moves to another place, if the configuration names one that can be had.
    async fn follow(&mut self, to: &config::Socket, snapshots: &watch::Receiver<Arc<Snapshot>>) {
        if to.path == self.at.path {
            return;
        }
        match Self::start(to, snapshots) {
            Ok(server) => std::mem::replace(self, server).stop().await,
            Err(e) => tracing::error!("{e}. The socket stays at {}", self.at.path.display()),
        }
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await; // the socket's file goes with it
    }
}

/// The agent under one configuration.
enum Life {
    Unconfigured,
    Configured(Box<Device>),
}

impl Life {
    async fn begin(config: Config) -> Self {
        match config.mis {
            None => Self::Unconfigured,
            Some(_) => Self::Configured(Box::new(Device::restore(config, clock::now()).await)),
        }
    }

    fn snapshot(&self) -> Snapshot {
        match self {
            Self::Unconfigured => Snapshot::unconfigured(),
            Self::Configured(device) => device.snapshot(clock::now(), None),
        }
    }

    /// Until another configuration is to be lived under, or none: the agent is to end.
    async fn live(
        self,
        place: &Place,
        publish: &watch::Sender<Arc<Snapshot>>,
        signals: &mut Signals,
    ) -> Option<Config> {
        match self {
            Self::Unconfigured => wait_for_configuration(place, publish, signals).await,
            Self::Configured(device) => drive(*device, place, publish, signals).await,
        }
    }
}

async fn drive(
    mut device: Device,
    place: &Place,
    publish: &watch::Sender<Arc<Snapshot>>,
    signals: &mut Signals,
) -> Option<Config> {
    let mut event = Event::Wake;
    loop {
        let step = device.step(event, clock::now(), &mut random::unit);
        let publish_again = device.settle(clock::now(), publish).await;
        let naps = [step.wake_in, publish_again, Some(LONGEST_NAP)];
        let nap = naps.into_iter().flatten().min().unwrap_or(LONGEST_NAP);
        let work = async {
            match step.action {
                Some(action) => device.carry_out(action).await,
                None => {
                    tokio::time::sleep(nap).await;
                    Event::Wake
                }
            }
        };
        let mut work = std::pin::pin!(work);
        event = loop {
            tokio::select! {
                event = &mut work => break event,
                told = signals.next() => match told {
                    Told::Stop => return None,
                    // A bad configuration does not even disturb what is under way.
                    Told::Reload => if let Some(config) = reload(place) { return Some(config) },
                },
            }
        };
    }
}

async fn wait_for_configuration(
    place: &Place,
    publish: &watch::Sender<Arc<Snapshot>>,
    signals: &mut Signals,
) -> Option<Config> {
    notify::status("unconfigured: waiting for [mis] to appear in the configuration");
    publish.send_replace(Arc::new(Snapshot::unconfigured()));
    tracing::info!(file = %place.file.display(), "no MIS is configured yet: waiting for [mis] to appear");
    let mut complained_of = None;
    loop {
        let told = tokio::select! {
            told = signals.next() => Some(told),
            () = tokio::time::sleep(CONFIGURATION_POLL) => None,
        };
        if told == Some(Told::Stop) {
            return None;
        }
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
    }
}

fn reload(place: &Place) -> Option<Config> {
    match place.load() {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}
