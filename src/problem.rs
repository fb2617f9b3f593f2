//! Errors as people and programs see them: in the log, in the status, on the command line.

use std::borrow::Cow;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

pub use miaf_client::api::{Open, ProblemCode};

use crate::hint::Hint;
use miaf_spiffe::text::{self, Excerpt};
use miaf_spiffe::time::Timestamp;

/// Characters of a response's `type`.
pub const MAX_KIND: usize = 256;
/// Characters of a report's title.
pub const MAX_TITLE: usize = 256;
/// Characters of its detail.
pub const MAX_DETAIL: usize = 2048;
/// Characters of its hint.
const MAX_HINT: usize = 512;
/// Characters of a response's `instance`.
pub const MAX_INSTANCE: usize = 256;

/// An error as people and programs see it. Each text is on one line and of bounded length: the
/// report is logged, stored, and part of every status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What kind of problem it is.
    pub code: Open<ProblemCode>,
    /// One line.
    #[serde(deserialize_with = "text::short::<_, MAX_TITLE>")]
    pub title: String,
    /// What failed, on what, and why.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_DETAIL>")]
    pub detail: Option<String>,
    /// What to do about this very error, where more is known than its code says.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_HINT>")]
    pub hint: Option<String>,
    /// The MIS's response, where that is the error.
    #[serde(default)]
    pub response: Option<ResponseReport>,
}

/// The part of a [`Report`] that is the MIS's own word (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseReport {
    /// HTTP status.
    pub status: u16,
    /// A URI that names the kind of problem, if it was Problem Details.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_KIND>")]
    pub kind: Option<String>,
    /// The occurrence, as the MIS names it for its operator.
    #[serde(default, deserialize_with = "text::short_if_any::<_, MAX_INSTANCE>")]
    pub instance: Option<String>,
}

impl Report {
    /// Report of an error that the agent finds by itself.
    pub fn new(code: ProblemCode, title: &str, detail: &dyn Display) -> Self {
        Self {
            code: code.into(),
            title: Excerpt::of(title, MAX_TITLE).into(),
            detail: Some(Excerpt::of(detail, MAX_DETAIL).into()),
            hint: None,
            response: None,
        }
    }

    /// Report of an error that has a remedy of its own.
    pub fn of(code: ProblemCode, title: &str, error: &impl Hint) -> Self {
        Self::new(code, title, error).with_hint(error.hint())
    }

    /// The report with what to do about this very error.
    #[must_use]
    pub fn with_hint(self, hint: Option<impl Display>) -> Self {
        Self { hint: hint.map(|hint| Excerpt::of(hint, MAX_HINT).into()), ..self }
    }

    /// The report with one more sentence in its detail: what follows from the error.
    #[must_use]
    pub fn with_consequence(self, consequence: &str) -> Self {
        let detail = self.detail.as_deref().unwrap_or(&self.title);
        let detail = detail.strip_suffix('.').unwrap_or(detail); // a server's words may have one
        let detail = Excerpt::of(format_args!("{detail}. {consequence}"), MAX_DETAIL).into();
        Self { detail: Some(detail), ..self }
    }

    /// What to do. `None`: nothing that is known helps, or the agent recovers without help.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or_else(|| self.code.known().and_then(remedy))
    }

    /// The hint, with the commands in it about this identity: see [`addressed`].
    pub fn hint_about(&self, identity: Option<&str>) -> Option<Cow<'_, str>> {
        self.hint().map(|hint| addressed(hint, identity))
    }

    /// Title and detail in one text.
    pub fn message(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {detail}", self.title),
            None => self.title.clone(),
        }
    }
}

/// Commands that are about one identity. Without `--identity`, they are about the default identity.
const ABOUT_ONE_IDENTITY: [&str; 6] = [
    "miaf-agent retry --new-key",
    "miaf-agent renew",
    "miaf-agent retire",
    "miaf-agent csr",
    "miaf-agent install",
    "miaf-agent enroll",
];

/// The text of a hint, with `--identity` in each command that is about one identity. `None`: there
/// is only one, and the commands need no name.
pub fn addressed<'a>(hint: &'a str, identity: Option<&str>) -> Cow<'a, str> {
    let Some(name) = identity else { return hint.into() };
    let mut rest = hint;
    let mut text = String::new();
    while let Some((before, command, after)) = next_command(rest) {
        text.push_str(before);
        text.push_str(command);
        if !after.starts_with(" --identity") {
            text.push_str(" --identity ");
            text.push_str(name);
        }
        rest = after;
    }
    if text.is_empty() {
        return hint.into();
    }
    text.push_str(rest);
    text.into()
}

