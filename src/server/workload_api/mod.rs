//! The SPIFFE Workload API, version 1: trust bundles for every peer, and SVIDs with their keys for
//! the users to whom the configuration gives the software key of an identity. A key in the TPM stays
//! there. The hint of an SVID is the name of its identity; that of the default identity is the
//! first.
//!
//! A stream sends the current state at once, and then each change of it. What was sent stays valid
//! until the next message: an SVID that expires or a key that cannot be read ends no stream, and
//! the next SVID comes on it. A message that follows for another identity leaves it out: one
//! identity waits for no other.
//!
//! PERMISSION_DENIED is for a peer to which this configuration gives nothing of any identity, before
//! the first enrollment as after it: some clients never try again then. It ends a stream when the
//! peer is no longer entitled to any (section 5.2.1: redaction). UNAVAILABLE has clients retry
//! (SPIFFE Workload Endpoint, section 6): while all identities that a peer may have, or the bundle,
//! are still to come, when the last one is withdrawn until the next, and when the agent shuts down.
//! The API has no other way to withdraw everything: clients keep what they have until the next
//! message.

mod messages;
mod svids;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::stream::try_unfold;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderName;
use hyper::{Request, StatusCode};
use rustls_pki_types::CertificateDer;
use tokio::task::spawn_blocking;

use self::svids::{Basis, Candidate, Decision, Entry, Share, Standing, decide};
use crate::platform::clock;
use crate::platform::log::AUDIT;
use crate::publish::Snapshot;
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
            "FetchJWTSVID" => "There are no JWT-SVIDs: a Margo Identity Service issues X.509-SVIDs only.",
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
    /// The leaf certificates whose keys were sent last on this stream, by identity.
    keys_of: BTreeMap<IdentityName, CertificateDer<'static>>,
    _permit: CallPermit,
}

