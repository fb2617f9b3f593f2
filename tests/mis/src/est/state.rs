//! What the EST server remembers, in `est.json`: domains, authorizations, the issuance record.

use super::service::Kind;
use super::tokens::{Stored, Token, TokenSpec};
use crate::names::Name;
use crate::pki;
use crate::policy::{EstPolicy, Limit};
use crate::x509::{self, Der};
use development_server::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A Trust Domain at a path of its own (X17).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The path segment after `/.well-known/est/`.
    pub label: String,
    /// The Trust Domain.
    pub trust_domain: String,
}

/// What authorized an issuance (X90).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authorization {
    /// A token, by its user.
    Token(String),
    /// A registered certificate, by its SHA-256 (hexadecimal).
    Certificate(String),
    /// The SVID under renewal, by its SHA-256 (hexadecimal).
    Svid(String),
}

/// One line of the issuance record (X90).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// The SPIFFE ID authorized.
    pub spiffe_id: String,
    /// SHA-256 (hexadecimal) of the SubjectPublicKeyInfo of the CSR.
    pub key_sha256: String,
    /// When, in seconds since 1970.
    pub at: u64,
    /// By what.
    pub authorization: Authorization,
    /// SHA-256 (hexadecimal) of the certificate.
    pub certificate_sha256: String,
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// It was revoked since.
    pub revoked: bool,
}

/// A key not seen before for a SPIFFE ID that had another one (X90).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// SHA-256 (hexadecimal) of the new key's SubjectPublicKeyInfo.
    pub key_sha256: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// An enrollment that waits for review (X55).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The SPIFFE ID authorized.
    pub spiffe_id: String,
    /// SHA-256 (hexadecimal) of the SubjectPublicKeyInfo of the CSR.
    pub key_sha256: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// A certificate that authorizes the first enrollment of one SPIFFE ID.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Registered {
    certificate_sha256: String,
    spiffe_id: String,
}

#[derive(Default, Serialize, Deserialize)]
struct Record {
    domains: Vec<Domain>,
    tokens: Vec<Stored>,
    certificates: Vec<Registered>,
    issued: Vec<Issued>,
    alerts: Vec<Alert>,
    /// Revoked certificates that were not issued here, by SHA-256 (minted ones, for instance).
    revoked: BTreeSet<String>,
    hold: BTreeSet<String>,
    released: BTreeSet<String>,
    held: Vec<Held>,
    suspended: BTreeSet<String>,
}

/// The state.
pub struct State {
    file: PathBuf,
    own: Domain,
    record: Record,
    ahead: Duration,
    attempts: HashMap<String, VecDeque<Instant>>,
    /// What each connection has carried.
    kinds: HashMap<usize, Kind>,
}

