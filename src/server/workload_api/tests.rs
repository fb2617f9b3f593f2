//! Streams of SVIDs of several identities.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::config::WhenStale;
use crate::keys::{Key, KeyError, KeyFile, Protection, ProviderKind, PublicKey};
use crate::publish::broadcast::Broadcaster;
use crate::publish::{CurrentBundle, IdentitySnapshot, SvidAndKey};
use crate::server::call_limit::CallLimits;
use crate::server::command_queue::CommandQueue;
use crate::server::peer::Role;
use miaf_client::api::State;
use miaf_spiffe::MaybeNamedBundle;
use miaf_spiffe::svid::Chain;
use miaf_spiffe::time::Timestamp;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const UID: u32 = 4_000_001;

fn svid(path: &str) -> Arc<SvidAndKey> {
    let mut params = rcgen::CertificateParams::default();
    let id = format!("spiffe://factory.example{path}");
    params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let svid = X509Svid::from_stored(Chain::from_pem(&[certificate.pem()]).unwrap()).unwrap();
    Arc::new(SvidAndKey { svid, key: Arc::new(SoftwareKey), credential: None })
}

/// A key that can leave the agent.
#[derive(Debug)]
struct SoftwareKey;

impl Key for SoftwareKey {
    fn public_key(&self) -> &PublicKey {
        unreachable!()
    }
    fn sign_digest(&self, _: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        unreachable!()
    }
    fn protection(&self) -> Protection {
        Protection::SoftwareBasic
    }
    fn provider(&self) -> ProviderKind {
        ProviderKind::Software
    }
    fn to_pem(&self) -> Result<String, KeyError> {
        unreachable!()
    }
    fn to_key_file(&self) -> Result<KeyFile, KeyError> {
        Ok(KeyFile::Secret { der: b"key".to_vec().into(), pem: String::new().into() })
    }
}

/// An identity whose key this peer may have, or not.
fn identity(name: &str, current: Option<&Arc<SvidAndKey>>, is_entitled: bool) -> IdentitySnapshot {
    let users: Arc<[String]> = if is_entitled { Arc::new([UID.to_string()]) } else { Arc::new([]) };
    let name = IdentityName::parse(name).unwrap();
    let empty = IdentitySnapshot::empty(name, State::Active, ProviderKind::Software);
    IdentitySnapshot { current: current.cloned(), users, ..empty }
}

fn snapshot(identities: Vec<IdentitySnapshot>) -> Snapshot {
    use base64::Engine as _;
    let mut identities = identities.into_iter();
    let anchor =
        rcgen::CertificateParams::default().self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let x5c = base64::engine::general_purpose::STANDARD.encode(anchor.der());
    let served = serde_json::json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [x5c] }] });
    let domain = TrustDomain::parse("factory.example").unwrap();
    let bundle = MaybeNamedBundle::from_served(served.to_string().as_bytes(), Some(&domain)).unwrap();
    Snapshot {
        bundle: Some(CurrentBundle {
            bundle,
            fetched_at: NOW,
            refresh_at: None,
            refresh_interval: Duration::from_secs(300),
            stale_at: None,
            when_stale: WhenStale::Serve,
        }),
        default_identity: identities.next().unwrap(),
        other_identities: identities.collect(),
        ..Snapshot::unconfigured(ProviderKind::Software)
    }
}

#[test]
fn bundle_is_sent_once_its_trust_domain_is_known() {
    let mut snapshot = snapshot(vec![identity("device", None, false)]);
    assert!(bundle(&snapshot).is_ok());
    let current = snapshot.bundle.as_mut().unwrap();
    let document = serde_json::to_vec(&current.document()).unwrap();
    current.bundle = MaybeNamedBundle::from_served(&document, None).unwrap();
    let Err(Unavailable::Withdrawn(status)) = bundle(&snapshot) else { panic!("it has no name") };
    assert!(status.message.contains("no trust domain"), "{status:?}");
}

/// A call of `FetchX509SVID` by a peer.
struct Call {
    messages: MessageStream,
    bundle: Option<CurrentBundle>,
    _shutdown: watch::Sender<()>,
}

/// What a snapshot leads to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// A message with these hints, in their sequence.
    Message(Vec<&'static str>),
    Quiet,
    /// A stream goes on, and a new call ends like this.
    Later(Code),
    End(Code),
}

impl Call {
    fn start() -> Self {
        let first = snapshot(vec![identity("device", None, false)]);
        let bundle = first.bundle.clone();
        let context = ServerContext::new(&Broadcaster::new(first, NOW), CommandQueue::new().0);
        let limit = CallLimits::default().for_connection(Some(UID), context.heap.clone());
        let peer = Peer { role: Role::Read, uid: Some(UID), pid: Some(1) };
        let (shutdown, signal) = watch::channel(());
        let permit = limit.acquire().unwrap();
        let messages = MessageStream::new(Method::X509Svid, peer, permit, &context, &signal);
        Self { messages, bundle, _shutdown: shutdown }
    }

