//! A client of the agent's sockets, for programs on the device: who it is, whom it trusts, what changes, and the use of its
//! key. It blocks, and needs nothing running beside it.
//!
//! ```no_run
//! use miaf_client::Client;
//!
//! let agent = Client::new("/run/miaf-agent/sign.sock");
//! println!("this device is {}", agent.svid()?.spiffe_id);
//! let for_tls = agent.certified_key()?; // for rustls; the key stays where it is
//! for state in agent.watch()? {
//!     println!("{}", state?.status.state);
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

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::json;

pub use error::ClientError;
pub use events::Watch;

use api::{Accepted, SignResponse, Status, SvidDocument};
use connection::Request;
use miaf_spiffe::json::{self, JsonError};
use miaf_spiffe::{Bundle, BundleDocument, BundleError, TrustDomain};

/// Longer than systemd waits before it starts an agent again that has ended: its sockets stay open meanwhile.
const LIMIT: Duration = Duration::from_secs(20);

/// One of the agent's sockets. Every call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    limit: Duration,
}

/// What other identities of the device's trust domain are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// The SPIFFE bundle.
    pub document: BundleDocument,
    /// Its X.509 authorities. There may be none: then no peer is trusted.
    pub anchors: Vec<CertificateDer<'static>>,
}

/// What the device's key has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// ECDSA on P-256, in DER.
    pub der: Vec<u8>,
    /// Serial number of the SVID whose key has signed.
    pub serial: String,
}

impl Client {
    /// The socket at this path. What can be asked there depends on which one it is.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), limit: LIMIT }
    }

    /// Waits no longer than this for an answer, instead of 20 seconds.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Where it asks.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where the device stands.
    ///
    /// # Errors
    /// [`ClientError`], here and below.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status")
    }

    /// The identity that is held, valid or not.
    ///
    /// # Errors
    /// Refused with 503: there is none yet.
    pub fn svid(&self) -> Result<SvidDocument, ClientError> {
        self.get("/v1/svid")
    }

    /// The trust bundle.
    ///
    /// # Errors
    /// Refused with 503: there is none yet.
    pub fn bundle(&self) -> Result<TrustBundle, ClientError> {
        let body = self.ask(Request::Get("/v1/bundle"))?;
        // The document does not name its trust domain; any name reads it.
        let any = TrustDomain::parse("any").map_err(|e| ClientError::unintelligible(&e))?;
        let bundle = Bundle::from_stored(&body, &any).map_err(|e| match e {
            BundleError::Json(e) => unreadable(e),
            other => ClientError::unintelligible(&other),
        })?;
        Ok(TrustBundle { document: bundle.to_document(), anchors: bundle.anchors().to_vec() })
    }

    /// Whether the device can prove who it is now.
    ///
    /// # Errors
    /// Refused with 503: it cannot, and why.
    pub fn ready(&self) -> Result<(), ClientError> {
        self.ask(Request::Get("/readyz")).map(|_| ())
    }

    /// The whole state at once, then again at every change.
    ///
    /// # Errors
    /// As for the others; what goes wrong later, the iterator says.
    pub fn watch(&self) -> Result<Watch, ClientError> {
        connection::send(&self.socket, self.limit, Request::Get("/v1/watch")).map(Watch::of)
    }

    /// Has the device's key sign a SHA-256 digest: on the socket for signatures, or that for orders.
    ///
    /// With the serial number of an SVID it is that one's key, or none: name it where the SVID is shown too, since another
    /// may take its place at any time. The one before is signed for until the next.
    ///
    /// # Errors
    /// Refused with 409: that SVID is too old, fetch it anew. 429: too many of this user wait. 503: the key cannot be used.
    pub fn sign(&self, digest: &[u8; 32], serial: Option<&str>) -> Result<Signature, ClientError> {
        let mut body = json!({ "algorithm": "ES256", "digest": BASE64.encode(digest) });
        if let (Some(serial), Some(body)) = (serial, body.as_object_mut()) {
            body.insert("serial".into(), serial.into());
        }
        let signed: SignResponse = self.post("/v1/sign", body.to_string())?;
        let der = BASE64.decode(signed.signature);
        let der = der.map_err(|_| ClientError::Unintelligible("the signature is not Base64".into()))?;
        Ok(Signature { der, serial: signed.serial })
    }

    /// Has the agent try again now, on the socket for orders; with a new key, where the one there is is lost.
    ///
    /// # Errors
    /// Refused with 409: the order makes no sense as things stand.
    pub fn retry(&self, new_key: bool) -> Result<Accepted, ClientError> {
        let body = if new_key { json!({ "newKey": true }).to_string() } else { String::new() };
        self.order("/v1/retry", body)
    }

    /// Has the agent renew the identity now, on the socket for orders.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry).
    pub fn renew(&self) -> Result<Accepted, ClientError> {
        self.order("/v1/renew", String::new())
    }

    /// Has the device leave this trust domain and start as new, on the socket for orders.
    ///
    /// # Errors
    /// As for [`retry`](Self::retry).
    pub fn reset_identity(&self, leaves: &TrustDomain) -> Result<Accepted, ClientError> {
        self.order("/v1/reset-identity", json!({ "trustDomain": leaves }).to_string())
    }

    fn order(&self, path: &'static str, body: String) -> Result<Accepted, ClientError> {
        self.post(path, body).map_err(ClientError::of_admin_command)
    }

    fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, ClientError> {
        read(&self.ask(Request::Get(path))?)
    }

    fn post<T: DeserializeOwned>(&self, path: &'static str, body: String) -> Result<T, ClientError> {
        read(&self.ask(Request::Post(path, body))?)
    }

    fn ask(&self, request: Request) -> Result<Vec<u8>, ClientError> {
        connection::send(&self.socket, self.limit, request)?.body()
    }
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
