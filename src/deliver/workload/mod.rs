//! The SPIFFE Workload API, version 1: trust bundles for everyone who may connect, and the SVID with its key for those users
//! to whom the configuration gives a software key. What is in the TPM stays there.
//!
//! A stream tells what there is at once, and then each change of it, and only that. What was told stays so until something
//! else is: an SVID that expires or a key that cannot be read end no stream, and the next SVID comes on it. It ends when the
//! caller loses the right to what it was given (PERMISSION_DENIED: section 5.2.1 calls it redaction), and when the agent
//! ends (UNAVAILABLE).

mod grpc;
mod messages;

use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::try_unfold;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use nix::unistd::User;
use ring::digest::{Digest, SHA256, digest};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::caller::{Caller, Closing};
use super::lines::Lines;
use super::response::{Body, problem};
use super::{Identity, Snapshot};
use crate::keys::{Key, KeyFile, Protection};
use crate::spiffe::{Bundle, TrustDomain};
use crate::system::clock;
use crate::system::log::AUDIT;
use grpc::{Code, Status};
use messages::Message;

pub(super) use grpc::is_call;

/// What its paths begin with: the service has no package.
pub(super) const PREFIX: &str = "/SpiffeWorkloadAPI/";
/// With the value `true` on every request (SPIFFE Workload Endpoint, section 3): whoever is tricked into sending a request
/// somewhere is hardly tricked into sending this along.
const SECURITY_HEADER: &str = "workload.spiffe.io";

pub(super) async fn answer(
    request: Request<Incoming>,
    caller: Caller,
    lines: &Lines,
    closing: &Closing,
) -> Response<Body> {
    if !is_call(&request) {
        let detail = "The SPIFFE Workload API is gRPC: HTTP/2 from the first byte on, POST, and the content type \
                      application/grpc. A SPIFFE library does that. For curl there are GET /v1/svid and GET /v1/bundle.";
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    }
    call(request, caller, lines, closing).await.unwrap_or_else(|status| grpc::refusal(&status))
}

/// Somebody for whom there is no place. Clients come back after UNAVAILABLE (SPIFFE Workload Endpoint, section 6).
pub(super) fn overloaded(why: &str) -> Response<Body> {
    grpc::refusal(&Status::new(Code::Unavailable, format!("{why}.")))
}

async fn call(
    request: Request<Incoming>,
    caller: Caller,
    lines: &Lines,
    closing: &Closing,
) -> Result<Response<Body>, Status> {
    if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
        let why = "A request to the SPIFFE Workload API carries the metadata workload.spiffe.io: true.";
        return Err(Status::new(Code::InvalidArgument, why));
    }
    let asked = Asked::by(request.uri().path())?;
    grpc::take_message(request.into_body()).await?;
    let mut stream = Stream::new(asked, caller, lines, closing);
    // Waited for here, so that whoever gets nothing learns it as the answer to the call, and not on a stream.
    let first = stream.next().await?;
    Ok(grpc::stream(try_unfold((Some(first), stream), |(first, mut stream)| async {
        let message = match first {
            Some(first) => first,
            None => stream.next().await?,
        };
        Ok(Some((message, (None, stream))))
    })))
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
}

/// What the caller has.
struct Told {
    /// Of the message, without the key.
    digest: Digest,
    /// The users who were given the key when it was sent.
    key_users: Arc<[String]>,
    /// Of the SVID whose key it was.
    serial: Option<String>,
}

impl Stream {
    fn new(asked: Asked, caller: Caller, lines: &Lines, closing: &Closing) -> Self {
        let mut lines = lines.clone();
        lines.snapshots.mark_changed(); // what there is at once
        Self { asked, caller, lines, closing: closing.clone(), told: None }
    }

