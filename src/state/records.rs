//! Types of the records: what each holds, and its form on the disk.

use std::fmt;
use std::io;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use zeroize::{Zeroize as _, Zeroizing};

use crate::hint::Hint as _;
use crate::keys;
use crate::lifecycle::{IdentityMemory, Memory};
use crate::problem::LastError;
use crate::transport::Validators;
use miaf_client::api::IdentityName;
use miaf_spiffe::TrustDomain;
use miaf_spiffe::json::{self, JsonError};
use miaf_spiffe::svid::Chain;
use miaf_spiffe::time::{BootTime, Timestamp};

const VERSION: u32 = 1;

/// Limit on the certificates of a stored chain: more than an issuer may return.
const MAX_CERTIFICATES: usize = 64;

/// Limit on the tokens of a record.
pub const MAX_TOKENS: usize = 64;

/// Limit on the identities of a record: those of a configuration, and many that were removed.
const MAX_IDENTITIES: usize = 256;

/// A kind of record: the name of its file, and its form there.
pub trait Record: Sized {
    /// Name of its file.
    const NAME: &'static str;

    /// Whether a damaged one is removed, and not put aside: a secret may be left in it.
    const IS_SECRET: bool = false;

    /// Returns the content of the file. It is wiped when it is dropped.
    ///
    /// # Errors
    /// When the record cannot be serialized.
    fn encode(&self) -> io::Result<Zeroizing<Vec<u8>>>;

    /// Parses the content of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    fn decode(content: &[u8]) -> Result<Self, String>;
}

/// The current identity: SVID and key in one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIdentity {
    /// The certificate chain of the SVID.
    #[serde(with = "pem_list")]
    pub chain: Chain,
    /// The key as [`Key::to_pem`](crate::keys::Key::to_pem) wrote it: of no use without this
    /// device.
    pub key: String,
    /// Renewal moment drawn for the SVID.
    pub renew_at: Option<Timestamp>,
    /// SHA-256 of the factory certificate that the device was enrolled with, in hex. With another
    /// one it may become another device to the MIS (miaf-v0 E5, E9).
    #[serde(default)]
    pub credential: Option<String>,
    /// When the first SVID for this key was adopted, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_since: Option<Timestamp>,
    /// How many renewals have kept this key.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub key_renewals: u32,
}

/// A key created for the next SVID, stored before the first request with it: a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPendingKey {
    /// As [`Key::to_pem`](crate::keys::Key::to_pem) wrote it.
    pub key: String,
}

/// A chain that the issuer has issued and that is not adopted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIssuedChain {
    /// It was issued by a renewal: only the current SPIFFE ID is acceptable.
    pub renewal: bool,
    /// It was requested with the pending key, otherwise with the current one.
    pub for_pending_key: bool,
    /// It may name another SPIFFE ID than the current one: the SVID had expired, or the MIS had
    /// returned `401` for it (miaf-v0 E9).
    #[serde(default)]
    pub may_rename: bool,
    /// SHA-256 of the factory certificate that it was requested with, in hex; for a renewal, that
    /// of the SVID before.
    #[serde(default)]
    pub credential: Option<String>,
    /// The chain, not validated yet.
    #[serde(with = "pem_list")]
    pub chain: Chain,
    /// It is the leaf alone: the issuers are fetched when it is adopted (X58).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_issuers: bool,
}

/// What an enrollment or renewal over EST repeats until it has succeeded (X48, X56). Stored before it
/// is sent.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEstRequest {
    /// The certification request: DER in base64. The same bytes are sent again.
    pub csr: Option<String>,
    /// The enrollment token that is in use, `username:secret` (X43).
    pub token: Option<String>,
    /// The token was sent for the pending key (`true`) or for that of the current SVID (X48).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_for_pending_key: Option<bool>,
}

impl StoredEstRequest {
    /// Whether a request with the token has left, or was about to.
    pub fn was_token_sent(&self) -> bool {
        self.token.is_some() && self.token_for_pending_key.is_some()
    }
}

