//! Blocking client of miaf-agent's sockets, for programs on the device: status, SVID, trust bundle,
//! changes, and signatures by the key, which stays in the agent. It starts no thread.
//!
//! ```no_run
//! use miaf_client::Client;
//!
//! let agent = Client::new("/run/miaf-agent/sign.sock");
//! println!("this device is {}", agent.svid()?.spiffe_id);
//! let for_tls = agent.certified_key()?; // for rustls; the key stays where it is
//! for event in agent.watch()? {
//!     println!("{}", event?.status.identities[0].state);
//! }
//! # Ok::<(), miaf_client::ClientError>(())
//! ```

pub mod api;
mod connection;
mod error;
mod events;
#[cfg(any(fuzzing, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod fuzzing;
pub mod rustls;
pub mod wfm;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::json;

pub use error::ClientError;
pub use events::Watch;

use api::{Accepted, CsrResponse, IdentityName, ProblemCode, SignResponse, StateEvent, Status, SvidDocument};
use connection::Request;
use miaf_spiffe::json::{self, JsonError};
use miaf_spiffe::{Bundle, BundleDocument, BundleError, SpiffeId, TrustDomain};

/// Longer than systemd waits before it restarts an agent that has ended: its sockets stay open
/// meanwhile.
const LIMIT: Duration = Duration::from_secs(20);

/// Client of one of the agent's sockets. Every call opens a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    limit: Duration,
    identity: Option<IdentityName>,
}

/// The trust bundle, which other identities of the device's trust domain are validated against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// The SPIFFE bundle.
    pub document: BundleDocument,
    /// Its X.509 authorities. Without any, no peer is trusted.
    pub anchors: Vec<CertificateDer<'static>>,
}

/// A signature by the key of an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// ECDSA on P-256, in DER.
    pub der: Vec<u8>,
    /// Serial number of the SVID whose key has signed.
    pub serial: String,
}

