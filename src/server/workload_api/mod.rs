//! The SPIFFE Workload API, version 1: trust bundles for everyone who may connect, and the SVID
//! with its key for those users to whom the configuration gives a software key. What is in the TPM
//! stays there.
//!
//! A stream tells what there is at once, and then each change of it, and only that. What was told
//! stays so until something else is: an SVID that expires or a key that cannot be read end no
//! stream, and the next SVID comes on it.
//!
//! PERMISSION_DENIED is for a caller to whom this configuration gives nothing, before the first
//! enrollment as after it: some clients never ask again then. It ends a stream when the caller is
//! no longer entitled (section 5.2.1: redaction). UNAVAILABLE has clients come back (SPIFFE
//! Workload Endpoint, section 6): while an identity or a bundle is still to come, when one is
//! withdrawn until the next, and when the agent ends. That something is withdrawn cannot be told
//! otherwise: clients keep what they have until they are told something else.

mod messages;

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::try_unfold;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderName;
use hyper::{Request, Response, StatusCode};
use nix::unistd::User;
use rustls_pki_types::CertificateDer;
use tokio::task::spawn_blocking;

use crate::digest::sha256;
use crate::keys::{Key, KeyFile, Protection, ProviderKind};
use crate::platform::clock;
use crate::platform::log::AUDIT;
use crate::publish::Identity;
use crate::publish::Snapshot;
use crate::server::calls::CallPermit;
use crate::server::context::Lines;
use crate::server::grpc::{self, Code, Status};
use crate::server::peer::{Caller, Closing};
use crate::server::protobuf::Message;
use crate::server::response::{Body, problem};
use crate::spiffe::svid::X509Svid;
use crate::spiffe::{Bundle, TrustDomain};

/// What its paths begin with: the service has no package.
pub(super) const PREFIX: &str = "/SpiffeWorkloadAPI/";
/// With the value `true` on every request (SPIFFE Workload Endpoint, section 3): whoever is tricked into sending a request
/// somewhere is hardly tricked into sending this along.
pub(super) const SECURITY_HEADER: HeaderName = HeaderName::from_static("workload.spiffe.io");

pub(super) async fn respond(
    request: &Request<()>,
    body: &mut Incoming,
    caller: Caller,
    permit: CallPermit,
    lines: &Lines,
    closing: &Closing,
) -> Result<Response<Body>, Status> {
    if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
        let why = "A request to the SPIFFE Workload API carries the metadata workload.spiffe.io: true.";
        return Err(Status::new(Code::InvalidArgument, why));
    }
    let asked = Asked::by(request.uri().path())?;
    grpc::read_message(body).await?; // no request message of these methods has a field that matters here
    let mut stream = Stream::new(asked, caller, permit, lines, closing);
    // Waited for here, so that a caller who gets nothing learns it as the response to the call, and
    // not on a stream.
    let first = stream.next().await?;
    Ok(grpc::stream(try_unfold((Some(first), stream), |(first, mut stream)| async {
        let message = match first {
            Some(first) => first,
            None => stream.next().await?,
        };
        Ok(Some((message, (None, stream))))
    })))
}

/// Refuses a request to the Workload API that is not gRPC.
pub(super) fn not_grpc() -> Response<Body> {
    let detail = "The SPIFFE Workload API is gRPC: HTTP/2 from the first byte on, POST, and the content type \
                  application/grpc. A SPIFFE library does that. For curl there are GET /v1/svid and GET /v1/bundle.";
    problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
}

/// What is told on a stream.
#[derive(Clone, Copy, Debug)]
enum Asked {
    X509Svid,
    X509Bundles,
    JwtBundles,
}

