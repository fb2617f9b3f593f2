//! The states of an identity.

use super::open::words;

words! {
    /// The state of an identity, in one word.
    pub enum State {
        /// No MIS is configured.
        Unconfigured = "unconfigured",
        /// The wall clock cannot be right: nothing is validated by it.
        WaitingForClock = "waiting-for-clock",
        /// The discovery document or the trust bundle is being fetched.
        Discovering = "discovering",
        /// The first SVID is being requested.
        Enrolling = "enrolling",
        /// The operator of the MIS has yet to admit the device.
        PendingAdmission = "pending-admission",
        /// The operator has to bring the next SVID, or the first.
        WaitingForOperator = "waiting-for-operator",
        /// The operator has to bring an enrollment token, with which the first SVID is requested.
        WaitingForToken = "waiting-for-token",
        /// The SVID is valid.
        Active = "active",
        /// The SVID is valid, and its renewal is due.
        Renewing = "renewing",
        /// The SVID has expired, and a new one is due.
        Expired = "expired",
        /// Something has to be corrected before the agent can continue.
        Blocked = "blocked",
    }
}

impl State {
    /// The state in a sentence, for a person who knows nothing of identities.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Unconfigured => "no identity service (MIS) is configured",
            Self::WaitingForClock => {
                "this device's clock cannot be right; the agent waits for it to be set, and validates nothing by it"
            }
            Self::Discovering => "the agent looks for the identity service (MIS) of its trust domain",
            Self::Enrolling => "the agent requests the first certificate of this identity",
            Self::PendingAdmission => {
                "the identity service knows this device; its operator has yet to admit it"
            }
            Self::WaitingForOperator => {
                "the operator has to bring this identity's next certificate; the hint says how"
            }
            Self::WaitingForToken => {
                "the operator has to bring an enrollment token: a secret, good for one certificate; the hint says how"
            }
            Self::Active => "the identity is valid",
            Self::Renewing => "the identity is valid, and its renewal is due",
            Self::Expired => "the identity has expired, and a new one is due",
            Self::Blocked => "something has to be corrected; the last error says what",
        }
    }
}

words! {
    /// The protection of a private key (miaf-v0 K6).
    pub enum Protection {
        /// In the TPM: it cannot be exported.
        Hardware = "hardware",
        /// In software, sealed with a credential of the service manager.
        SoftwareIsolated = "software-isolated",
        /// In software, sealed with a key in the same directory.
        SoftwareBasic = "software-basic",
    }
}
