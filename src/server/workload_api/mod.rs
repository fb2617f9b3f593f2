//! The SPIFFE Workload API, version 1: trust bundles for every peer, and the SVID with its key for
//! the users to whom the configuration gives a software key. A key in the TPM stays there.
//!
//! A stream sends the current state at once, and then each change of it. What was sent stays valid
//! until the next message: an SVID that expires or a key that cannot be read ends no stream, and
//! the next SVID comes on it.
//!
//! PERMISSION_DENIED is for a peer to which this configuration gives nothing, before the first
//! enrollment as after it: some clients never try again then. It ends a stream when the peer is no
//! longer entitled (section 5.2.1: redaction). UNAVAILABLE has clients retry (SPIFFE Workload
//! Endpoint, section 6): while an identity or a bundle is still to come, when one is withdrawn
//! until the next, and when the agent shuts down. The API has no other way to withdraw something:
//! clients keep what they have until the next message.

mod messages;

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::try_unfold;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderName;
use hyper::{Request, StatusCode};
use nix::unistd::User;
use rustls_pki_types::CertificateDer;
use tokio::task::spawn_blocking;

use crate::keys::{Key, KeyFile, Protection, ProviderKind};
use crate::platform::clock;
use crate::platform::log::AUDIT;
use crate::publish::{Snapshot, SvidAndKey};
use crate::server::call_limit::CallPermit;
use crate::server::context::ServerContext;
use crate::server::grpc::{self, Code, GrpcStatus};
use crate::server::peer::{Peer, ShutdownSignal};
use crate::server::protobuf::Message;
use crate::server::response::{HttpResponse, problem};
use miaf_client::api::{IdentityName, ProblemCode};
use miaf_spiffe::digest::sha256;
use miaf_spiffe::svid::X509Svid;
use miaf_spiffe::{Bundle, TrustDomain};

/// Prefix of the paths of its methods: the service has no package.
pub(super) const PREFIX: &str = "/SpiffeWorkloadAPI/";
/// Header with the value `true` on every request (SPIFFE Workload Endpoint, section 3): a program
/// that is tricked into sending a request somewhere is hardly tricked into sending this along.
pub(super) const SECURITY_HEADER: HeaderName = HeaderName::from_static("workload.spiffe.io");

/// Responds to a call of a method with a stream of messages.
pub(super) async fn respond(
    request: &Request<()>,
    body: &mut Incoming,
    peer: Peer,
    permit: CallPermit,
    context: &ServerContext,
    shutdown: &ShutdownSignal,
) -> Result<HttpResponse, GrpcStatus> {
    if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
        let message = "A request to the SPIFFE Workload API carries the metadata workload.spiffe.io: true.";
        return Err(GrpcStatus::new(Code::InvalidArgument, message));
    }
    let method = Method::parse(request.uri().path())?;
    grpc::read_message(body).await?; // no request message of these methods has a field that matters here
    let mut stream = MessageStream::new(method, peer, permit, context, shutdown);
    // Waited for here, so that a peer that gets no message receives the status as the response to
    // the call, and not on a stream.
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
pub(super) fn not_grpc() -> HttpResponse {
    let detail = "the SPIFFE Workload API is gRPC: HTTP/2 from the first byte on, POST, and the content type \
                  application/grpc";
    let hint = "Use a SPIFFE library; or, for curl, GET /v1/svid and GET /v1/bundle";
    problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, ProblemCode::InvalidRequest, detail, Some(hint))
}

/// A method that the agent implements.
#[derive(Clone, Copy, Debug)]
enum Method {
    X509Svid,
    X509Bundles,
    JwtBundles,
}

impl Method {
    fn parse(path: &str) -> Result<Self, GrpcStatus> {
        let message = match path.strip_prefix(PREFIX).unwrap_or_default() {
            "FetchX509SVID" => return Ok(Self::X509Svid),
            "FetchX509Bundles" => return Ok(Self::X509Bundles),
            "FetchJWTBundles" => return Ok(Self::JwtBundles),
            "FetchJWTSVID" => {
                "This device has no JWT-SVIDs: a Margo Identity Service issues X.509-SVIDs only."
            }
            "ValidateJWTSVID" => {
                "No JWT-SVID is valid in this trust domain: a Margo Identity Service issues X.509-SVIDs only."
            }
            _ => "Unknown method.",
        };
        Err(GrpcStatus::new(Code::Unimplemented, message))
    }
}