impl Asked {
    fn by(path: &str) -> Result<Self, Status> {
        let why = match path.strip_prefix(PREFIX).unwrap_or_default() {
            "FetchX509SVID" => return Ok(Self::X509Svid),
            "FetchX509Bundles" => return Ok(Self::X509Bundles),
            "FetchJWTBundles" => return Ok(Self::JwtBundles),
            "FetchJWTSVID" => {
                "This device has no JWT-SVIDs: a Margo Identity Service issues X.509-SVIDs only."
            }
            "ValidateJWTSVID" => {
                "No JWT-SVID is valid in this trust domain: a Margo Identity Service issues X.509-SVIDs only."
            }
            _ => "There is no such method here.",
        };
        Err(Status::new(Code::Unimplemented, why))
    }
}

/// One call that is being answered.
struct Stream {
    asked: Asked,
    caller: Caller,
    lines: Lines,
    closing: Closing,
    told: Option<Told>,
    /// The leaf certificate whose key was given on it last.
    key_of: Option<CertificateDer<'static>>,
    _permit: CallPermit,
}

/// What the caller has.
struct Told {
    /// Of the message, without the key.
    digest: [u8; 32],
    /// The users who were given the key when it was sent.
    key_users: Arc<[String]>,
}

/// Why there is nothing to be told.
enum Withheld {
    /// For now: a stream keeps what it has told.
    ForNow(Status),
    /// What was told holds no longer: a stream ends.
    Withdrawn(Status),
}

impl Withheld {
    fn into_status(self) -> Status {
        match self {
            Self::ForNow(status) | Self::Withdrawn(status) => status,
        }
    }
}

impl From<Status> for Withheld {
    fn from(status: Status) -> Self {
        if status.code == Code::Unavailable { Self::ForNow(status) } else { Self::Withdrawn(status) }
    }
}

impl Stream {
    fn new(asked: Asked, caller: Caller, permit: CallPermit, lines: &Lines, closing: &Closing) -> Self {
        let mut lines = lines.clone();
        lines.snapshots.mark_changed(); // what there is at once
        Self { asked, caller, lines, closing: closing.clone(), told: None, key_of: None, _permit: permit }
    }

