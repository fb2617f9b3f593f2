//! The WFM itself, without a network: requests in, decisions out.

use crate::assertion::{Claims, Signer, TYPE, Vocabulary};
use crate::bundle;
use crate::clients::{self, Name, is_segment};
use crate::faults::{AssertionFault, Fault, Faults};
use crate::journal::{Entry, Journal};
use crate::policy::{Limit, Policy};
use crate::problem::Problem;
use crate::tls::Credential;
use development_server::{Result, hex, lock};
use hyper::StatusCode;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The onboarding call (W1), after the base.
pub const ONBOARDING_PATH: &str = "/api/v1/onboarding";
/// The deployments of a WFM Client (N11), after the base.
pub const DEPLOYMENTS_PATH: &str = "/api/v1/deployments";

/// A response body and its media type.
pub type Body = (StatusCode, &'static str, Value);
type Decision = std::result::Result<Body, Problem>;

/// The server's whole state.
pub struct Service {
    /// The trust domain of its SVID.
    pub trust_domain: String,
    /// The id in its SVID.
    pub wfm_id: String,
    /// Its SVID.
    pub own: Credential,
    /// What it shows in handshakes instead.
    pub shown: Mutex<Option<Credential>>,
    /// The Trust Bundle.
    pub bundle: PathBuf,
    /// `aud` of assertions.
    pub audience: String,
    /// The operator's decisions.
    pub policy: Mutex<Policy>,
    /// What to do wrong.
    pub faults: Mutex<Faults>,
    /// The device of each client handle.
    pub handles: Mutex<BTreeMap<String, String>>,
    /// When each device got assertions.
    pub issued: Mutex<HashMap<String, VecDeque<Instant>>>,
    /// The assertion issued last.
    pub last: Mutex<Option<String>>,
    /// Everything that came in.
    pub journal: Journal,
}

impl Service {
    /// The anchors of the bundle file as it is now.
    pub fn anchors(&self) -> Result<Vec<CertificateDer<'static>>> {
        bundle::read(&self.bundle, &self.trust_domain)
    }

    /// The SPIFFE ID of a valid client certificate.
    fn client(&self, chain: &[CertificateDer<'_>]) -> std::result::Result<String, Problem> {
        let anchors = self
            .anchors()
            .map_err(|error| Problem::bare(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        clients::verify(chain, &anchors, &self.trust_domain, UnixTime::now()).map_err(Problem::unauthorized)
    }

    /// `GET /api/v1/deployments`, for accepted clients of this WFM only (N10).
    pub fn deployments(&self, chain: &[CertificateDer<'_>]) -> Decision {
        let id = self.client(chain)?;
        let refuse = |why: String| Err(Problem::not_authorized(why));
        match Name::of(&id) {
            Name::WfmClient { wfm_id, .. } if wfm_id == self.wfm_id => {}
            Name::WfmClient { wfm_id, .. } => {
                return refuse(format!("a client of the WFM {wfm_id:?}, and this is {:?}", self.wfm_id));
            }
            _ => return refuse(format!("{id:?} is not a WFM Client")),
        }
        let policy = lock(&self.policy);
        if !policy.accepted.contains(&id) {
            return refuse(format!("{id:?} is not on the list of accepted clients"));
        }
        let deployments: Vec<Value> = policy
            .deployments
            .iter()
            .map(|id| json!({ "deploymentId": id, "url": format!("{DEPLOYMENTS_PATH}/{id}") }))
            .collect();
        let manifest = json!({ "manifestVersion": 1, "bundle": null, "deployments": deployments });
        Ok((StatusCode::OK, "application/vnd.margo.manifest.v1+json", manifest))
    }

    /// `POST /api/v1/onboarding`, for devices only (W1).
    pub fn onboard(
        &self,
        chain: &[CertificateDer<'_>],
        body: &[u8],
        fault: Option<&Fault>,
        entry: &mut Entry,
    ) -> Decision {
        let device = self.client(chain)?;
        if Name::of(&device) != Name::Device {
            return Err(Problem::unauthorized(format!("{device:?} is not a device")));
        }
        let (policy_lifetime, limit) = {
            let policy = lock(&self.policy);
            if policy.devices.as_ref().is_some_and(|known| !known.contains(&device)) {
                return Err(Problem::forbidden("this device may not have a client of this WFM"));
            }
            (policy.assertion_lifetime, policy.onboarding_limit)
        };
        let (wish, vocabulary) = parse(body)?;
        if let Some(wait) = self.over(&device, limit) {
            return Err(Problem::too_many(wait));
        }
        let handle = wish.unwrap_or_else(|| derived(&device));
        let mut handles = lock(&self.handles);
        if handles.get(&handle).is_some_and(|owner| *owner != device) {
            let detail = format!("{handle:?} is a client of another device");
            return Err(Problem::conflict(vocabulary.conflict(), detail));
        }
        let assertion = self
            .assertion(&handle, vocabulary, policy_lifetime, fault)
            .map_err(|error| Problem::bare(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        handles.insert(handle.clone(), device.clone());
        lock(&self.issued).entry(device).or_default().push_back(Instant::now());
        let client = format!("spiffe://{}/margo/wfm/{}/client/{handle}", self.trust_domain, self.wfm_id);
        entry.onboarded = Some(client.clone());
        let mut policy = lock(&self.policy);
        if policy.accept_onboarded {
            policy.accepted.insert(client);
        }
        Ok((StatusCode::CREATED, "application/json", json!({ "bindingAssertion": assertion })))
    }

    fn assertion(
        &self,
        handle: &str,
        vocabulary: Vocabulary,
        lifetime: Duration,
        fault: Option<&Fault>,
    ) -> Result<String> {
        let fault = match fault {
            Some(Fault::Assertion(fault)) => Some(fault),
            _ => None,
        };
        let last = lock(&self.last).clone();
        match (fault, last) {
            (Some(AssertionFault::Garbage), _) => return Ok("not a JWS".to_owned()),
            (Some(AssertionFault::Replayed), Some(last)) => return Ok(last),
            _ => {}
        }
        let own = Signer::read(&self.own)?;
        let other = match fault {
            Some(
                AssertionFault::ForeignSigner(credential)
                | AssertionFault::WrongSignature(credential)
                | AssertionFault::ForeignSignerOwnName(credential),
            ) => Some(Signer::read(credential)?),
            _ => None,
        };
        let signer = other.as_ref().unwrap_or(&own);
        let shown = match fault {
            Some(AssertionFault::WrongSignature(_)) => &own,
            _ => signer,
        };
        let issuer = match fault {
            Some(AssertionFault::ForeignSigner(_)) => signer.spiffe_id(),
            _ => own.spiffe_id(),
        };
        let now: i64 = UnixTime::now().as_secs().try_into().unwrap_or(i64::MAX);
        let mut claims = Claims {
            kind: TYPE.to_owned(),
            issuer,
            audience: self.audience.clone(),
            issued: now,
            expires: now + i64::try_from(lifetime.as_secs()).unwrap_or(300).clamp(1, 300),
            wfm_id: self.wfm_id.clone(),
            handle: handle.to_owned(),
            vocabulary,
        };
        if let Some(fault) = fault {
            fault.bend(&mut claims);
        }
        let assertion = signer.sign(&claims, shown)?;
        *lock(&self.last) = Some(assertion.clone());
        Ok(assertion)
    }

    /// Seconds until a device may have its next assertion, where the limit is reached.
    fn over(&self, device: &str, limit: Option<Limit>) -> Option<u64> {
        let limit = limit?;
        let mut issued = lock(&self.issued);
        let times = issued.entry(device.to_owned()).or_default();
        times.retain(|at| at.elapsed() < limit.window);
        let index = times.len().checked_sub(limit.successes)?;
        let wait = times.get(index).map_or(limit.window, |at| limit.window.saturating_sub(at.elapsed()));
        Some(wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX))
    }
}

/// The handle that is asked for, and the vocabulary: `{}`, or one member with unreserved characters
/// that a SPIFFE ID can have.
fn parse(body: &[u8]) -> std::result::Result<(Option<String>, Vocabulary), Problem> {
    let members: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request(format!("the body is not a JSON object: {error}")))?;
    let mut members = members.into_iter();
    let (vocabulary, value) = match (members.next(), members.next()) {
        (None, _) => return Ok((None, Vocabulary::ClientHandle)),
        (Some((name, value)), None) if name == "clientHandle" => (Vocabulary::ClientHandle, value),
        (Some((name, value)), None) if name == "wfmClientId" => (Vocabulary::WfmClientId, value),
        _ => return Err(Problem::bad_request("the body has clientHandle or wfmClientId and nothing else")),
    };
    match value.as_str() {
        Some(handle) if is_segment(handle) => Ok((Some(handle.to_owned()), vocabulary)),
        _ => Err(Problem::bad_request(format!(
            "{} is a string of letters, digits, . - _ that can be part of a SPIFFE ID",
            vocabulary.member()
        ))),
    }
}

/// The handle of a device that asks for none: always the same.
fn derived(device: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, device.as_bytes());
    format!("client-{}", hex(&digest.as_ref()[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onboarding_body_has_one_known_member() {
        let handle = |text: &str| parse(text.as_bytes()).map(|(handle, _)| handle);
        assert_eq!(handle("{}"), Ok(None));
        assert_eq!(handle(r#"{"clientHandle":"a.B-c_1"}"#), Ok(Some("a.B-c_1".to_owned())));
        let (_, vocabulary) = parse(br#"{"wfmClientId":"a"}"#).unwrap();
        assert_eq!(vocabulary, Vocabulary::WfmClientId);
        for wrong in [
            "",
            "[]",
            "null",
            r#"{"clientHandle":""}"#,
            r#"{"clientHandle":null}"#,
            r#"{"clientHandle":1}"#,
            r#"{"clientHandle":".."}"#,
            r#"{"clientHandle":"a/b"}"#,
            r#"{"clientHandle":"a~b"}"#,
            r#"{"clientHandle":"a","wfmClientId":"a"}"#,
            r#"{"clientHandle":"a","more":1}"#,
            r#"{"ClientHandle":"a"}"#,
            r#"{} {}"#,
        ] {
            assert!(handle(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn derived_handle_is_stable_and_a_segment() {
        let one = derived("spiffe://a.example/margo/device/1");
        assert_eq!(one, derived("spiffe://a.example/margo/device/1"));
        assert_ne!(one, derived("spiffe://a.example/margo/device/2"));
        assert!(is_segment(&one));
    }
}