impl Drop for StoredEstRequest {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// Shows nothing of the token.
impl fmt::Debug for StoredEstRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { csr, token, token_for_pending_key } = self;
        let mut shown = f.debug_struct("StoredEstRequest");
        shown.field("csr", csr).field("has_token", &token.is_some());
        shown.field("token_for_pending_key", token_for_pending_key).finish()
    }
}

/// Enrollment tokens that are not sent again (X44), by salted hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTokens {
    /// The salt, since there is a token.
    pub salt: Option<[u8; 16]>,
    /// The latest ones, the last of them at the end.
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_TOKENS>")]
    pub tokens: Vec<TokenRecord>,
}

/// What is remembered of an enrollment token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// SHA-256 of salt and token, in hex.
    pub sha256: String,
    /// How often the MIS has refused it.
    pub refused: u32,
    /// When it did so last.
    #[serde(default)]
    pub refused_at: Option<Timestamp>,
    /// An SVID was issued for it.
    pub spent: bool,
    /// An operator has handed over another one in its place.
    #[serde(default)]
    pub superseded: bool,
}

/// The last good discovery document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredDiscovery {
    /// Its URL. Under another one it is not used.
    pub url: String,
    /// As served.
    pub body: String,
    /// Validators for the next conditional request.
    pub validators: Validators,
}

/// The last good trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBundle {
    /// Its URL.
    pub url: String,
    /// Its trust domain. `None`: it was not known yet (miaf-est X22).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<TrustDomain>,
    /// The SPIFFE bundle document of the trust domain. Earlier agents stored it as served.
    pub body: String,
    /// Validators for the next conditional request.
    pub validators: Validators,
    /// When it was last known to be up to date.
    pub fetched_at: Timestamp,
    /// Since when a lower sequence has been served instead (miaf-v0 B5).
    pub regressed_since: Option<Timestamp>,
}

/// Lower bounds of the present time, from other sources than the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTime {
    /// Time shown by the MIS.
    pub proven: Option<Timestamp>,
    /// Time confirmed by the operator.
    pub vouched: Option<Timestamp>,
}

/// Retry-after delays requested by the MIS, and why (miaf-v0 E8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryAfterDelays {
    /// URL of the discovery document of the MIS that requested them.
    pub mis: Option<String>,
    /// The boot in which the boot times below are valid.
    pub boot_id: Option<String>,
    /// For discovery.
    pub discovery: Option<RetryAfterDelay>,
    /// For the bundle.
    pub bundle: Option<RetryAfterDelay>,
    /// Why discovery waits.
    #[serde(default, deserialize_with = "readable")]
    pub discovery_reason: Option<LastError>,
    /// For each identity, also for those that are not configured any more: they may come back.
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_IDENTITIES>")]
    pub identities: Vec<IdentityDelay>,
}

/// The identity's part of [`RetryAfterDelays`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityDelay {
    /// Its name.
    pub name: IdentityName,
    /// For enrollment and renewal.
    pub retry_after: Option<RetryAfterDelay>,
    /// Why it waits.
    #[serde(default, deserialize_with = "readable")]
    pub reason: Option<LastError>,
    /// It waits to be admitted.
    #[serde(default)]
    pub admission_pending: bool,
    /// The operator has allowed a lost key to be replaced.
    #[serde(default)]
    pub replace_lost_key: bool,
    /// Base URL of the WFM that asked for the delay. `None`: the MIS did.
    #[serde(default)]
    pub wfm: Option<String>,
}

/// An error, if it is of a form that this version knows. The delays count without it.
fn readable<'de, D: Deserializer<'de>>(error: D) -> Result<Option<LastError>, D::Error> {
    let error = Option::<Box<RawValue>>::deserialize(error)?;
    Ok(error.and_then(|error| json::read(error.get().as_bytes()).ok()))
}