impl Client {
    /// A client of the socket at this path. The socket decides what its callers may do: read, sign,
    /// or send admin commands.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), limit: LIMIT, identity: None }
    }

    /// Sets the time limit of a response, instead of 20 seconds.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Selects the identity that the calls are about, instead of the default identity: the first of
    /// [`Status::identities`].
    #[must_use]
    pub fn with_identity(self, name: IdentityName) -> Self {
        Self { identity: Some(name), ..self }
    }

    /// The identity that the calls are about. `None`: the default identity.
    pub fn identity(&self) -> Option<&IdentityName> {
        self.identity.as_ref()
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the status of the device and of all its identities.
    ///
    /// # Errors
    /// [`ClientError`], here and below.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status".into())
    }

    /// Returns the current SVID, valid or not.
    ///
    /// # Errors
    /// Refused with 503: there is none yet. 404: there is no such identity, here and below.
    pub fn svid(&self) -> Result<SvidDocument, ClientError> {
        self.get(self.path("svid"))
    }

    /// Returns the trust bundle.
    ///
    /// # Errors
    /// Refused with 503: there is none yet.
    pub fn bundle(&self) -> Result<TrustBundle, ClientError> {
        let body = self.send(Request::Get("/v1/bundle".into()))?;
        // The document does not name its trust domain; any name reads it.
        let any = TrustDomain::parse("any").map_err(|e| ClientError::unintelligible(&e))?;
        let bundle = Bundle::from_stored(&body, &any).map_err(|e| match e {
            BundleError::Json(e) => unreadable(e),
            other => ClientError::unintelligible(&other),
        })?;
        Ok(TrustBundle { document: bundle.to_document(), anchors: bundle.anchors().to_vec() })
    }

    /// Checks whether the device can prove the identity now.
    ///
    /// # Errors
    /// Refused with 503: it cannot, and why.
    pub fn ready(&self) -> Result<(), ClientError> {
        match &self.identity {
            None => self.send(Request::Get("/readyz".into())).map(|_| ()),
            Some(name) => readiness(&self.status()?, name), // /readyz is about the default identity
        }
    }

    /// Subscribes to the state: once at once, then at every change.
    ///
    /// # Errors
    /// As for the others; later errors come from the iterator.
    pub fn watch(&self) -> Result<Watch, ClientError> {
        connection::send(&self.socket, self.limit, Request::Get("/v1/watch".into())).map(Watch::of)
    }

    /// Returns status, SVIDs and trust bundle of one moment: the first event of
    /// [`watch`](Self::watch).
    ///
    /// # Errors
    /// As for `watch`.
    pub fn state(&self) -> Result<StateEvent, ClientError> {
        let mut watch = self.watch()?;
        let first = watch.next_before(Instant::now().checked_add(self.limit));
        first.unwrap_or_else(|| Err(ClientError::Broken("it has ended".into())))
    }

    /// Requests a signature of a SHA-256 digest, on the signing or the administration socket.
    ///
    /// `serial` is that of the SVID whose key is to sign: the current one, or the one before it.
    /// Pass it wherever the SVID is sent, too, since the SVID may be renewed at any time.
    ///
    /// # Errors
    /// Refused with 409: that SVID is too old, fetch it anew. 429: the user has too many requests.
    /// 503: the key cannot be used.
    pub fn sign(&self, digest: &[u8; 32], serial: Option<&str>) -> Result<Signature, ClientError> {
        let mut body = json!({ "algorithm": "ES256", "digest": BASE64.encode(digest) });
        if let (Some(serial), Some(body)) = (serial, body.as_object_mut()) {
            body.insert("serial".into(), serial.into());
        }
        let signed: SignResponse = self.post(self.path("sign"), body.to_string())?;
        let der = BASE64.decode(signed.signature);
        let der = der.map_err(|_| ClientError::Unintelligible("the signature is not Base64".into()))?;
        Ok(Signature { der, serial: signed.serial })
    }

    /// Sends the admin command to try again now what was refused or is being waited for, on the
    /// administration socket.
    ///
    /// # Errors
    /// Refused with 409: the command does not apply now.
    pub fn retry(&self) -> Result<Accepted, ClientError> {
        self.admin_command("/v1/retry".into(), String::new())
    }

    /// The same, and allows that the key of the identity be replaced, should it be lost.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry).
    pub fn retry_with_new_key(&self) -> Result<Accepted, ClientError> {
        let body = match &self.identity {
            Some(identity) => json!({ "newKey": true, "identity": identity }),
            None => json!({ "newKey": true }),
        };
        self.admin_command("/v1/retry".into(), body.to_string())
    }

    /// Sends the admin command to renew the identity now, on the administration socket.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry).
    pub fn renew(&self) -> Result<Accepted, ClientError> {
        self.admin_command(self.named_path("renew")?, String::new())
    }

    /// Sends the admin command to retire the identity, which is in the trust domain `leaves`, and
    /// to request a new one under the configuration; on the administration socket.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry). Refused with 409 also where the identity is in another trust
    /// domain.
    pub fn retire(&self, leaves: &TrustDomain) -> Result<Accepted, ClientError> {
        let body = json!({ "trustDomain": leaves }).to_string();
        self.admin_command(self.named_path("retire")?, body)
    }

    /// Requests a certificate signing request of an identity whose SVIDs the operator brings
    /// (`enroll = "manual"`), on the administration socket: a PKCS#10 in PEM. The agent creates the
    /// key, if there is none for the next SVID yet.
    ///
    /// `spiffe_id` is put into it as the one URI, which the released MIS demands. Without it, the
    /// agent takes the one that it knows: of the configuration, or of the current SVID.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry). Refused with 409: the identity is obtained in another way.
    pub fn csr(&self, spiffe_id: Option<&SpiffeId>) -> Result<String, ClientError> {
        let body = match spiffe_id {
            Some(id) => json!({ "spiffeId": id }),
            None => json!({}),
        };
        let response: Result<CsrResponse, _> = self.post(self.named_path("csr")?, body.to_string());
        response.map(|response| response.csr).map_err(ClientError::of_admin_command)
    }

    /// Sends the certificate chain that an operator brings for an identity
    /// (`enroll = "manual"`), on the administration socket: PEM, leaf first, at most 64 KiB.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry). Refused with 409: the chain breaks a rule, or the identity is
    /// obtained in another way.
    pub fn install(&self, chain_pem: &str) -> Result<Accepted, ClientError> {
        let body = json!({ "certificateChainPem": chain_pem }).to_string();
        self.admin_command(self.named_path("install")?, body)
    }

    /// Hands an enrollment token to the agent, for an identity that enrolls over EST (`enroll =
    /// "est"`), on the administration socket: one line, `username:secret`, at most 1,024 bytes.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry). Refused with 409: it is no token, it is used up, or the identity
    /// is obtained in another way.
    pub fn enroll(&self, token: &str) -> Result<Accepted, ClientError> {
        self.admin_command(self.named_path("enroll")?, json!({ "token": token }).to_string())
    }

    fn path(&self, resource: &str) -> String {
        match &self.identity {
            Some(name) => format!("/v1/identities/{name}/{resource}"),
            None => format!("/v1/{resource}"),
        }
    }

    /// Path of a command, which names its identity always.
    fn named_path(&self, resource: &str) -> Result<String, ClientError> {
        if self.identity.is_some() {
            return Ok(self.path(resource));
        }
        let status = self.status().map_err(ClientError::of_admin_command)?;
        let first = status.identities.into_iter().next();
        let name = first.ok_or_else(|| ClientError::unintelligible(&"the status names no identity"))?.name;
        Ok(self.clone().with_identity(name).path(resource))
    }

    fn admin_command(&self, path: String, body: String) -> Result<Accepted, ClientError> {
        self.post(path, body).map_err(ClientError::of_admin_command)
    }

    fn get<T: DeserializeOwned>(&self, path: String) -> Result<T, ClientError> {
        read(&self.send(Request::Get(path))?)
    }

    fn post<T: DeserializeOwned>(&self, path: String, body: String) -> Result<T, ClientError> {
        read(&self.send(Request::Post(path, body))?)
    }

    fn send(&self, request: Request) -> Result<Vec<u8>, ClientError> {
        connection::send(&self.socket, self.limit, request)?.body()
    }
}

