//! The operator's side of the EST server: in the process, and as JSON for the admin socket.

use super::EST_PATH;
use super::state::{Alert, Domain, Held, Issued};
use super::tokens::{Token, TokenSpec};
use crate::clients;
use crate::documents;
use crate::journal::Violation;
use crate::pem;
use crate::service::Service;
use crate::x509::Der;
use development_server::{Context, Error, Result, lock};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The operator's interface of the EST server ([`Mis::est`](crate::Mis::est)).
#[derive(Clone, Copy)]
pub struct Est<'a>(pub(crate) &'a Service);

impl Est<'_> {
    /// The EST endpoint of the MIS's own Trust Domain: what an agent has as `mis.est_url`.
    pub fn url(&self) -> String {
        let label = lock(&self.0.est).own().label.clone();
        format!("{}{EST_PATH}/{label}", self.0.base)
    }

    /// The EST endpoint of this label.
    pub fn url_of(&self, label: &str) -> String {
        format!("{}{EST_PATH}/{label}", self.0.base)
    }

    /// One more Trust Domain, at `/.well-known/est/LABEL`, with a root of its own.
    ///
    /// # Errors
    ///
    /// A label that is taken, or no path segment.
    pub fn add_domain(&self, label: &str, trust_domain: &str) -> Result<()> {
        let domain = Domain { label: label.to_owned(), trust_domain: trust_domain.to_owned() };
        lock(&self.0.est).add_domain(domain)
    }

    /// The trust bundle of a domain in the released form, as JSON: for an agent that has it as a
    /// file.
    ///
    /// # Errors
    ///
    /// A label that is not known.
    pub fn bundle_of(&self, label: &str) -> Result<String> {
        let domain = lock(&self.0.est).domain(label).cloned();
        let domain = domain.ok_or_else(|| Error::new(format!("no domain has the label {label:?}")))?;
        let pki = lock(&self.0.pki);
        let bundle = documents::plain_bundle(&pki.est_anchors(&domain)?, pki.sequence(), Some(300))?;
        Ok(bundle.to_string())
    }

    /// The SPIFFE ID of a WFM Client of the MIS's own Trust Domain.
    pub fn client_id(&self, wfm_id: &str, client_id: &str) -> String {
        format!("spiffe://{}/margo/wfm/{wfm_id}/client/{client_id}", self.0.trust_domain)
    }

    /// A single-use token for this SPIFFE ID, valid for one hour.
    ///
    /// # Panics
    ///
    /// Where [`token_with`](Self::token_with) fails.
    pub fn token(&self, spiffe_id: &str) -> Token {
        self.token_with(&TokenSpec::new(spiffe_id)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Creates a token (X36).
    ///
    /// # Errors
    ///
    /// A SPIFFE ID that is not of a domain here, or of no shape that is issued (X7, X88); a user
    /// that has a token; a secret of less than 128 bits.
    pub fn token_with(&self, spec: &TokenSpec) -> Result<Token> {
        let policy = lock(&self.0.policy).est.clone();
        lock(&self.0.est).token(spec, &policy)
    }

    /// Ends the token of this user (X36). What was issued for it stays (X41).
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub fn invalidate(&self, username: &str) -> Result<()> {
        lock(&self.0.est).invalidate(username)
    }

    /// Registers exactly this certificate (PEM, leaf first) for one SPIFFE ID: it authorizes first
    /// enrollments until it is withdrawn or expires (X40). Its chain has to end at a manufacturer's
    /// CA of this MIS, now and at each use.
    ///
    /// # Errors
    ///
    /// A chain that is not valid, or a SPIFFE ID that is not issued here.
    pub fn authorize(&self, certificate: &Path, spiffe_id: &str) -> Result<()> {
        let chain = chain_of(certificate)?;
        let policy = lock(&self.0.policy).est.clone();
        let anchors = lock(&self.0.pki).factory_anchors().to_vec();
        let mut state = lock(&self.0.est);
        let presented: Vec<_> = chain.iter().cloned().map(CertificateDer::from).collect();
        clients::judge_certificate(&presented, &anchors, UnixTime::since_unix_epoch(state.now()))
            .context(certificate.display())?;
        state.register(&leaf(chain), spiffe_id, &policy)
    }

    /// Accepts a registered certificate no longer. What was issued for it stays (X41).
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn withdraw(&self, certificate: &Path) -> Result<()> {
        lock(&self.0.est).withdraw(&leaf(chain_of(certificate)?))
    }

    /// Everything issued over EST, oldest first (X90).
    pub fn record(&self) -> Vec<Issued> {
        lock(&self.0.est).record()
    }

    /// The keys that were new for a SPIFFE ID, oldest first (X90).
    pub fn alerts(&self) -> Vec<Alert> {
        lock(&self.0.est).alerts()
    }

    /// What clients did that they must not, with the path, oldest first.
    pub fn violations(&self) -> Vec<(String, Violation)> {
        let entries = self.0.journal.entries();
        let of_entry = |entry: &crate::journal::Entry| {
            entry.violations.iter().map(|one| (entry.path.clone(), *one)).collect::<Vec<_>>()
        };
        entries.iter().flat_map(of_entry).collect()
    }

    /// Revokes every SVID of this SPIFFE ID that was issued over EST so far; how many.
    ///
    /// # Errors
    ///
    /// Where the state cannot be written.
    pub fn revoke(&self, spiffe_id: &str) -> Result<usize> {
        lock(&self.0.est).revoke(spiffe_id)
    }

    /// Revokes one certificate (PEM, leaf first), whether it was issued over EST or minted.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn revoke_certificate(&self, certificate: &Path) -> Result<()> {
        lock(&self.0.est).revoke_certificate(&leaf(chain_of(certificate)?))
    }

    /// Holds the first enrollments of this SPIFFE ID for review: `202` (X55).
    ///
    /// # Errors
    ///
    /// Where the state cannot be written.
    pub fn hold(&self, spiffe_id: &str) -> Result<()> {
        lock(&self.0.est).hold(spiffe_id)
    }

    /// Lets them pass.
    ///
    /// # Errors
    ///
    /// Where the state cannot be written.
    pub fn release(&self, spiffe_id: &str) -> Result<()> {
        lock(&self.0.est).release(spiffe_id)
    }

    /// The enrollments that wait.
    pub fn held(&self) -> Vec<Held> {
        lock(&self.0.est).held()
    }

    /// Refuses every enrollment and renewal of this SPIFFE ID, as any other is refused.
    ///
    /// # Errors
    ///
    /// Where the state cannot be written.
    pub fn suspend(&self, spiffe_id: &str) -> Result<()> {
        lock(&self.0.est).suspend(spiffe_id, true)
    }

    /// Ends this.
    ///
    /// # Errors
    ///
    /// Where the state cannot be written.
    pub fn reinstate(&self, spiffe_id: &str) -> Result<()> {
        lock(&self.0.est).suspend(spiffe_id, false)
    }

    /// Puts the clock of the EST server forward: for tokens, their window of retries, and the
    /// validity of certificates presented. What it issues has the real time.
    pub fn advance(&self, time: Duration) {
        lock(&self.0.est).advance(time);
    }

    /// Rolls the root over (RFC 4210, section 4.4): the trust bundle has a new root of the same
    /// name only, `/cacerts` has OldWithNew and NewWithOld, and the old one goes on issuing. Lasts
    /// until the MIS ends.
    ///
    /// # Errors
    ///
    /// Those of key and certificate.
    pub fn roll_over(&self) -> Result<()> {
        lock(&self.0.pki).roll_over()
    }

    /// Carries out one request of the admin socket.
    pub(crate) fn execute(&self, request: &[u8]) -> Value {
        let answer = serde_json::from_slice(request)
            .map_err(|error| Error::new(format!("not a request: {error}")))
            .and_then(|command| self.command(command));
        answer.unwrap_or_else(|error| json!({ "error": error.to_string() }))
    }

    fn command(&self, command: Command) -> Result<Value> {
        let done = |result: Result<()>| result.map(|()| json!({}));
        match command {
            Command::Token { spiffe_id, valid_seconds, reusable, username, secret } => {
                let valid = Duration::from_secs(valid_seconds);
                let token = self.token_with(&TokenSpec { spiffe_id, valid, reusable, username, secret })?;
                Ok(json!({ "username": token.username, "secret": token.secret }))
            }
            Command::Invalidate { username } => done(self.invalidate(&username)),
            Command::Authorize { certificate, spiffe_id } => done(self.authorize(&certificate, &spiffe_id)),
            Command::Withdraw { certificate } => done(self.withdraw(&certificate)),
            Command::Record {} => Ok(json!({ "issued": self.record() })),
            Command::Alerts {} => Ok(json!({ "alerts": self.alerts() })),
            Command::Violations {} => {
                let list = self.violations().into_iter();
                let list = list.map(|(path, what)| json!({ "path": path, "violation": what.to_string() }));
                Ok(json!({ "violations": list.collect::<Vec<_>>() }))
            }
            Command::Revoke { spiffe_id } => Ok(json!({ "revoked": self.revoke(&spiffe_id)? })),
            Command::RevokeCertificate { certificate } => done(self.revoke_certificate(&certificate)),
            Command::Hold { spiffe_id } => done(self.hold(&spiffe_id)),
            Command::Release { spiffe_id } => done(self.release(&spiffe_id)),
            Command::Held {} => Ok(json!({ "held": self.held() })),
            Command::Suspend { spiffe_id } => done(self.suspend(&spiffe_id)),
            Command::Reinstate { spiffe_id } => done(self.reinstate(&spiffe_id)),
            Command::Advance { seconds } => {
                self.advance(Duration::from_secs(seconds));
                Ok(json!({}))
            }
            Command::AddDomain { label, trust_domain } => done(self.add_domain(&label, &trust_domain)),
        }
    }
}