/// The message that was sent last.
enum Sent {
    /// Digest of a message without secrets.
    Message([u8; 32]),
    /// The SVIDs of a message.
    Svids {
        entries: Vec<Entry>,
        /// What the choice was made by. `None`: something may be there without a change of it.
        basis: Option<Basis>,
    },
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
        Self {
            method,
            peer,
            context,
            shutdown: shutdown.clone(),
            last: None,
            keys_of: BTreeMap::new(),
            _permit: permit,
        }
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
            Method::X509Svid => self.x509_svids(snapshot).await,
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
        if matches!(&self.last, Some(Sent::Message(last)) if *last == digest) {
            return None;
        }
        self.last = Some(Sent::Message(digest));
        Some(message)
    }

    /// The SVIDs with their keys (section 5.2.1).
    async fn x509_svids(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Unavailable> {
        if !snapshot.is_configured() {
            return Err(missing("SVID", snapshot)); // nothing says yet who may have what
        }
        let bundle = bundle(snapshot);
        let basis = bundle.as_ref().ok().map(|bundle| Basis::of(snapshot, bundle));
        if basis.is_some() && matches!(&self.last, Some(Sent::Svids { basis: last, .. }) if *last == basis) {
            return Ok(None);
        }
        let (candidates, shares) = self.shares(snapshot, bundle.is_ok()).await?;
        if let Some((candidate, status)) = denial(&candidates, &shares) {
            self.record_refusal(status, candidate);
            return Err(status.clone().into());
        }
        let bundle = bundle?;
        let entries = candidates.iter().zip(&shares).map(|(candidate, share)| {
            let (Share::Given(key), Some(current)) = (share, &candidate.current) else { return None };
            let entry = |key| messages::x509_svid(&candidate.name, &current.svid, key, bundle.anchors());
            Some((sha256(&entry(&[])), entry(key)))
        });
        let entries: Vec<Option<([u8; 32], Message)>> = entries.collect();
        let standings = candidates.iter().zip(&shares).zip(&entries).map(|((candidate, share), entry)| {
            let standing = match (share, entry) {
                (Share::Given(_), Some((digest, _))) => Standing::Given(*digest),
                (Share::Denied(_), _) => Standing::Denied,
                (Share::Withdrawn(_), _) => Standing::Withdrawn,
                (Share::Given(_) | Share::NotNow(_), _) => Standing::NotNow,
            };
            (candidate.name.clone(), standing)
        });
        let standings: Vec<_> = standings.collect();
        let basis = basis.filter(|_| !standings.iter().any(|(_, standing)| *standing == Standing::NotNow));
        let sent = match self.last.take() {
            Some(Sent::Svids { entries, .. }) => entries,
            _ => Vec::new(),
        };
        match decide(&sent, &standings) {
            Decision::Keep => {
                self.last = Some(Sent::Svids { entries: sent, basis });
                Ok(None)
            }
            Decision::End => {
                let waits = shares.iter().find_map(Share::wait).cloned();
                Err(Unavailable::Withdrawn(waits.unwrap_or_else(|| svids::missing("There is no SVID now"))))
            }
            Decision::Send(given) => {
                for (candidate, share) in candidates.iter().zip(&shares) {
                    let was_sent = sent.iter().any(|(name, _)| *name == candidate.name);
                    match share {
                        Share::Given(_) => self.record_key(candidate),
                        Share::Denied(status) if was_sent => self.record_refusal(status, candidate),
                        _ => {}
                    }
                }
                self.last = Some(Sent::Svids { entries: given, basis });
                let message = messages::x509_svids(entries.iter().flatten().map(|(_, entry)| entry));
                Ok(Some(grpc::framed(&message)?))
            }
        }
    }

    /// What this peer is given of each identity. Keys are read if there is a bundle to send with
    /// them.
    async fn shares(
        &self,
        snapshot: &Snapshot,
        reads_keys: bool,
    ) -> Result<(Vec<Candidate>, Vec<Share>), GrpcStatus> {
        let candidates = snapshot.identities().map(|identity| Candidate::of(identity, snapshot));
        let (candidates, uid): (Vec<_>, _) = (candidates.collect(), self.peer.uid);
        let share = move || {
            let shares = candidates.iter().map(|candidate| candidate.share(uid, reads_keys)).collect();
            Ok((candidates, shares))
        };
        // No user is looked up for keys that cannot leave the TPM.
        if snapshot.identities().any(|identity| Candidate::of(identity, snapshot).is_exportable()) {
            self.with_permit(share).await
        } else {
            share()
        }
    }

    /// Records in the audit log that a key leaves the agent: once per SVID and stream, and for
    /// further streams of the process once a minute.
    fn record_key(&mut self, candidate: &Candidate) {
        let Candidate { name, current: Some(current), .. } = candidate else { return };
        let leaf = current.svid.chain().leaf();
        if self.keys_of.get(name) == Some(leaf) {
            return; // this stream has been sent it before
        }
        self.keys_of.insert(name.clone(), leaf.clone());
        self.context.counters.key_request(name, true);
        self.context.keys_sent.record(self.peer, name, &current.svid);
    }

    /// Records that a key is refused, or not given any more.
    fn record_refusal(&self, status: &GrpcStatus, candidate: &Candidate) {
        let (Peer { uid, pid, .. }, Candidate { name, current, .. }) = (self.peer, candidate);
        let svid = current.as_ref().map(|current| &current.svid);
        self.context.keys_sent.end(self.peer);
        self.context.counters.key_request(name, false);
        if self.context.refusals.is_due(uid, "key", Instant::now()) {
            tracing::info!(
                target: AUDIT, audit = "key", identity = name.as_str(), uid, pid,
                spiffe_id = svid.map(|svid| tracing::field::display(svid.spiffe_id())),
                serial = svid.map(X509Svid::serial), reason = %status.message,
                "key refused"
            );
        }
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

/// The reason for which a peer is given nothing of any identity, and one that this is about: one
/// whose users an operator can name, if there is one.
fn denial<'a>(candidates: &'a [Candidate], shares: &'a [Share]) -> Option<(&'a Candidate, &'a GrpcStatus)> {
    let denials = candidates.iter().zip(shares).map(|(candidate, share)| Some((candidate, share.denial()?)));
    let denials: Vec<_> = denials.collect::<Option<_>>()?;
    denials.iter().find(|(candidate, _)| candidate.is_exportable()).or(denials.first()).copied()
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
        // It is not known yet which trust domain it is of (miaf-est X22).
        Some(current) => {
            current.bundle.named().map(|bundle| &**bundle).ok_or_else(|| missing("trust domain", snapshot))
        }
    }
}

fn trust_domain(snapshot: &Snapshot) -> Result<&TrustDomain, Unavailable> {
    snapshot.trust_domain.as_ref().ok_or_else(|| missing("trust domain", snapshot))
}

/// The status for what is missing: not there yet, or not any more. Where it is certain that the
/// device has no identity, what it had before is withdrawn.
fn missing(what: &str, snapshot: &Snapshot) -> Unavailable {
    let status = svids::missing(&format!("There is no {what} now"));
    if snapshot.is_known && snapshot.identities().all(|identity| identity.current.is_none()) {
        Unavailable::Withdrawn(status)
    } else {
        Unavailable::ForNow(status)
    }
}