/// The messages of one call.
struct MessageStream {
    method: Method,
    peer: Peer,
    context: ServerContext,
    shutdown: ShutdownSignal,
    last: Option<Sent>,
    /// The leaf certificate whose key was sent last on this stream.
    key_of: Option<CertificateDer<'static>>,
    _permit: CallPermit,
}

/// The message that was sent last.
struct Sent {
    /// Digest of the message, without the key.
    digest: [u8; 32],
    /// The users who were given the key when it was sent.
    key_users: Arc<[String]>,
}

/// The reason why there is no message.
enum Unavailable {
    /// For now: a stream stays open.
    ForNow(GrpcStatus),
    /// What was sent is no longer valid: a stream ends.
    Withdrawn(GrpcStatus),
}

impl Unavailable {
    fn into_status(self) -> GrpcStatus {
        match self {
            Self::ForNow(status) | Self::Withdrawn(status) => status,
        }
    }
}

impl From<GrpcStatus> for Unavailable {
    fn from(status: GrpcStatus) -> Self {
        if status.code == Code::Unavailable { Self::ForNow(status) } else { Self::Withdrawn(status) }
    }
}

impl MessageStream {
    fn new(
        method: Method,
        peer: Peer,
        permit: CallPermit,
        context: &ServerContext,
        shutdown: &ShutdownSignal,
    ) -> Self {
        let mut context = context.clone();
        context.snapshots.mark_changed(); // the current state at once
        Self { method, peer, context, shutdown: shutdown.clone(), last: None, key_of: None, _permit: permit }
    }

    /// Waits for the next message: one that differs from the last. Each has the whole state (SPIFFE
    /// Workload API, section 4.3).
    async fn next(&mut self) -> Result<Bytes, GrpcStatus> {
        loop {
            tokio::select! {
                biased;
                _ = self.shutdown.changed() => return Err(grpc::shutting_down()),
                changed = self.context.snapshots.changed() => changed.map_err(|_| grpc::shutting_down())?,
            }
            let snapshot = self.context.snapshots.borrow_and_update().clone();
            match self.message(&snapshot).await {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(Unavailable::ForNow(_)) if self.last.is_some() => {}
                Err(unavailable) => return Err(unavailable.into_status()),
            }
        }
    }