impl State {
    /// Reads the file, where there is one. `own` is the MIS's own domain.
    pub fn open(file: PathBuf, own: Domain) -> Result<Self> {
        let record = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).context(file.display())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(error).context(file.display()),
        };
        Ok(Self { file, own, record, ahead: Duration::ZERO, attempts: HashMap::new(), kinds: HashMap::new() })
    }

    fn save(&self) -> Result<()> {
        pki::replace_with_mode(&self.file, &serde_json::to_vec_pretty(&self.record)?, 0o600)
    }

    /// Changes the record, durably.
    fn change<T>(&mut self, change: impl FnOnce(&mut Record) -> T) -> Result<T> {
        let done = change(&mut self.record);
        self.save()?;
        Ok(done)
    }

    /// The time by the test clock.
    pub fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + self.ahead
    }

    /// Puts the test clock forward.
    pub fn advance(&mut self, time: Duration) {
        self.ahead += time;
    }

    /// The MIS's own domain.
    pub fn own(&self) -> &Domain {
        &self.own
    }

    /// The domain of this label.
    pub fn domain(&self, label: &str) -> Option<&Domain> {
        std::iter::once(&self.own).chain(&self.record.domains).find(|one| one.label == label)
    }

    /// One more domain.
    pub fn add_domain(&mut self, domain: Domain) -> Result<()> {
        if !crate::names::is_segment(&domain.label) {
            return Err(Error::new(format!("{:?}: a label is one path segment", domain.label)));
        }
        match self.domain(&domain.label) {
            Some(same) if *same == domain => Ok(()),
            Some(_) => Err(Error::new(format!("the label {:?} is taken", domain.label))),
            None => self.change(|record| record.domains.push(domain)),
        }
    }

    /// Checks that a SPIFFE ID is one that this server may issue for (X88).
    pub fn check_id(&self, spiffe_id: &str, policy: &EstPolicy) -> Result<()> {
        let mut domains = std::iter::once(&self.own).chain(&self.record.domains);
        let name = domains.find_map(|domain| Name::parse(spiffe_id, &domain.trust_domain));
        match name {
            Some(Name::Wfm { .. } | Name::WfmClient { .. }) => Ok(()),
            Some(Name::Device) if policy.device_ids => Ok(()),
            Some(Name::Device) => {
                Err(Error::new(format!("{spiffe_id}: a device identity over EST is not standardized")))
            }
            None => Err(Error::new(format!("{spiffe_id:?} is not a WFM or a WFM Client of a domain here"))),
        }
    }

    /// A new token.
    pub fn token(&mut self, spec: &TokenSpec, policy: &EstPolicy) -> Result<Token> {
        self.check_id(&spec.spiffe_id, policy)?;
        let (token, stored) = Stored::create(spec, self.now().as_secs())?;
        if self.record.tokens.iter().any(|one| one.username == token.username) {
            return Err(Error::new(format!("there is a token of the user {:?} already", token.username)));
        }
        self.change(|record| record.tokens.push(stored))?;
        Ok(token)
    }

    /// Ends the tokens of this user.
    pub fn invalidate(&mut self, username: &str) -> Result<()> {
        let found = self.record.tokens.iter_mut().find(|one| one.username == username);
        found.ok_or_else(|| Error::new(format!("no token of the user {username:?}")))?.invalidate();
        self.save()
    }

    /// The token of these credentials, where it is good.
    pub fn find_token(&mut self, username: &str, secret: &str) -> std::result::Result<Stored, &'static str> {
        let now = self.now().as_secs();
        let found = Stored::find(&mut self.record.tokens, username, secret)
            .ok_or("no such user, or the secret is wrong")?;
        match found.refusal(now) {
            Some(why) => Err(why),
            None => Ok(found.clone()),
        }
    }

    fn stored(&mut self, username: &str) -> Option<&mut Stored> {
        self.record.tokens.iter_mut().find(|one| one.username == username)
    }

    /// Registers a certificate for one SPIFFE ID.
    pub fn register(&mut self, certificate: &Der, spiffe_id: &str, policy: &EstPolicy) -> Result<()> {
        self.check_id(spiffe_id, policy)?;
        let certificate_sha256 = digest(certificate);
        self.change(|record| {
            record.certificates.retain(|one| one.certificate_sha256 != certificate_sha256);
            record.certificates.push(Registered { certificate_sha256, spiffe_id: spiffe_id.to_owned() });
        })
    }

    /// Accepts a registered certificate no longer (X40).
    pub fn withdraw(&mut self, certificate: &Der) -> Result<()> {
        let certificate_sha256 = digest(certificate);
        self.change(|record| record.certificates.retain(|one| one.certificate_sha256 != certificate_sha256))
    }

    /// What a certificate is registered for.
    pub fn registered(&self, certificate: &[u8]) -> Option<String> {
        let certificate_sha256 = digest(certificate);
        let found = self.record.certificates.iter().find(|one| one.certificate_sha256 == certificate_sha256);
        found.map(|one| one.spiffe_id.clone())
    }

    /// Whether an enrollment of this SPIFFE ID waits for review.
    pub fn is_held(&self, spiffe_id: &str, policy: &EstPolicy) -> bool {
        self.record.hold.contains(spiffe_id) || (policy.review && !self.record.released.contains(spiffe_id))
    }

    /// Binds the token of an enrollment that waits, and notes it where an operator is to review it.
    pub fn note_held(
        &mut self,
        spiffe_id: &str,
        key_sha256: &str,
        user: Option<&str>,
        for_review: bool,
    ) -> Result<()> {
        let since = self.now().as_secs();
        if let Some(token) = user.and_then(|user| self.stored(user)) {
            token.hold(key_sha256);
        }
        self.change(|record| {
            let known = |one: &Held| one.spiffe_id == spiffe_id && one.key_sha256 == key_sha256;
            if for_review && !record.held.iter().any(known) {
                let (spiffe_id, key_sha256) = (spiffe_id.to_owned(), key_sha256.to_owned());
                record.held.push(Held { spiffe_id, key_sha256, since });
            }
        })
    }

    /// Holds the enrollments of a SPIFFE ID.
    pub fn hold(&mut self, spiffe_id: &str) -> Result<()> {
        self.change(|record| {
            record.hold.insert(spiffe_id.to_owned());
            record.released.remove(spiffe_id);
        })
    }

    /// Lets the enrollments of a SPIFFE ID pass.
    pub fn release(&mut self, spiffe_id: &str) -> Result<()> {
        self.change(|record| {
            record.hold.remove(spiffe_id);
            record.released.insert(spiffe_id.to_owned());
            record.held.retain(|one| one.spiffe_id != spiffe_id);
        })
    }

    /// The enrollments that wait.
    pub fn held(&self) -> Vec<Held> {
        self.record.held.clone()
    }

    /// Refuses every enrollment and renewal of a SPIFFE ID, or no more.
    pub fn suspend(&mut self, spiffe_id: &str, suspend: bool) -> Result<()> {
        self.change(|record| match suspend {
            true => record.suspended.insert(spiffe_id.to_owned()),
            false => record.suspended.remove(spiffe_id),
        })?;
        Ok(())
    }

    /// Whether it is suspended.
    pub fn is_suspended(&self, spiffe_id: &str) -> bool {
        self.record.suspended.contains(spiffe_id)
    }

    /// Records an issuance, consumes its token, and alerts to a new key.
    pub fn issued(&mut self, line: Issued) -> Result<()> {
        let now = self.now().as_secs();
        if let Authorization::Token(user) = &line.authorization
            && let Some(token) = self.stored(user)
        {
            token.consume(&line.key_sha256, now);
        }
        let of_id = |one: &&Issued| one.spiffe_id == line.spiffe_id;
        let mut earlier = self.record.issued.iter().filter(of_id).peekable();
        let new_key = earlier.peek().is_some() && earlier.all(|one| one.key_sha256 != line.key_sha256);
        self.change(|record| {
            if new_key {
                record.alerts.push(Alert {
                    spiffe_id: line.spiffe_id.clone(),
                    key_sha256: line.key_sha256.clone(),
                    at: line.at,
                });
            }
            record.issued.push(line);
        })
    }

    /// The issuance record, oldest first.
    pub fn record(&self) -> Vec<Issued> {
        self.record.issued.clone()
    }

    /// Keys not seen before, oldest first.
    pub fn alerts(&self) -> Vec<Alert> {
        self.record.alerts.clone()
    }

    /// Revokes every SVID of a SPIFFE ID so far; how many.
    pub fn revoke(&mut self, spiffe_id: &str) -> Result<usize> {
        self.change(|record| {
            let lines = record.issued.iter_mut().filter(|one| one.spiffe_id == spiffe_id && !one.revoked);
            lines.map(|one| one.revoked = true).count()
        })
    }

    /// Revokes one certificate, from whichever authority.
    pub fn revoke_certificate(&mut self, certificate: &[u8]) -> Result<()> {
        let certificate_sha256 = digest(certificate);
        self.change(|record| {
            let lines = record.issued.iter_mut().filter(|one| one.certificate_sha256 == certificate_sha256);
            lines.for_each(|one| one.revoked = true);
            record.revoked.insert(certificate_sha256);
        })
    }

    /// Whether a certificate was revoked.
    pub fn is_revoked(&self, certificate: &[u8]) -> bool {
        let certificate_sha256 = digest(certificate);
        let issued = |one: &Issued| one.certificate_sha256 == certificate_sha256 && one.revoked;
        self.record.revoked.contains(&certificate_sha256) || self.record.issued.iter().any(issued)
    }

    /// Whether a connection has carried another kind of request before (X28).
    pub fn shares_connection(&mut self, connection: usize, kind: Kind) -> bool {
        *self.kinds.entry(connection).or_insert(kind) != kind
    }

    /// Counts an attempt of this client; the seconds to wait where it had too many (X89).
    pub fn attempt(&mut self, client: &str, limit: Option<Limit>) -> Option<u64> {
        let Limit { successes: most, window } = limit?;
        let attempts = self.attempts.entry(client.to_owned()).or_default();
        attempts.retain(|at| at.elapsed() < window);
        if attempts.len() < most {
            attempts.push_back(Instant::now());
            return None;
        }
        let oldest = attempts.front().map_or(Duration::ZERO, Instant::elapsed);
        Some(window.saturating_sub(oldest).as_secs() + 1)
    }
}

/// SHA-256 of a certificate, lowercase hexadecimal.
pub fn digest(certificate: &[u8]) -> String {
    x509::hex(&x509::sha256(certificate))
}