    /// The next message, as soon as there is another to be told than the last. It is the whole of what there is to tell
    /// (SPIFFE Workload API, section 4.3).
    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            tokio::select! {
                biased;
                _ = self.closing.changed() => return Err(grpc::closing()),
                changed = self.lines.snapshots.changed() => changed.map_err(|_| grpc::closing())?,
            }
            let snapshot = self.lines.snapshots.borrow_and_update().clone();
            match self.news(&snapshot).await {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(Withheld::ForNow(_)) if self.told.is_some() => {}
                Err(withheld) => return Err(withheld.into_status()),
            }
        }
    }

    async fn news(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Withheld> {
        match self.asked {
            Asked::X509Svid => self.x509_svid(snapshot).await,
            Asked::X509Bundles => {
                let bundle = bundle(snapshot)?;
                let message = match snapshot.kept.x509_bundles.get() {
                    Some(message) => message.clone(),
                    None => {
                        let message = messages::x509_bundles(bundle.trust_domain(), bundle.anchors());
                        let message = grpc::framed(&message)?;
                        snapshot.kept.x509_bundles.get_or_init(|| message).clone()
                    }
                };
                Ok(self.if_new(message))
            }
            Asked::JwtBundles => {
                let trust_domain = trust_domain(snapshot)?;
                Ok(self.if_new(grpc::framed(&messages::no_jwt_bundles(trust_domain))?))
            }
        }
    }

    fn if_new(&mut self, message: Bytes) -> Option<Bytes> {
        let digest = sha256(&message);
        if self.told.as_ref().is_some_and(|told| told.digest == digest) {
            return None;
        }
        self.told = Some(Told { digest, key_users: Arc::default() });
        Some(message)
    }

    /// The SVID with its key (section 5.2.1).
    async fn x509_svid(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Withheld> {
        let identity = snapshot.identity.as_ref().ok_or_else(|| nothing_there("SVID", snapshot));
        let (identity, bundle) = match (identity, bundle(snapshot)) {
            (Ok(identity), Ok(bundle)) => (identity, bundle),
            (Err(withheld), _) | (_, Err(withheld)) => {
                self.check_entitlement(snapshot).await?;
                return Err(withheld);
            }
        };
        let message = |key: &[u8]| messages::x509_svid(&identity.svid, key, bundle.anchors());
        let digest = sha256(&message(&[]));
        let is_told = self.told.as_ref().is_some_and(|told| told.digest == digest);
        if is_told && self.told.as_ref().is_some_and(|told| told.key_users == snapshot.key_users) {
            return Ok(None);
        }
        let key = self.key(identity, snapshot).await?;
        self.told = Some(Told { digest, key_users: snapshot.key_users.clone() });
        if is_told { Ok(None) } else { Ok(Some(grpc::framed(&message(&key))?)) }
    }

    /// Whether this caller would be given the key, were everything there that goes with it.
    async fn check_entitlement(&self, snapshot: &Snapshot) -> Result<(), Status> {
        if !snapshot.is_configured() {
            return Ok(()); // nothing says yet who may have what
        }
        let (provider, users, uid) = (snapshot.provider, snapshot.key_users.clone(), self.caller.uid);
        let entitled = async {
            match &snapshot.identity {
                Some(identity) => may_leave(&*identity.key)?,
                None if provider == ProviderKind::Tpm.as_str() => return Err(in_tpm()),
                None => {}
            }
            self.with_turn(move || may_have(uid, &users)).await
        };
        entitled.await.inspect_err(|status| self.record_refusal(status, None))
    }

    /// The key in PKCS#8, if this caller may have it and it is of use. That it leaves the agent is
    /// recorded in the audit log once per SVID and stream, and for further streams of the process
    /// once a minute; and so is a refusal, which ends the stream.
    async fn key(&mut self, identity: &Arc<Identity>, snapshot: &Snapshot) -> Result<Message, Status> {
        let given = self.read_key(identity, snapshot).await;
        match &given {
            Ok(_) => self.record_key(&identity.svid),
            Err(status) => self.record_refusal(status, Some(&identity.svid)),
        }
        given
    }

    fn record_key(&mut self, svid: &X509Svid) {
        let leaf = svid.chain().leaf();
        if self.key_of.as_ref() == Some(leaf) {
            return; // this stream has been given it before
        }
        self.key_of = Some(leaf.clone());
        self.lines.counters.key_given();
        self.lines.keys_given.record(self.caller, svid);
    }

    fn record_refusal(&self, status: &Status, svid: Option<&X509Svid>) {
        if status.code != Code::PermissionDenied {
            return; // the caller is entitled, and the key is of no use now
        }
        let Caller { uid, pid, .. } = self.caller;
        self.lines.keys_given.end(self.caller);
        self.lines.counters.key_refused();
        if self.lines.refusals.is_news(uid, "key", Instant::now()) {
            tracing::info!(
                target: AUDIT, audit = "key", uid, pid,
                spiffe_id = svid.map(|svid| tracing::field::display(svid.spiffe_id())),
                serial = svid.map(X509Svid::serial), why = %status.why,
                "the device's key is not given to a local program"
            );
        }
    }

    async fn read_key(&self, identity: &Arc<Identity>, snapshot: &Snapshot) -> Result<Message, Status> {
        may_leave(&*identity.key)?;
        let (asked_for, users) = (identity.clone(), snapshot.key_users.clone());
        let (key_is_lost, uid) = (snapshot.key_is_lost, self.caller.uid);
        self.with_turn(move || {
            may_have(uid, &users)?;
            is_of_use(&asked_for, key_is_lost)?;
            pkcs8(&*asked_for.key)
        })
        .await
    }

    /// Runs what may block, for as few callers at once as [`Lines::key_readers`] allows.
    async fn with_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = self.lines.key_readers.take(self.caller.uid).await;
        let done = spawn_blocking(move || {
            let _turn = turn; // to the end, also when nobody waits for it any more
            work()
        });
        done.await.unwrap_or_else(|_| Err(grpc::closing()))
    }
}

