//! The SVIDs that a peer is given: those of the identities whose software key it may have, as far
//! as they can be used now.

use std::sync::Arc;

use nix::unistd::User;

use super::messages;
use crate::keys::{Key, KeyFile, Protection, ProviderKind};
use crate::platform::clock;
use crate::publish::{IdentitySnapshot, Snapshot, SvidAndKey};
use crate::server::grpc::{Code, GrpcStatus};
use crate::server::protobuf::Message;
use miaf_client::api::IdentityName;
use miaf_spiffe::Bundle;
use miaf_spiffe::digest::sha256;

/// What decides which SVIDs a peer is given, except for the time and for what fails for a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    /// Digest of all SVIDs, each with the bundle and without a key.
    svids: [u8; 32],
    identities: Vec<(IdentityName, ProviderKind, Arc<[String]>)>,
}

impl Basis {
    pub(super) fn of(snapshot: &Snapshot, bundle: &Bundle) -> Self {
        let svids = snapshot.identities().filter_map(|identity| {
            let current = identity.current.as_ref()?;
            Some(messages::x509_svid(&identity.name, &current.svid, &[], bundle.anchors()))
        });
        let svids: Vec<_> = svids.collect();
        let identities = snapshot.identities();
        let identities = identities.map(|one| (one.name.clone(), one.provider, one.users.clone()));
        Self { svids: sha256(&messages::x509_svids(&svids)), identities: identities.collect() }
    }
}

/// One identity, and what decides whether a peer is given its key.
pub(super) struct Candidate {
    pub(super) name: IdentityName,
    pub(super) current: Option<Arc<SvidAndKey>>,
    users: Arc<[String]>,
    key_is_lost: bool,
    /// Whether the key is, or will be, one that can leave this agent.
    is_exportable: bool,
    /// Whether it is certain that there is no SVID where none is current.
    is_known: bool,
}

impl Candidate {
    pub(super) fn of(identity: &IdentitySnapshot, snapshot: &Snapshot) -> Self {
        let current = identity.current.clone();
        let is_exportable = match &current {
            Some(current) => current.key.protection() != Protection::Hardware,
            None => identity.provider != ProviderKind::Tpm,
        };
        Self {
            name: identity.name.clone(),
            current,
            users: identity.users.clone(),
            key_is_lost: identity.key_is_lost,
            is_exportable,
            is_known: snapshot.is_known,
        }
    }

    pub(super) fn is_exportable(&self) -> bool {
        self.is_exportable
    }

    /// What a peer is given of it. May block: looks up users, and unseals the key if `reads_key`;
    /// otherwise nothing is given, and what a peer may have is [`Share::NotNow`].
    pub(super) fn share(&self, uid: Option<u32>, reads_key: bool) -> Share {
        if !self.is_exportable {
            return Share::Denied(in_tpm());
        }
        match self.check_user(uid) {
            Err(status) if status.code == Code::PermissionDenied => return Share::Denied(status),
            Err(status) => return Share::NotNow(status),
            Ok(()) => {}
        }
        let Some(current) = &self.current else {
            let status = missing(&format!("The identity \"{}\" has no SVID now", self.name));
            return if self.is_known { Share::Withdrawn(status) } else { Share::NotNow(status) };
        };
        if !reads_key {
            return Share::NotNow(missing("There is no trust bundle now"));
        }
        match self.check_usable(current).and_then(|()| self.pkcs8(&*current.key)) {
            Ok(key) => Share::Given(key),
            Err(status) => Share::NotNow(status),
        }
    }

    fn check_user(&self, uid: Option<u32>) -> Result<(), GrpcStatus> {
        let denied = |message: String| Err(GrpcStatus::new(Code::PermissionDenied, message));
        let Some(uid) = uid else {
            return denied("The operating system does not say which user sent the request.".into());
        };
        for user in self.users.iter() {
            if is_user(user, uid)? {
                return Ok(());
            }
        }
        denied(format!(
            "The user with the number {uid} is not given the key of the identity \"{}\". An operator can name it in \
             the agent's configuration: in users of that [[identity]]; of the first identity, also in [workload_api] \
             key_users. FetchX509Bundles is there for everyone.",
            self.name
        ))
    }