    /// The message for a snapshot, if it differs from the last.
    async fn message(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Unavailable> {
        match self.method {
            Method::X509Svid => self.x509_svid(snapshot).await,
            Method::X509Bundles => {
                let bundle = bundle(snapshot)?;
                let message = match snapshot.cache.x509_bundles.get() {
                    Some(message) => message.clone(),
                    None => {
                        let message = messages::x509_bundles(bundle.trust_domain(), bundle.anchors());
                        let message = grpc::framed(&message)?;
                        snapshot.cache.x509_bundles.get_or_init(|| message).clone()
                    }
                };
                Ok(self.if_new(message))
            }
            Method::JwtBundles => {
                let trust_domain = trust_domain(snapshot)?;
                Ok(self.if_new(grpc::framed(&messages::empty_jwt_bundle(trust_domain))?))
            }
        }
    }

    fn if_new(&mut self, message: Bytes) -> Option<Bytes> {
        let digest = sha256(&message);
        if self.last.as_ref().is_some_and(|last| last.digest == digest) {
            return None;
        }
        self.last = Some(Sent { digest, key_users: Arc::default() });
        Some(message)
    }

    /// The SVID with its key (section 5.2.1).
    async fn x509_svid(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Unavailable> {
        let current = snapshot.default_identity.current.as_ref().ok_or_else(|| missing("SVID", snapshot));
        let (current, bundle) = match (current, bundle(snapshot)) {
            (Ok(current), Ok(bundle)) => (current, bundle),
            (Err(unavailable), _) | (_, Err(unavailable)) => {
                self.check_entitlement(snapshot).await?;
                return Err(unavailable);
            }
        };
        let message = |key: &[u8]| messages::x509_svid(&current.svid, key, bundle.anchors());
        let digest = sha256(&message(&[]));
        let is_sent = self.last.as_ref().is_some_and(|last| last.digest == digest);
        if is_sent && self.last.as_ref().is_some_and(|last| last.key_users == snapshot.key_users) {
            return Ok(None);
        }
        let key = self.key(current, snapshot).await?;
        self.last = Some(Sent { digest, key_users: snapshot.key_users.clone() });
        if is_sent { Ok(None) } else { Ok(Some(grpc::framed(&message(&key))?)) }
    }

    /// Checks whether this peer would be given the key, while a part of the message is missing.
    async fn check_entitlement(&self, snapshot: &Snapshot) -> Result<(), GrpcStatus> {
        if !snapshot.is_configured() {
            return Ok(()); // nothing says yet who may have what
        }
        let identity = &snapshot.default_identity;
        let (users, uid) = (snapshot.key_users.clone(), self.peer.uid);
        let entitled = async {
            match &identity.current {
                Some(current) => check_exportable(&*current.key)?,
                None if identity.provider == ProviderKind::Tpm => return Err(in_tpm()),
                None => {}
            }
            self.with_permit(move || check_user(uid, &users)).await
        };
        entitled.await.inspect_err(|status| self.record_refusal(status, &identity.name, None))
    }

    /// The key in PKCS#8, if this peer is entitled to it and it is usable. That it leaves the agent
    /// is recorded in the audit log once per SVID and stream, and for further streams of the
    /// process once a minute; and so is a refusal, which ends the stream.
    async fn key(&mut self, current: &Arc<SvidAndKey>, snapshot: &Snapshot) -> Result<Message, GrpcStatus> {
        let key = self.read_key(current, snapshot).await;
        let name = &snapshot.default_identity.name;
        match &key {
            Ok(_) => self.record_key(name, &current.svid),
            Err(status) => self.record_refusal(status, name, Some(&current.svid)),
        }
        key
    }

    fn record_key(&mut self, identity: &IdentityName, svid: &X509Svid) {
        let leaf = svid.chain().leaf();
        if self.key_of.as_ref() == Some(leaf) {
            return; // this stream has been sent it before
        }
        self.key_of = Some(leaf.clone());
        self.context.counters.key_request(identity, true);
        self.context.keys_sent.record(self.peer, identity, svid);
    }

    fn record_refusal(&self, status: &GrpcStatus, identity: &IdentityName, svid: Option<&X509Svid>) {
        if status.code != Code::PermissionDenied {
            return; // the peer is entitled, and the key is not usable now
        }
        let Peer { uid, pid, .. } = self.peer;
        self.context.keys_sent.end(self.peer);
        self.context.counters.key_request(identity, false);
        if self.context.refusals.is_due(uid, "key", Instant::now()) {
            tracing::info!(
                target: AUDIT, audit = "key", identity = identity.as_str(), uid, pid,
                spiffe_id = svid.map(|svid| tracing::field::display(svid.spiffe_id())),
                serial = svid.map(X509Svid::serial), reason = %status.message,
                "key refused"
            );
        }
    }

    async fn read_key(&self, current: &Arc<SvidAndKey>, snapshot: &Snapshot) -> Result<Message, GrpcStatus> {
        check_exportable(&*current.key)?;
        let (current, users) = (current.clone(), snapshot.key_users.clone());
        let (key_is_lost, uid) = (snapshot.default_identity.key_is_lost, self.peer.uid);
        self.with_permit(move || {
            check_user(uid, &users)?;
            check_usable(&current, key_is_lost)?;
            pkcs8(&*current.key)
        })
        .await
    }

    /// Runs what may block, for as few peers at once as [`ServerContext::key_readers`] allows.
    async fn with_permit<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, GrpcStatus> + Send + 'static,
    ) -> Result<T, GrpcStatus> {
        let permit = self.context.key_readers.acquire(self.peer.uid).await;
        let done = spawn_blocking(move || {
            let _permit = permit; // to the end, also when the peer has left
            work()
        });
        done.await.unwrap_or_else(|_| Err(grpc::shutting_down()))
    }
}

/// The trust bundle, if it has anchors. Without anchors, no peer is to be trusted any more (miaf-v0
/// B3). The API cannot say so (section 4.5): there is no bundle until the next.
fn bundle(snapshot: &Snapshot) -> Result<&Bundle, Unavailable> {
    match &snapshot.bundle {
        None => Err(missing("trust bundle", snapshot)),
        Some(_) if snapshot.withdrawn_since(clock::now().wall).is_some() => {
            let message = "The trust bundle of this device is stale, and its configuration withdraws SVIDs and bundle \
                           until it is refreshed. miaf-agent status says more.";
            Err(Unavailable::Withdrawn(GrpcStatus::new(Code::Unavailable, message)))
        }
        Some(current) if current.bundle.anchors().is_empty() => {
            let message = "The Margo Identity Service has emptied the trust bundle: no peer is to be trusted in this \
                           trust domain.";
            Err(Unavailable::Withdrawn(GrpcStatus::new(Code::Unavailable, message)))
        }
        Some(current) => Ok(&current.bundle),
    }
}

fn trust_domain(snapshot: &Snapshot) -> Result<&TrustDomain, Unavailable> {
    snapshot.trust_domain.as_ref().ok_or_else(|| missing("trust domain", snapshot))
}

/// The status for what is missing: not there yet, or not any more. Where it is certain that the
/// device has no identity, what it had before is withdrawn.
fn missing(what: &str, snapshot: &Snapshot) -> Unavailable {
    let message = format!("This device has no {what} now. miaf-agent status says what it is waiting for.");
    let status = GrpcStatus::new(Code::Unavailable, message);
    if snapshot.is_known && snapshot.default_identity.current.is_none() {
        Unavailable::Withdrawn(status)
    } else {
        Unavailable::ForNow(status)
    }
}

fn check_exportable(key: &dyn Key) -> Result<(), GrpcStatus> {
    if key.protection() != Protection::Hardware { Ok(()) } else { Err(in_tpm()) }
}

fn in_tpm() -> GrpcStatus {
    let message = "The key of this device is made in its TPM and cannot leave it. Have it sign instead: by POST /v1/sign \
                   on the agent's signing socket, or by the key.pem among its published files with OpenSSL's tpm2 \
                   provider. FetchX509Bundles is there for everyone.";
    GrpcStatus::new(Code::PermissionDenied, message)
}

fn check_user(uid: Option<u32>, users: &[String]) -> Result<(), GrpcStatus> {
    let denied = |message: String| Err(GrpcStatus::new(Code::PermissionDenied, message));
    let Some(uid) = uid else {
        return denied("The operating system does not say which user sent the request.".into());
    };
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

/// Whether `user` is this number, or the name of the user with it.
fn is_user(user: &str, uid: u32) -> Result<bool, GrpcStatus> {
    if let Ok(number) = user.parse::<u32>() {
        return Ok(number == uid);
    }
    match User::from_name(user) {
        Ok(found) => Ok(found.is_some_and(|found| found.uid.as_raw() == uid)),
        Err(e) => {
            let message = format!("The user \"{user}\" cannot be looked up: {e}.");
            Err(GrpcStatus::new(Code::Unavailable, message))
        }
    }
}

/// Checks that the SVID is valid now, and that its key is not lost.
fn check_usable(current: &SvidAndKey, key_is_lost: bool) -> Result<(), GrpcStatus> {
    let svid = &current.svid;
    let message = if key_is_lost {
        "The key of this device's SVID is lost. miaf-agent status says what becomes of it.".into()
    } else if !current.is_valid(clock::now().wall) {
        let (from, until) = (svid.not_before(), svid.until());
        format!(
            "This device's SVID is valid from {from} until {until}, which is not now. miaf-agent status says what \
             becomes of it."
        )
    } else {
        return Ok(());
    };
    Err(GrpcStatus::new(Code::Unavailable, message))
}

fn pkcs8(key: &dyn Key) -> Result<Message, GrpcStatus> {
    let unusable = |reason: &dyn std::fmt::Display| {
        GrpcStatus::new(Code::Unavailable, format!("The key of this device cannot be used: {reason}."))
    };
    match key.to_key_file().map_err(|e| unusable(&e))? {
        KeyFile::Secret { der, .. } => Ok(der),
        KeyFile::Tss2(_) => Err(unusable(&"it is in the TPM")), // checked before
    }
}
