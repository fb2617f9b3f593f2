//! The rules that the lifecycle decides: as stories of one device, told step by step, and as properties that hold through
//! any history of answers, clock jumps, orders and restarts.

mod changes;
mod checker;
mod clock;
mod device;
mod failures;
mod fleet;
mod histories;
mod issuers;
mod keys;
mod progress;
mod properties;
