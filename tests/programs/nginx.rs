//! nginx with the device's key: as a server, and before one.