    /// Checks that the SVID is valid now, and that its key is not lost.
    fn check_usable(&self, current: &SvidAndKey) -> Result<(), GrpcStatus> {
        let (svid, name) = (&current.svid, &self.name);
        let message = if self.key_is_lost {
            format!("The key of the identity \"{name}\" is lost. miaf-agent status says what becomes of it.")
        } else if !current.is_valid(clock::now().wall) {
            let (from, until) = (svid.not_before(), svid.until());
            format!(
                "The SVID of the identity \"{name}\" is valid from {from} until {until}, which is not now. miaf-agent \
                 status says what becomes of it."
            )
        } else {
            return Ok(());
        };
        Err(GrpcStatus::new(Code::Unavailable, message))
    }

    fn pkcs8(&self, key: &dyn Key) -> Result<Message, GrpcStatus> {
        let unusable = |reason: &dyn std::fmt::Display| {
            let message = format!("The key of the identity \"{}\" cannot be used: {reason}.", self.name);
            GrpcStatus::new(Code::Unavailable, message)
        };
        match key.to_key_file().map_err(|e| unusable(&e))? {
            KeyFile::Secret { der, .. } => Ok(der),
            KeyFile::Tss2(_) => Err(unusable(&"it is in the TPM")), // checked before
        }
    }
}

/// The part of one identity in the response to a peer.
pub(super) enum Share {
    /// Its SVID, with this key.
    Given(Message),
    /// Nothing: this configuration gives its key to other users, or it is in the TPM.
    Denied(GrpcStatus),
    /// Nothing for now. What was sent of it stays valid.
    NotNow(GrpcStatus),
    /// Nothing: there is no SVID, and one that was sent is not valid any more.
    Withdrawn(GrpcStatus),
}

impl Share {
    pub(super) fn denial(&self) -> Option<&GrpcStatus> {
        if let Self::Denied(status) = self { Some(status) } else { None }
    }

    /// The reason why the peer, which may have the SVID, has to wait for it.
    pub(super) fn wait(&self) -> Option<&GrpcStatus> {
        if let Self::NotNow(status) | Self::Withdrawn(status) = self { Some(status) } else { None }
    }
}

/// An SVID in a message: its identity, and the digest of its entry without the key.
pub(super) type Entry = (IdentityName, [u8; 32]);

/// A [`Share`], as far as the next message depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Given([u8; 32]),
    Denied,
    NotNow,
    Withdrawn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// A message with these SVIDs.
    Send(Vec<Entry>),
    /// None: what was sent is what there is, or stays valid.
    Keep,
    /// The call ends: there is nothing that could be sent, and what was sent is not valid any more.
    End,
}

/// Decides what follows on `sent`, the SVIDs of the last message. Each message has all SVIDs that
/// can be given at its time (SPIFFE Workload API, section 5.2.1), and one that cannot be for a
/// moment is no reason for a message.
pub(super) fn decide(sent: &[Entry], now: &[(IdentityName, Standing)]) -> Decision {
    let standing = |name: &IdentityName| now.iter().find(|(other, _)| other == name).map(|(_, is)| *is);
    let given = now.iter().filter_map(|(name, standing)| match standing {
        Standing::Given(digest) => Some((name.clone(), *digest)),
        _ => None,
    });
    let given: Vec<Entry> = given.collect();
    let lasting: Vec<&Entry> =
        sent.iter().filter(|(name, _)| standing(name) != Some(Standing::NotNow)).collect();
    if lasting.iter().copied().eq(&given) && !sent.is_empty() {
        return Decision::Keep;
    }
    if given.is_empty() { Decision::End } else { Decision::Send(given) }
}

/// The status of a call to which nothing can be given.
pub(super) fn missing(what: &str) -> GrpcStatus {
    GrpcStatus::new(Code::Unavailable, format!("{what}. miaf-agent status says what it is waiting for."))
}

