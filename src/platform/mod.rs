//! The operating system: clocks and timers, randomness, files that survive a power cut, changes of files, routes,
//! logging, the service manager.

pub mod access;
pub mod clock;
pub mod connectivity;
pub mod credentials;
pub mod dir;
pub mod files;
pub mod inotify;
pub mod log;
pub mod process;
pub mod random;
pub mod systemd;
pub mod timer;
