//! The rules that the lifecycle decides: as stories of one device, told step by step; as stories of
//! two identities, and of ten through a year; and as properties that hold through any history of
//! outcomes, clock jumps, commands and restarts.

mod changes;
mod checker;
mod clock;
mod device;
mod failures;
mod fleet;
mod histories;
mod identities;
mod issuers;
mod keys;
mod operator;
mod progress;
mod properties;
mod with_the_device;
mod with_token;
mod year;