impl RetryAfterDelays {
    /// Returns the record of what the lifecycle has to remember, with the ends by both clocks.
    /// `names` are those of the identities, in the order of `memory`.
    ///
    /// `wall` is the wall clock where it is trusted. Without it the end of a delay lies at the end
    /// of time, so that after a reboot a right clock leaves of it what was left when it was
    /// written.
    pub fn new(
        memory: &Memory,
        names: &[IdentityName],
        mis: Option<String>,
        boot_id: Option<String>,
        wall: Option<Timestamp>,
        now: BootTime,
    ) -> Self {
        let write = |until: Option<BootTime>| {
            until.map(|boot| {
                let left = now.until(boot);
                let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let end = wall.map_or(UNKNOWN_END, |wall| wall.after(left));
                RetryAfterDelay { boot, wall: end, left: millis }
            })
        };
        let identities = names.iter().zip(&memory.identities);
        let identities = identities.filter(|(_, identity)| **identity != IdentityMemory::default());
        Self {
            mis,
            boot_id,
            discovery: write(memory.trust_domain.discovery_retry_after),
            bundle: write(memory.trust_domain.bundle_retry_after),
            discovery_reason: memory.trust_domain.discovery_error.clone(),
            identities: identities
                .map(|(name, identity)| IdentityDelay {
                    name: name.clone(),
                    retry_after: write(identity.retry_after),
                    reason: identity.error.clone(),
                    admission_pending: identity.admission_pending,
                    replace_lost_key: identity.replace_lost_key,
                    wfm: None,
                })
                .collect(),
        }
    }

    /// Parses the record of an agent that knew one identity, `device`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode_former(content: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Former {
            mis: Option<String>,
            boot_id: Option<String>,
            discovery: Option<RetryAfterDelay>,
            bundle: Option<RetryAfterDelay>,
            identity: Option<RetryAfterDelay>,
            #[serde(default, deserialize_with = "readable")]
            discovery_reason: Option<LastError>,
            #[serde(default, deserialize_with = "readable")]
            reason: Option<LastError>,
            admission_pending: bool,
            #[serde(default)]
            replace_lost_key: bool,
        }
        let former: Former = read_json(content)?;
        let device = IdentityDelay {
            name: IdentityName::DEVICE,
            retry_after: former.identity,
            reason: former.reason,
            admission_pending: former.admission_pending,
            replace_lost_key: former.replace_lost_key,
            wfm: None,
        };
        Ok(Self {
            mis: former.mis,
            boot_id: former.boot_id,
            discovery: former.discovery,
            bundle: former.bundle,
            discovery_reason: former.discovery_reason,
            identities: vec![device],
        })
    }

    /// Whether all of them were written with a trusted wall clock.
    pub fn ends_by_the_wall_clock(&self) -> bool {
        let identities = self.identities.iter().map(|identity| identity.retry_after);
        let ends = [self.discovery, self.bundle].into_iter().chain(identities);
        ends.flatten().all(|delay| delay.wall != UNKNOWN_END)
    }
}

/// End of a delay that was written without a trusted wall clock.
const UNKNOWN_END: Timestamp = Timestamp::from_millis(i64::MAX);

/// The end of a retry-after delay by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryAfterDelay {
    /// Within the same boot.
    pub boot: BootTime,
    /// After a reboot, when only the wall clock is left.
    pub wall: Timestamp,
    /// What was left of it when it was written, in milliseconds: the most that a wrong wall clock
    /// can make of it.
    pub left: u64,
}

impl Record for StoredPendingKey {
    const NAME: &'static str = "pending-key.pem";

    fn encode(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        Ok(Zeroizing::new(self.key.clone().into_bytes()))
    }

    fn decode(content: &[u8]) -> Result<Self, String> {
        let key = str::from_utf8(content).map_err(|_| "it is not PEM".to_owned())?;
        keys::check_record(key).map_err(|e| e.with_hint().to_string())?;
        Ok(Self { key: key.to_owned() })
    }
}

