//! The Unix sockets, one per role: connections and their limits, HTTP and gRPC, the SPIFFE Workload
//! API, signatures, admin commands. Responses are built from the latest
//! [`Snapshot`](crate::publish::Snapshot).

pub(crate) mod admin;
mod audit;
mod budget;
pub(crate) mod call_limit;
pub(crate) mod command_queue;
mod connection;
pub(crate) mod connection_limit;
pub(crate) mod context;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod grpc;
mod health;
mod heap;
pub(crate) mod listener;
mod metrics;
pub(crate) mod peer;
mod protobuf;
mod rate;
mod request_body;
mod response;
mod router;
pub(crate) mod runtime;
pub(crate) mod sign;
mod signing_queue;
pub(crate) mod textfile;
mod uds_authority;
mod user_semaphore;
mod watch;
mod wire;
mod workload_api;
