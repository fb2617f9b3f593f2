//! Errors as people and programs see them: in the log, in the status, on the command line.

use serde::{Deserialize, Serialize};

use miaf_spiffe::text::{self, Excerpt};
use miaf_spiffe::time::Timestamp;

/// Characters of a [`Report`]'s `type`.
pub const MAX_KIND: usize = 256;
/// Characters of its `title`.
pub const MAX_TITLE: usize = 256;
/// Characters of its `detail`.
pub const MAX_DETAIL: usize = 2048;
/// Characters of its `instance`.
pub const MAX_INSTANCE: usize = 256;

/// An error as people see it: the members of Problem Details (RFC 9457), also for errors of the agent itself. Each text
/// is on one line and of bounded length: the report is logged, stored, and part of every status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// A URI that names the kind of problem.
    #[serde(deserialize_with = "text::short::<_, MAX_KIND>")]
    pub kind: String,
    /// One line.
    #[serde(deserialize_with = "text::short::<_, MAX_TITLE>")]
    pub title: String,
    /// The HTTP status, where there was one.
    pub status: Option<u16>,
    /// What failed, on what, and why.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_DETAIL>")]
    pub detail: Option<String>,
    /// The occurrence, as the MIS names it for its operator.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_INSTANCE>")]
    pub instance: Option<String>,
}

impl Report {
    /// Report of an error that the agent finds by itself.
    pub fn of_agent(code: &str, title: &str, detail: &dyn std::fmt::Display) -> Self {
        Self {
            kind: format!("urn:miaf-agent:error:{code}"),
            title: Excerpt::of(title, MAX_TITLE).into(),
            status: None,
            detail: Some(Excerpt::of(detail, MAX_DETAIL).into()),
            instance: None,
        }
    }
}

/// The last error, with what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The error.
    pub report: Report,
    /// When it occurred.
    pub at: Timestamp,
    /// Only a correction ends it: on this device, in its configuration, or at the MIS.
    pub permanent: bool,
}
