//! The operating system: clocks and timers, randomness, files that survive a power cut, changes of
//! files, routes, logging, the service manager.

pub(crate) mod access;
pub(crate) mod clock;
pub(crate) mod connectivity;
pub mod credentials;
pub(crate) mod dir;
pub(crate) mod files;
pub(crate) mod inotify;
pub(crate) mod log;
pub mod process;
pub(crate) mod random;
pub(crate) mod systemd;
pub(crate) mod timer;