/// Implements [`Record`] for the others: JSON with a version, so that a newer agent's record is not
/// taken for a damaged one.
macro_rules! json_records {
    ($($record:ty: $name:literal $($is_secret:ident)?),* $(,)?) => {$(
        impl Record for $record {
            const NAME: &'static str = $name;
            $(const IS_SECRET: bool = stringify!($is_secret).len() > 0;)?

            fn encode(&self) -> io::Result<Zeroizing<Vec<u8>>> {
                // What is secret fits into it: no copy is left where it grows.
                let mut content = Zeroizing::new(Vec::with_capacity(8 * 1024));
                serde_json::to_writer(&mut *content, &Envelope { version: VERSION, record: self })?;
                Ok(content)
            }

            fn decode(content: &[u8]) -> Result<Self, String> {
                read_json(content)
            }
        }
    )*};
}

json_records! {
    StoredIdentity: "identity.json",
    StoredIssuedChain: "issued.json",
    StoredEstRequest: "est-request.json" secret,
    StoredTokens: "est-tokens.json",
    StoredDiscovery: "discovery.json",
    StoredBundle: "bundle.json",
    RetryAfterDelays: "retry-after.json",
    StoredTime: "time.json",
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    version: u32,
    record: R,
}

fn read_json<R: DeserializeOwned>(content: &[u8]) -> Result<R, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |e: JsonError| format!("it is damaged: {e}");
    let Version { version } = json::read(content).map_err(damaged)?;
    if version != VERSION {
        return Err(format!("it is of version {version}, and this agent reads version {VERSION}"));
    }
    let envelope: Envelope<R> = json::read(content).map_err(damaged)?;
    Ok(envelope.record)
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A chain as a list of PEM texts, one for each certificate, leaf first.
mod pem_list {
    use super::*;

    pub(super) fn serialize<S: Serializer>(chain: &Chain, serializer: S) -> Result<S::Ok, S::Error> {
        chain.to_pems().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Chain, D::Error> {
        let texts = json::at_most::<String, D, MAX_CERTIFICATES>(deserializer)?;
        Chain::from_pem(&texts).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miaf_spiffe::svid::certificate_pem;

    fn issued(chain: &str) -> Vec<u8> {
        let record = format!(r#"{{"renewal":true,"for_pending_key":false,"chain":{chain}}}"#);
        format!(r#"{{"version":1,"record":{record}}}"#).into_bytes()
    }

    /// Rule E8: a delay is kept, whatever another version wrote of its reason.
    #[test]
    fn delay_counts_without_a_readable_reason() {
        let delay = RetryAfterDelay { boot: BootTime::from_millis(7), wall: UNKNOWN_END, left: 5 };
        let identity = IdentityDelay {
            name: IdentityName::DEVICE,
            retry_after: Some(delay),
            reason: None,
            admission_pending: true,
            replace_lost_key: false,
            wfm: Some("https://wfm.example/".to_owned()),
        };
        let record = RetryAfterDelays { identities: vec![identity], ..RetryAfterDelays::default() };
        let written = String::from_utf8(record.encode().unwrap().to_vec()).unwrap();
        for reason in ["null", "7", "{}", r#"{"report":{"kind":"x"},"at":1,"permanent":false}"#] {
            let other = written.replace(r#""reason":null"#, &format!(r#""reason":{reason}"#));
            assert!(reason == "null" || other != written, "{written}");
            assert_eq!(RetryAfterDelays::decode(other.as_bytes()).unwrap(), record, "{reason}");
        }
    }

    #[test]
    fn issued_chain_is_a_list_of_pem_texts() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::default().self_signed(&pair).unwrap().der().clone();
        let pem = certificate_pem(&der);
        let text = serde_json::to_string(&[&pem]).unwrap();
        let record = StoredIssuedChain::decode(&issued(&text)).unwrap();
        assert_eq!(record.chain.to_pems(), [pem]);
        let written = String::from_utf8(record.encode().unwrap().to_vec()).unwrap();
        assert!(written.contains(&format!(r#""chain":{text}"#)), "{written}");
    }

    #[test]
    fn issued_chain_that_is_no_chain_is_damaged() {
        for (chain, why) in
            [("[]", "no certificate"), (r#"["x"]"#, "not exactly one PEM"), ("\"x\"", "array")]
        {
            let error = StoredIssuedChain::decode(&issued(chain)).unwrap_err();
            assert!(error.starts_with("it is damaged: ") && error.contains(why), "{error}");
        }
    }
}