/// A bundle without anchors means that nobody is to be trusted any more (miaf-v0 B3). The API has no words for it
/// (section 4.5): there is none until the next.
fn bundle(snapshot: &Snapshot) -> Result<&Bundle, Withheld> {
    match &snapshot.bundle {
        None => Err(nothing_there("trust bundle", snapshot)),
        Some(held) if held.bundle.anchors().is_empty() => {
            let why = "The Margo Identity Service has emptied the trust bundle: nobody is to be trusted in this trust domain.";
            Err(Withheld::Withdrawn(Status::new(Code::Unavailable, why)))
        }
        Some(held) => Ok(&held.bundle),
    }
}

fn trust_domain(snapshot: &Snapshot) -> Result<&TrustDomain, Withheld> {
    snapshot.trust_domain.as_ref().ok_or_else(|| nothing_there("trust domain", snapshot))
}

/// Not yet, or not any more: where it is certain that the device has no identity, what it had
/// before is withdrawn.
fn nothing_there(what: &str, snapshot: &Snapshot) -> Withheld {
    let why = format!("This device has no {what} now. miaf-agent status says what it is waiting for.");
    let status = Status::new(Code::Unavailable, why);
    if snapshot.is_known && snapshot.identity.is_none() {
        Withheld::Withdrawn(status)
    } else {
        Withheld::ForNow(status)
    }
}

fn may_leave(key: &dyn Key) -> Result<(), Status> {
    if key.protection() != Protection::Hardware { Ok(()) } else { Err(in_tpm()) }
}

fn in_tpm() -> Status {
    let why = "The key of this device is made in its TPM and cannot leave it. Have it sign instead: by POST /v1/sign on the \
               agent's signing socket, or by the key.pem among its published files with OpenSSL's tpm2 provider. \
               FetchX509Bundles is there for everyone.";
    Status::new(Code::PermissionDenied, why)
}

fn may_have(uid: Option<u32>, users: &[String]) -> Result<(), Status> {
    let denied = |why: String| Err(Status::new(Code::PermissionDenied, why));
    let Some(uid) = uid else { return denied("The operating system does not say which user asks.".into()) };
    for user in users {
        if is_user(user, uid)? {
            return Ok(());
        }
    }
    denied(format!(
        "The user with the number {uid} is not given the key of this device. An operator can name it in the agent's \
         configuration, [workload_api] key_users. FetchX509Bundles is there for everyone."
    ))
}

/// Whether that is the user's number, or the number of the user with that name.
fn is_user(user: &str, uid: u32) -> Result<bool, Status> {
    if let Ok(number) = user.parse::<u32>() {
        return Ok(number == uid);
    }
    match User::from_name(user) {
        Ok(found) => Ok(found.is_some_and(|found| found.uid.as_raw() == uid)),
        Err(e) => {
            Err(Status::new(Code::Unavailable, format!("The user \"{user}\" cannot be looked up: {e}.")))
        }
    }
}

/// Nobody can use an SVID out of its time, or without its key.
fn is_of_use(identity: &Identity, key_is_lost: bool) -> Result<(), Status> {
    let svid = &identity.svid;
    let why = if key_is_lost {
        "The key of this device's SVID is lost. miaf-agent status says what becomes of it.".into()
    } else if !identity.is_valid(clock::now().wall) {
        let (from, until) = (svid.not_before(), svid.until());
        format!(
            "This device's SVID is valid from {from} until {until}, which is not now. miaf-agent status says what becomes \
             of it."
        )
    } else {
        return Ok(());
    };
    Err(Status::new(Code::Unavailable, why))
}

fn pkcs8(key: &dyn Key) -> Result<Message, Status> {
    let unusable = |why: &dyn std::fmt::Display| {
        Status::new(Code::Unavailable, format!("The key of this device cannot be used: {why}."))
    };
    match key.to_key_file().map_err(|e| unusable(&e))? {
        KeyFile::Secret { der, .. } => Ok(der),
        KeyFile::Tss2(_) => Err(unusable(&"it is in the TPM")), // seen before
    }
}