/// Whether an identity is ready. The errors are those that the agent has for such a request.
fn readiness(status: &Status, name: &IdentityName) -> Result<(), ClientError> {
    let Some(identity) = status.identity(Some(name)) else {
        return Err(ClientError::unknown_identity(name));
    };
    if identity.ready {
        return Ok(());
    }
    let detail = format!("the identity \"{name}\" cannot be proven now: its state is {}", identity.state);
    let error = identity.error(status.last_error.as_ref());
    let hint = error.and_then(|error| error.hint.as_deref()).unwrap_or("See the reason in the status");
    let why = error.map(|error| format!(". {}", error.detail.as_ref().unwrap_or(&error.title)));
    let detail = format!("{detail}{}", why.unwrap_or_default());
    Err(ClientError::refused(503, Some(ProblemCode::NotAvailable.into()), &detail, Some(hint)))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    json::read(body).map_err(unreadable)
}

fn unreadable(e: JsonError) -> ClientError {
    match e.is_incomplete() {
        true => ClientError::Broken("it ended the connection half-way".into()),
        false => ClientError::unintelligible(&e),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_that_of_the_selected_identity() {
        let identity = |name: &str, ready: bool, error: serde_json::Value| {
            json!({
                "name": name, "state": if ready { "active" } else { "expired" }, "ready": ready,
                "spiffeId": null, "svid": null, "lastError": error,
                "key": { "provider": "tpm", "protection": null, "algorithm": null }
            })
        };
        let error = json!({
            "code": "denied", "title": "Forbidden", "detail": "not on the list", "hint": "Ask the operator",
            "status": 403, "instance": null, "at": "2026-01-01T00:00:00Z", "permanent": false
        });
        let status = json!({
            "trustDomain": null, "bundle": null, "bootstrap": null, "initialTrust": null, "lastError": null,
            "identities": [
                identity("device", true, json!(null)), identity("wfm", false, error),
                identity("other", false, json!(null))
            ]
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let readiness = |name: &str| readiness(&status, &IdentityName::parse(name).unwrap());
        readiness("device").unwrap();
        for (name, status, detail, hint) in [
            ("wfm", 503, "its state is expired. not on the list", "Ask the operator"),
            ("other", 503, "its state is expired", "See the reason in the status"),
            ("none", 404, "there is no identity \"none\"", "Use a name of the status"),
        ] {
            let refused = readiness(name).unwrap_err();
            assert!(refused.to_string().ends_with(detail), "{refused}");
            assert_eq!(refused.hint().unwrap(), hint);
            assert!(matches!(refused, ClientError::Refused { status: got, .. } if got == status));
        }
    }
}
