//! Helpers of the tests. Not every test binary uses all of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub(crate) mod agent;
pub(crate) mod directory;
pub(crate) mod http2;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod ports;
pub(crate) mod program;
pub(crate) mod python;
pub(crate) mod reader;
pub(crate) mod strace;
pub(crate) mod swtpm;
pub(crate) mod tinyproxy;
pub(crate) mod version_1;
