//! The one authoritative mapping from ESI to identity, stored in `bindings.json`.

use crate::pki;
use crate::policy::Limit;
use crate::x509;
use development_server::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A device that has an identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// Of the bootstrap credential.
    pub esi: String,
    /// The Logical Device Identity, a SPIFFE ID. It never changes.
    pub ldi: String,
    /// SHA-256 of the SubjectPublicKeyInfo certified last.
    pub key_sha256: String,
    svids: Vec<Issued>,
    #[serde(skip)]
    enrollments: VecDeque<Instant>,
    #[serde(skip)]
    renewals: VecDeque<Instant>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Issued {
    sha256: String,
    not_after: u64,
    valid: bool,
}

/// What kind of success to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// `POST /api/v1/identities`.
    Enrollment,
    /// `POST …/renewal`.
    Renewal,
}

/// Why an SVID is issued, and to whom.
pub struct Issuance<'a> {
    /// The device.
    pub esi: &'a str,
    /// Its identity.
    pub ldi: &'a str,
    /// SHA-256 of the key in the CSR.
    pub key_sha256: &'a str,
    /// What for.
    pub occasion: Occasion,
    /// Earlier SVIDs of this identity are no longer good.
    pub invalidates_earlier: bool,
}

/// All identities. The counts of the rate limit are not stored across restarts.
pub struct Registry {
    file: PathBuf,
    identities: Vec<Identity>,
    first_seen: HashMap<String, Instant>,
}

impl Registry {
    /// Reads the file, where there is one.
    pub fn open(file: PathBuf) -> Result<Self> {
        let identities = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).context(file.display())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).context(file.display()),
        };
        Ok(Self { file, identities, first_seen: HashMap::new() })
    }

    /// The identity bound to a bootstrap credential.
    pub fn by_esi(&self, esi: &str) -> Option<&Identity> {
        self.identities.iter().find(|one| one.esi == esi)
    }

    /// The identity with this SPIFFE ID.
    pub fn by_ldi(&self, ldi: &str) -> Option<&Identity> {
        self.identities.iter().find(|one| one.ldi == ldi)
    }

    /// All of them.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// How long ago a device that waits for admission asked first.
    pub fn waiting_since(&mut self, esi: &str) -> Duration {
        self.first_seen.entry(esi.to_owned()).or_insert_with(Instant::now).elapsed()
    }

    /// Records an SVID, durably, before it is handed out.
    pub fn record(&mut self, issuance: &Issuance<'_>, leaf: &[u8], not_after: SystemTime) -> Result<()> {
        let now = unix(SystemTime::now());
        let index = match self.identities.iter().position(|one| one.esi == issuance.esi) {
            Some(index) => index,
            None => {
                self.identities.push(Identity {
                    esi: issuance.esi.to_owned(),
                    ldi: issuance.ldi.to_owned(),
                    key_sha256: String::new(),
                    svids: Vec::new(),
                    enrollments: VecDeque::new(),
                    renewals: VecDeque::new(),
                });
                self.identities.len() - 1
            }
        };
        let identity = &mut self.identities[index];
        identity.svids.retain(|svid| svid.not_after >= now);
        if issuance.invalidates_earlier {
            identity.svids.iter_mut().for_each(|svid| svid.valid = false);
        }
        identity.key_sha256 = issuance.key_sha256.to_owned();
        identity.svids.push(Issued {
            sha256: x509::hex(&x509::sha256(leaf)),
            not_after: unix(not_after),
            valid: true,
        });
        match issuance.occasion {
            Occasion::Enrollment => identity.enrollments.push_back(Instant::now()),
            Occasion::Renewal => identity.renewals.push_back(Instant::now()),
        }
        self.save()
    }

    /// Forgets every device, as an MIS restored from too old a backup would.
    pub fn forget(&mut self) -> Result<()> {
        self.identities.clear();
        self.save()
    }

    /// Makes every SVID issued so far unusable for renewal, as a revocation would.
    pub fn invalidate_svids(&mut self) -> Result<()> {
        for identity in &mut self.identities {
            identity.svids.iter_mut().for_each(|svid| svid.valid = false);
        }
        self.save()
    }

    fn save(&self) -> Result<()> {
        pki::replace(&self.file, &serde_json::to_vec_pretty(&self.identities)?)
    }
}

impl Identity {
    /// Whether an SVID was issued to this identity and is still good for renewal.
    pub fn accepts(&self, leaf: &[u8]) -> bool {
        let digest = x509::hex(&x509::sha256(leaf));
        self.svids.iter().any(|svid| svid.valid && svid.sha256 == digest)
    }

    /// Seconds to wait where the limit is reached: until the oldest success that counts has left
    /// the window, at least one.
    pub fn over(&self, limit: Option<Limit>, occasion: Occasion) -> Option<u64> {
        let limit = limit?;
        let successes = match occasion {
            Occasion::Enrollment => &self.enrollments,
            Occasion::Renewal => &self.renewals,
        };
        let recent: Vec<Duration> =
            successes.iter().map(Instant::elapsed).filter(|age| *age < limit.window).collect();
        if recent.len() < limit.successes {
            return None;
        }
        // The one whose leaving makes room.
        let index = recent.len() - limit.successes;
        let wait = recent.get(index).map_or(limit.window, |age| limit.window - *age);
        Some(wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX))
    }
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
