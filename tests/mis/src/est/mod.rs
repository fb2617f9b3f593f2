//! EST (RFC 7030) as Margo's proposal profiles it: a second protocol beside v0's, as strict. Ids X
//! are those of this project's restatement of the proposal.

mod admin;
mod pkcs7;
mod request;
mod service;
mod socket;
mod state;
mod tokens;

pub use admin::Est;
pub use pkcs7::{Bag, tlv};
pub use request::Form;
pub use service::{peek, violations};
pub use socket::{ADMIN_SOCKET, AdminSocket, ask};
pub use state::{Alert, Authorization, Domain, Held, Issued, State};
pub use tokens::{Token, TokenSpec};

/// Where EST is served: a label and an operation follow (X16, X17). Without a label it is the MIS's
/// own Trust Domain.
pub const EST_PATH: &str = "/.well-known/est";