fn in_tpm() -> GrpcStatus {
    let message = "The key of this device is made in its TPM and cannot leave it. Have it sign instead: by POST /v1/sign \
                   on the agent's signing socket, or by the key.pem among its published files with OpenSSL's tpm2 \
                   provider. FetchX509Bundles is there for everyone.";
    GrpcStatus::new(Code::PermissionDenied, message)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> IdentityName {
        IdentityName::parse(name).unwrap()
    }

    fn standings(all: &[(&str, Standing)]) -> Vec<(IdentityName, Standing)> {
        all.iter().map(|(of, standing)| (name(of), *standing)).collect()
    }

    fn entries(all: &[(&str, u8)]) -> Vec<Entry> {
        all.iter().map(|(of, digest)| (name(of), [*digest; 32])).collect()
    }

    #[test]
    fn message_follows_a_change_of_what_can_be_given() {
        use Decision::{End, Keep, Send};
        use Standing::{Denied, NotNow, Withdrawn};
        let given = |digest: u8| Standing::Given([digest; 32]);
        let (nothing, a, both) = (entries(&[]), entries(&[("a", 1)]), entries(&[("a", 1), ("b", 1)]));
        for (case, sent, now, expected) in [
            ("first", &nothing, &[("a", given(1)), ("b", Denied)][..], Send(a.clone())),
            ("all that the peer may have", &nothing, &[("a", given(1)), ("b", given(1))], Send(both.clone())),
            ("nothing yet", &nothing, &[("a", NotNow), ("b", Withdrawn)], End),
            ("nothing at all", &nothing, &[("a", Denied), ("b", Denied)], End),
            ("no identity", &nothing, &[], End),
            (
                "what is there does not wait",
                &nothing,
                &[("a", NotNow), ("b", given(1))],
                Send(entries(&[("b", 1)])),
            ),
            ("the same", &both, &[("a", given(1)), ("b", given(1))], Keep),
            ("one renewed", &both, &[("a", given(1)), ("b", given(2))], Send(entries(&[("a", 1), ("b", 2)]))),
            ("one more", &a, &[("a", given(1)), ("b", given(1))], Send(both.clone())),
            (
                "one more, before the first",
                &entries(&[("b", 1)]),
                &[("a", given(1)), ("b", given(1))],
                Send(both.clone()),
            ),
            (
                "another default",
                &both,
                &[("b", given(1)), ("a", given(1))],
                Send(entries(&[("b", 1), ("a", 1)])),
            ),
            ("one cannot be used for a moment", &both, &[("a", NotNow), ("b", given(1))], Keep),
            ("none can", &both, &[("a", NotNow), ("b", NotNow)], Keep),
            (
                "one cannot, and another is renewed",
                &both,
                &[("a", NotNow), ("b", given(2))],
                Send(entries(&[("b", 2)])),
            ),
            (
                "back again",
                &entries(&[("b", 2)]),
                &[("a", given(1)), ("b", given(2))],
                Send(entries(&[("a", 1), ("b", 2)])),
            ),
            ("one is withdrawn", &both, &[("a", Withdrawn), ("b", given(1))], Send(entries(&[("b", 1)]))),
            ("one is not this peer's any more", &both, &[("a", given(1)), ("b", Denied)], Send(a.clone())),
            ("one is not configured any more", &both, &[("a", given(1))], Send(a.clone())),
            ("the only one is withdrawn", &a, &[("a", Withdrawn), ("b", Denied)], End),
            ("the only one is not this peer's any more", &a, &[("a", Denied)], End),
            (
                "one is withdrawn while the other cannot be used",
                &both,
                &[("a", Withdrawn), ("b", NotNow)],
                End,
            ),
            ("another one, never sent, is not there yet", &a, &[("a", NotNow), ("b", Withdrawn)], Keep),
        ] {
            assert_eq!(decide(sent, &standings(now)), expected, "{case}");
        }
    }
}
