//! The Unix sockets, one a role: connections and their limits, HTTP and gRPC, the SPIFFE Workload API, signatures, admin
//! commands. Responses are made from the latest [`Snapshot`](crate::publish::Snapshot).

pub mod admin;
mod audit;
mod budget;
pub mod calls;
mod connection;
pub mod connection_limit;
pub mod context;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod grpc;
mod health;
pub mod heap;
pub mod listener;
pub mod metrics;
pub mod peer;
mod protobuf;
mod rate;
mod response;
mod router;
pub mod runtime;
pub mod signing_queue;
pub mod textfile;
pub mod turns;
mod uds_authority;
mod watch;
mod wire;
mod workload_api;