    async fn after(&mut self, identities: Vec<IdentitySnapshot>) -> Outcome {
        let snapshot = Snapshot { bundle: self.bundle.clone(), ..snapshot(identities) };
        let message = match self.messages.message(&snapshot).await {
            Ok(Some(message)) => message,
            Ok(None) => return Outcome::Quiet,
            Err(Unavailable::ForNow(status)) => return Outcome::Later(status.code),
            Err(Unavailable::Withdrawn(status)) => return Outcome::End(status.code),
        };
        let at = |name: &str| {
            let hint = [&[0x2a, name.len() as u8], name.as_bytes()].concat();
            message.windows(hint.len()).position(|part| part == hint)
        };
        let names = ["device", "line-1", "line-2"].into_iter();
        let mut found: Vec<_> = names.filter_map(|name| Some((at(name)?, name))).collect();
        found.sort_unstable();
        Outcome::Message(found.into_iter().map(|(_, name)| name).collect())
    }
}

#[tokio::test]
async fn peer_is_given_all_identities_that_it_may_have() {
    let (device, one, two) = (svid("/d"), svid("/1"), svid("/2"));
    let all = |device_is: bool, one_is: bool, two_is: bool| {
        vec![
            identity("device", Some(&device), device_is),
            identity("line-1", Some(&one), one_is),
            identity("line-2", Some(&two), two_is),
        ]
    };
    let mut call = Call::start();
    assert_eq!(call.after(all(true, true, true)).await, Outcome::Message(vec!["device", "line-1", "line-2"]));
    assert_eq!(call.after(all(true, true, true)).await, Outcome::Quiet);
    assert_eq!(call.after(all(false, true, true)).await, Outcome::Message(vec!["line-1", "line-2"]));
    assert_eq!(call.after(all(false, false, true)).await, Outcome::Message(vec!["line-2"]));
    assert_eq!(call.after(all(false, false, false)).await, Outcome::End(Code::PermissionDenied));
    // Another default identity is the first.
    let mut call = Call::start();
    let mut turned = all(true, true, true);
    assert_eq!(call.after(turned.clone()).await, Outcome::Message(vec!["device", "line-1", "line-2"]));
    turned.rotate_left(1);
    assert_eq!(call.after(turned).await, Outcome::Message(vec!["line-1", "line-2", "device"]));
}

#[tokio::test]
async fn one_identity_waits_for_no_other() {
    let (device, one, renewed) = (svid("/d"), svid("/1"), svid("/1"));
    let both = |device: Option<&Arc<SvidAndKey>>, one: Option<&Arc<SvidAndKey>>| {
        vec![identity("device", device, true), identity("line-1", one, true)]
    };
    let lost = |identities: Vec<IdentitySnapshot>| {
        let mut identities = identities;
        identities[0].key_is_lost = true;
        identities
    };
    let mut call = Call::start();
    assert_eq!(call.after(both(None, None)).await, Outcome::End(Code::Unavailable), "a new call");
    assert_eq!(call.after(both(None, Some(&one))).await, Outcome::Message(vec!["line-1"]));
    assert_eq!(call.after(both(Some(&device), Some(&one))).await, Outcome::Message(vec!["device", "line-1"]));
    // The key of one is lost: that alone is no message.
    let both_and_lost = lost(both(Some(&device), Some(&one)));
    assert_eq!(call.after(both_and_lost).await, Outcome::Quiet);
    assert_eq!(call.after(lost(both(Some(&device), Some(&renewed)))).await, Outcome::Message(vec!["line-1"]));
    assert_eq!(
        call.after(both(Some(&device), Some(&renewed))).await,
        Outcome::Message(vec!["device", "line-1"])
    );
    // One is retired.
    assert_eq!(call.after(both(None, Some(&renewed))).await, Outcome::Message(vec!["line-1"]));
    assert_eq!(call.after(both(None, None)).await, Outcome::End(Code::Unavailable));
}

#[tokio::test]
async fn status_is_that_of_what_the_peer_may_have() {
    let one = svid("/1");
    let device_in_tpm = |is_entitled| IdentitySnapshot {
        provider: ProviderKind::Tpm,
        ..identity("device", None, is_entitled)
    };
    // Some clients never try again after PERMISSION_DENIED.
    let mut call = Call::start();
    let pending = vec![device_in_tpm(true), identity("line-1", None, true)];
    assert_eq!(call.after(pending).await, Outcome::End(Code::Unavailable));
    let others = vec![device_in_tpm(true), identity("line-1", Some(&one), false)];
    assert_eq!(call.after(others).await, Outcome::End(Code::PermissionDenied));
    let in_tpm = vec![device_in_tpm(true)];
    assert_eq!(call.after(in_tpm).await, Outcome::End(Code::PermissionDenied));
    // Without a bundle as with one.
    call.bundle = None;
    let others = vec![device_in_tpm(true), identity("line-1", Some(&one), false)];
    assert_eq!(call.after(others).await, Outcome::End(Code::PermissionDenied));
    let entitled = vec![device_in_tpm(true), identity("line-1", Some(&one), true)];
    assert_eq!(call.after(entitled).await, Outcome::Later(Code::Unavailable));
}

#[tokio::test]
async fn refusal_is_about_an_identity_whose_users_can_be_named() {
    let mut call = Call::start();
    let device = IdentitySnapshot { provider: ProviderKind::Tpm, ..identity("device", None, true) };
    let identities = vec![device, identity("line-1", None, false)];
    let snapshot = Snapshot { bundle: call.bundle.clone(), ..snapshot(identities) };
    let Err(Unavailable::Withdrawn(status)) = call.messages.message(&snapshot).await else { panic!() };
    assert!(status.message.contains("\"line-1\"") && status.message.contains("users"), "{status:?}");
}
