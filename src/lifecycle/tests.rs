//! The rules that the lifecycle decides: as stories of one device, told step by step, and as properties that hold through
//! any history of answers, clock jumps, orders and restarts.

mod changes;
mod clocks;
mod device;
mod fleet;
mod getting_on;
mod histories;
mod issuers;
mod keys;
mod properties;
mod refusals;
mod watch;