    /// The next message, as soon as there is another to be told than the last. It is the whole of what there is to tell
    /// (SPIFFE Workload API, section 4.3).
    async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            tokio::select! {
                biased;
                _ = self.closing.changed() => return Err(ending()),
                changed = self.lines.snapshots.changed() => changed.map_err(|_| ending())?,
            }
            let snapshot = self.lines.snapshots.borrow_and_update().clone();
            match self.news(&snapshot).await {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(status) if status.code == Code::Unavailable && self.told.is_some() => {}
                Err(status) => return Err(status),
            }
        }
    }

    async fn news(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Status> {
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
        let digest = digest(&SHA256, &message);
        if self.told.as_ref().is_some_and(|told| told.digest.as_ref() == digest.as_ref()) {
            return None;
        }
        self.told = Some(Told { digest, key_users: Arc::default(), serial: None });
        Some(message)
    }

    /// The SVID with its key (section 5.2.1).
    async fn x509_svid(&mut self, snapshot: &Snapshot) -> Result<Option<Bytes>, Status> {
        let identity = snapshot.identity.as_ref().ok_or_else(|| nothing_there("SVID", snapshot))?;
        let bundle = bundle(snapshot)?;
        let message = |key: &[u8]| messages::x509_svid(&identity.svid, key, bundle.anchors());
        let digest = digest(&SHA256, &message(&[]));
        let is_told = self.told.as_ref().is_some_and(|told| told.digest.as_ref() == digest.as_ref());
        if is_told && self.told.as_ref().is_some_and(|told| told.key_users == snapshot.key_users) {
            return Ok(None);
        }
        let key = self.key(identity, snapshot).await?;
        let serial = Some(identity.svid.serial().to_owned());
        self.told = Some(Told { digest, key_users: snapshot.key_users.clone(), serial });
        if is_told { Ok(None) } else { grpc::framed(&message(&key)).map(Some) }
    }

    /// The key in PKCS#8, if this caller may have it and it is of use. That it leaves the agent is for the audit, once on a
    /// stream; and so is that somebody is refused it, which ends the stream.
    async fn key(&self, identity: &Arc<Identity>, snapshot: &Snapshot) -> Result<Message, Status> {
        let given = self.read_key(identity, snapshot).await;
        let Caller { uid, pid, .. } = self.caller;
        let (spiffe_id, serial) = (identity.svid.spiffe_id(), identity.svid.serial());
        match &given {
            Ok(_) if self.told.as_ref().is_some_and(|told| told.serial.as_deref() == Some(serial)) => {}
            Ok(_) => {
                self.lines.counters.key_given();
                tracing::info!(
                    target: AUDIT, audit = "key", uid, pid, %spiffe_id, serial,
                    "the device's key is given to a local program"
                );
            }
            Err(Status { code: Code::PermissionDenied, why }) => {
                self.lines.counters.key_refused();
                if self.lines.refusals.is_news(uid, "key", Instant::now()) {
                    tracing::info!(
                        target: AUDIT, audit = "key", uid, pid, %spiffe_id, serial, why = %why,
                        "the device's key is not given to a local program"
                    );
                }
            }
            Err(_) => {} // nobody is refused anything: there is no key of use
        }
        given
    }

    async fn read_key(&self, identity: &Arc<Identity>, snapshot: &Snapshot) -> Result<Message, Status> {
        may_leave(&*identity.key)?;
        let (asked_for, users) = (identity.clone(), snapshot.key_users.clone());
        let (key_is_lost, uid) = (snapshot.key_is_lost, self.caller.uid);
        let turn = self.lines.key_readers.clone().acquire_owned().await;
        let read = spawn_blocking(move || {
            let _turn = turn; // to the end, also when nobody waits for it any more
            may_have(uid, &users)?;
            is_of_use(&asked_for, key_is_lost)?;
            pkcs8(&*asked_for.key)
        });
        read.await.unwrap_or_else(|_| Err(ending()))
    }
}

/// A bundle without anchors means that nobody is to be trusted any more (miaf-v0 B3). The API has no words for it
/// (section 4.5) but these.
fn bundle(snapshot: &Snapshot) -> Result<&Bundle, Status> {
    match &snapshot.bundle {
        None => Err(nothing_there("trust bundle", snapshot)),
        Some(held) if held.bundle.anchors().is_empty() => {
            let why = "The Margo Identity Service has emptied the trust bundle: nobody is to be trusted in this trust domain.";
            Err(Status::new(Code::PermissionDenied, why))
        }
        Some(held) => Ok(&held.bundle),
    }
}

fn trust_domain(snapshot: &Snapshot) -> Result<&TrustDomain, Status> {
    snapshot.trust_domain.as_ref().ok_or_else(|| nothing_there("trust domain", snapshot))
}

/// A device without an identity has nothing for anybody: not yet, or not any more, and whoever has something of before is to
/// give it up. With one, or where that cannot be told, it is a matter of time.
fn nothing_there(what: &str, snapshot: &Snapshot) -> Status {
    let has_none = snapshot.is_known && snapshot.identity.is_none();
    let code = if has_none { Code::PermissionDenied } else { Code::Unavailable };
    Status::new(
        code,
        format!("This device has no {what} now. miaf-agent status says what it is waiting for."),
    )
}

fn may_leave(key: &dyn Key) -> Result<(), Status> {
    if key.protection() != Protection::Hardware {
        return Ok(());
    }
    Err(Status::new(
        Code::PermissionDenied,
        "The key of this device was made in its TPM and cannot leave it. Have it sign instead: by POST /v1/sign on the \
         agent's signing socket, or by the key.pem among its published files with OpenSSL's tpm2 provider. \
         FetchX509Bundles is there for everyone.",
    ))
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
        let (from, until) = (svid.not_before(), svid.not_after());
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
    match key.for_programs().map_err(|e| unusable(&e))? {
        KeyFile::Secret(pem) => {
            let mut octets = Zeroizing::new(vec![0; pem.len()]);
            let length = der::pem::decode(pem.as_bytes(), &mut octets).map_err(|e| unusable(&e))?.1.len();
            octets.truncate(length);
            Ok(octets)
        }
        KeyFile::Tss2(_) => Err(unusable(&"it is in the TPM")), // seen before
    }
}

fn ending() -> Status {
    Status::new(Code::Unavailable, "The agent ends, or closes this socket. Connect again.")
}
