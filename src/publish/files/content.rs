//! The files of one generation, and who reads each.

use std::collections::BTreeMap;

use nix::unistd::getegid;
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::BundleToPublish;
use crate::keys::KeyFile;
use crate::publish::SvidAndKey;
use miaf_spiffe::time::Timestamp;

/// The readers of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// The group of the directory.
    Group,
    /// The group that may use the key.
    KeyGroup,
}

/// The groups that the configuration names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) group: Option<u32>,
    pub(super) key_group: Option<u32>,
}

impl Groups {
    pub(super) fn of(self, readers: Readers) -> Option<u32> {
        match readers {
            Readers::Group => self.group,
            // Not the group of the directory, which a file inherits from one with the set-group-ID bit.
            Readers::KeyGroup => Some(self.key_group.unwrap_or_else(|| getegid().as_raw())),
        }
    }
}

/// The readers of a file by its name, in a generation with or without a key.
pub(super) fn readers(name: &str) -> Readers {
    if KEY_FILES.contains(&name) { Readers::KeyGroup } else { Readers::Group }
}

const KEY_FILES: [&str; 2] = ["key.pem", "svid-with-key.pem"];

/// The content of one generation, by file name. It may contain a private key.
pub(super) type Content = BTreeMap<&'static str, (Zeroizing<Vec<u8>>, Readers)>;

/// The files of an identity and the bundle, without the key. `further` are certificates that
/// `bundle.json` has in addition to the anchors.
pub(super) fn content(
    identity: &SvidAndKey,
    bundle: BundleToPublish<'_>,
    further: &[CertificateDer<'_>],
    now: Timestamp,
) -> Content {
    let svid = identity.svid.chain().to_pems().concat();
    [
        ("svid.pem", svid.into_bytes()),
        ("bundle.pem", bundle.bundle.to_pem().into_bytes()),
        ("bundle.json", pretty(&bundle.bundle.document(bundle.refresh_interval, further))),
        ("identity.json", description(identity, now)),
    ]
    .map(|(name, bytes)| (name, (Zeroizing::new(bytes), Readers::Group)))
    .into()
}

pub(super) fn add_key(content: &mut Content, key: &KeyFile) {
    let key = match key {
        KeyFile::Tss2(pem) => pem.as_bytes(),
        KeyFile::Secret { pem, .. } => pem.as_bytes(),
    };
    let svid = content.get("svid.pem").map_or(&[][..], |(svid, _)| svid.as_slice());
    let combined = Zeroizing::new([svid, key].concat());
    let [key_file, with_svid] = KEY_FILES;
    content.insert(with_svid, (combined, Readers::KeyGroup));
    content.insert(key_file, (Zeroizing::new(key.to_vec()), Readers::KeyGroup));
}

fn description(identity: &SvidAndKey, now: Timestamp) -> Vec<u8> {
    pretty(&json!({
        "spiffeId": identity.svid.spiffe_id().to_string(),
        "serial": identity.svid.serial(),
        "notBefore": identity.svid.not_before().to_string(),
        "notAfter": identity.svid.until().to_string(),
        "keyProtection": identity.key.protection().as_str(),
        "valid": identity.is_valid(now),
    }))
}

fn pretty(json: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(json).unwrap_or_default(); // these types always serialise
    text.push(b'\n');
    text
}