/// A request of the admin socket.
#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
enum Command {
    Token {
        spiffe_id: String,
        #[serde(default = "one_hour")]
        valid_seconds: u64,
        #[serde(default)]
        reusable: bool,
        username: Option<String>,
        secret: Option<String>,
    },
    Invalidate {
        username: String,
    },
    Authorize {
        certificate: PathBuf,
        spiffe_id: String,
    },
    Withdraw {
        certificate: PathBuf,
    },
    Record {},
    Alerts {},
    Violations {},
    Revoke {
        spiffe_id: String,
    },
    RevokeCertificate {
        certificate: PathBuf,
    },
    Hold {
        spiffe_id: String,
    },
    Release {
        spiffe_id: String,
    },
    Held {},
    Suspend {
        spiffe_id: String,
    },
    Reinstate {
        spiffe_id: String,
    },
    Advance {
        seconds: u64,
    },
    AddDomain {
        label: String,
        trust_domain: String,
    },
}

fn one_hour() -> u64 {
    3600
}

fn chain_of(file: &Path) -> Result<Vec<Der>> {
    pem::certificates(&fs::read(file).context(file.display())?).context(file.display())
}

/// The first one; [`pem::certificates`] returns at least that.
fn leaf(mut chain: Vec<Der>) -> Der {
    chain.swap_remove(0)
}