/// The first of the commands in a text, with what is before it and after it.
fn next_command(text: &str) -> Option<(&str, &str, &str)> {
    let found = ABOUT_ONE_IDENTITY.iter().filter_map(|command| Some((text.find(command)?, command.len())));
    let (start, length) = found.min()?;
    let (before, command) = text.split_at_checked(start)?;
    let (command, after) = command.split_at_checked(length)?;
    Some((before, command, after))
}

/// What to do about problems with this code, where an error says no more (docs/errors.md).
pub fn remedy(code: ProblemCode) -> Option<&'static str> {
    use ProblemCode as P;
    Some(match code {
        P::Configuration => "Correct the configuration; the agent reloads it by itself",
        P::Clock => {
            "Set the clock, or let a time service do it; if it is right, declare it so with: miaf-agent retry"
        }
        P::KeyLost => {
            "Restore what the key is bound to, its TPM or its key-encryption key; or replace the key with: \
             miaf-agent retry --new-key"
        }
        P::InstalledCredential => {
            "Correct the files that svid_file and key_file of the identity name; the agent reads them again by itself"
        }
        P::KeyTooWeak => {
            "Set provider = \"tpm\" under the key settings of the identity; or remove require under [key], if a software \
             key is good enough"
        }
        P::BundleStale => {
            "Correct what keeps the trust bundle from being refreshed; the log says what: journalctl --unit miaf-agent"
        }
        P::OperatorNeeded => {
            "Create a request with: miaf-agent csr; have the operator of the MIS sign it, and bring the chain in with: \
             miaf-agent install chain.pem"
        }
        P::TokenNeeded => {
            "Have the operator of the MIS create an enrollment token for this identity, and hand it over with: \
             miaf-agent enroll --token-file FILE"
        }
        P::TokenRefused => {
            "Ask the operator of the MIS whether the token has expired, has been used or was withdrawn; with a fresh one: \
             miaf-agent enroll --token-file FILE"
        }
        P::TokenUnusable => "Correct the file or credential that token under [identity.est] names: one line, username:secret",
        P::DeviceIdentityNeeded => {
            "Correct what keeps the device from having a valid identity of its own: miaf-agent status"
        }
        P::WfmNotTrusted => {
            "Compare url and id under [identity.wfm] with what the operator of the WFM says, and show this to them"
        }
        P::WfmRefused => "Ask the operator of the WFM to accept this device, by its SPIFFE ID",
        P::ServerNotTrusted => {
            "Correct what the error names: the CA or pin under [mis.trust], the name in mis.discovery_url, or the \
             certificate of the MIS; after a change of the configuration: systemctl reload miaf-agent"
        }
        P::CertificateRefused | P::NotAuthenticated => {
            "Give the operator of the MIS the SHA-256 of the factory certificate, and ask why it is refused"
        }
        P::Redirected => {
            "Set mis.discovery_url to the address itself, then: systemctl reload miaf-agent; or have the MIS's documents \
             corrected"
        }
        P::KeyRotationRefused => {
            "Ask the operator of the MIS to permit another key for this device; then: miaf-agent retry"
        }
        P::Proxy => {
            "Correct the proxy, or what names it: mis.proxy, then: systemctl reload miaf-agent; or HTTPS_PROXY in the \
             environment of the service"
        }
        P::Unreachable => {
            "If it lasts, compare mis.discovery_url with what the operator of the MIS says, and see to firewalls and \
             proxies on the way"
        }
        P::DiscoveryRefused => {
            "Compare mis.discovery_url with what the operator of the MIS says, and have the document corrected; after a \
             change of the configuration: systemctl reload miaf-agent"
        }
        P::BundleRefused => "Have the operator of the MIS correct its trust bundle",
        P::BundleEmpty => "Ask the operator of the MIS whether its trust bundle is as it should be",
        P::MalformedResponse => {
            "See that mis.discovery_url leads to the MIS and to nothing in between, and tell its operator"
        }
        P::UnsupportedByMis => {
            "Ask the operator of the MIS to allow this; the agent notices it when it reads the discovery document again"
        }
        P::IssuanceStalled => {
            "Ask the operator of the MIS to replace the certificate that it issues with, which ends too early"
        }
        P::IssuerNotTrusted => {
            "Compare the CA with those in the trust bundle: miaf-agent bundle; correct mis.est_url or the trust bundle, or ask \
             the operator of the MIS which CA is the right one; the agent tries again by itself"
        }
        P::SvidRefused | P::IssuerExpired => {
            "Show this to the operator of the MIS: what it issues cannot be used"
        }
        P::SvidNotTrusted => "Ask the operator of the MIS whether the trust bundle is as it should be",
        P::PendingAdmission => "Have the operator of the MIS admit this device, by its factory certificate",
        P::Denied => "Ask the operator of the MIS whether this device may have an identity",
        P::RequestRefused => "Show this to the operator of the MIS; once it is corrected: miaf-agent retry",
        P::NotFound => {
            "Compare mis.discovery_url with what the operator of the MIS says; after a change of the configuration: \
             systemctl reload miaf-agent"
        }
        P::TooManyRequests => "If it lasts, ask the operator of the MIS to raise its limit",
        P::State
        | P::NotPublished
        | P::Key
        | P::FactoryCredential
        | P::NoInitialTrust
        | P::InitialTrustUnusable
        | P::TrustNotReplaced
        | P::TlsSetup
        | P::NotDiscovered
        | P::NothingToRenew
        | P::Offline
        | P::NameNotResolved
        | P::ServerError
        // What to do depends on the request: the error of each says it.
        | P::InvalidRequest
        | P::Forbidden
        | P::UnknownPath
        | P::UnknownIdentity
        | P::MethodNotAllowed
        | P::NotApplicable
        | P::SvidReplaced
        | P::RateExceeded
        | P::ConnectionLimit
        | P::NotAvailable
        | P::Busy
        | P::UnsupportedVersion => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use miaf_client::api::Word as _;

    const DOCUMENT: &str = include_str!("../docs/errors.md");

    /// Words of a text, without the marks of code in Markdown.
    fn words(text: &str) -> String {
        text.replace('`', "").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn commands_of_a_hint_name_their_identity() {
        for (hint, with_name) in [
            (
                "Replace the key with: miaf-agent retry --new-key",
                "Replace the key with: miaf-agent retry --new-key --identity wfm-a",
            ),
            ("Try: miaf-agent retry", "Try: miaf-agent retry"),
            (
                "To move it: miaf-agent retire; or not",
                "To move it: miaf-agent retire --identity wfm-a; or not",
            ),
            (
                "miaf-agent csr; then: miaf-agent install chain.pem",
                "miaf-agent csr --identity wfm-a; then: miaf-agent install --identity wfm-a chain.pem",
            ),
            ("miaf-agent renew --identity b", "miaf-agent renew --identity b"),
            ("", ""),
        ] {
            assert_eq!(addressed(hint, Some("wfm-a")), with_name);
            assert_eq!(addressed(hint, None), hint);
        }
        let report = Report::new(ProblemCode::KeyLost, "lost", &"gone");
        let hint = report.hint_about(Some("wfm-a")).unwrap();
        assert!(hint.ends_with("miaf-agent retry --new-key --identity wfm-a"), "{hint}");
    }

    #[test]
    fn every_code_is_documented() {
        let entries: Vec<(&str, &str)> = DOCUMENT
            .split("\n### `")
            .skip(1)
            .map(|entry| {
                let (code, text) = entry.split_once("`\n").unwrap();
                (code, text.split("\n## ").next().unwrap())
            })
            .collect();
        let documented: Vec<&str> = entries.iter().map(|(code, _)| *code).collect();
        let codes: Vec<&str> = ProblemCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(documented, codes, "docs/errors.md has each code once, in the order of the enum");
        for (code, (_, text)) in ProblemCode::ALL.iter().zip(entries) {
            let (meaning, to_do) = text.split_once("**What to do:** ").unwrap_or_default();
            assert!(!meaning.trim().is_empty() && !to_do.trim().is_empty(), "{code}: {text}");
            if let Some(remedy) = remedy(*code) {
                assert!(words(to_do).starts_with(&words(remedy)), "{code}: {remedy}");
            }
        }
    }
}
