//! SVIDs that an operator brings (N9): the certification request, the chain by command or in a file,
//! and the key where that is installed as well. From here on it is a chain like any issued one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{SHA256, digest};

use super::blocking;
use super::executor::Executor;
use super::identity::{Identity, bundle_for, proven};
use super::persist::save;
use super::reporting::cause;
use crate::config::{Enrollment, EstAuthorizationConfig, IdentityConfig, MisConfig, Rotate};
use crate::hint::Reason;
use crate::keys::{self, ErrorKind, Key, KeyFloor, ProviderKind, Providers};
use crate::lifecycle::{Event, IdentityIndex, KeyChoice, Supplied};
use crate::platform::credentials::Secret;
use crate::platform::{access, clock, files};
use crate::problem::{LastError, ProblemCode, Report};
use crate::server::command_queue::Decision;
use crate::state::{self, Store};
use miaf_client::api::{IdentityName, MAX_CHAIN_PEM};
use miaf_spiffe::svid::{Chain, SvidError, X509Svid};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{MaybeNamedBundle, SpiffeId, TrustDomain};

/// Limit on the characters of a path in a message.
const MAX_PATH: usize = 512;
/// Limit on the characters of a path in a hint.
const MAX_PATH_IN_HINT: usize = 160;
/// Limit on the bytes of a file with a chain.
const MAX_CHAIN_FILE: u64 = MAX_CHAIN_PEM as u64;
/// What to do where the trust bundle does not vouch for a chain.
pub(super) const MISSING_ISSUER: &str = "Compare its issuer with the CAs in the trust bundle, which this prints: \
     miaf-agent bundle; where an intermediate signed it, append its certificate to the chain, and bring that; where the \
     bundle lacks the CA, have it corrected, then: miaf-agent retry";

/// What was done for an operator, and what the lifecycle has to know of it.
pub(super) struct Supply {
    pub(super) decision: Decision,
    pub(super) events: Vec<Event>,
}

impl Executor {
    /// Makes a certification request for an identity. The key is stored before the request is returned.
    /// Until a chain for it is adopted, each further request is for the same key.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn certification_request(
        &mut self,
        index: IdentityIndex,
        spiffe_id: Option<&SpiffeId>,
    ) -> Result<Supply, Reason> {
        let keys = self.keys.clone();
        let trust_domain = self.trust_domain.name(&self.identities).cloned();
        let Some(identity) = self.identities.get_mut(index.0) else { return Err(gone()) };
        let named = spiffe_id.or(identity.config.spiffe_id.as_ref()).cloned();
        if let Some(id) = spiffe_id {
            identity.check_name(id, trust_domain.as_ref())?;
        }
        let (key, is_new) = identity.key_to_certify(&keys).await?;
        let csr = blocking(move || {
            let der = keys::csr::certification_request(key.as_ref(), named.as_ref())?;
            keys::csr::to_pem(&der)
        });
        let csr = csr.await.map_err(|e| Reason::of(&e))?;
        identity.requested_at = Some(clock::now().wall);
        let events = if is_new { vec![Event::Supplied(index, Supplied::Key)] } else { Vec::new() };
        Ok(Supply { decision: Decision::Csr(csr), events })
    }

    /// Stores a chain that an operator brings, to be adopted in the next step like any issued one.
    ///
    /// # Errors
    /// Why it is refused. The current SVID stays.
    pub(super) async fn install(&mut self, index: IdentityIndex, chain: Chain) -> Result<Supply, Reason> {
        let bundle = self.trust_domain.bundle.as_ref().map(|cached| cached.bundle.clone());
        let keys = self.opener();
        let Some(identity) = self.identities.get_mut(index.0) else { return Err(gone()) };
        if identity.has(&chain) {
            let decision = Decision::Accepted("Nothing changes: this SVID is installed already.".to_owned());
            return Ok(Supply { decision, events: Vec::new() });
        }
        let certified = identity.key_of(&chain, &keys).await?;
        let issued = issued(chain, certified.choice());
        let detail = identity.judge(&issued, certified.key(), bundle.as_ref())?;
        let supplied =
            identity.store_certified(certified, issued, &keys).await.map_err(|e| Reason::of(&e))?;
        let events = supplied.into_iter().map(|what| Event::Supplied(index, what)).collect();
        Ok(Supply { decision: Decision::Accepted(detail), events })
    }

    /// Opens the keys that the configuration allows.
    fn opener(&self) -> Opener {
        Opener { keys: self.keys.clone(), require: self.config.key.require }
    }

    /// The files that operators supply identities with, and the one with the trust bundle (X12).
    pub(super) fn operator_files(&self) -> Vec<PathBuf> {
        let files = self.identities.iter().flat_map(|identity| match &identity.config.enroll {
            Enrollment::Manual { svid_file } => [svid_file.clone(), None],
            Enrollment::Installed { svid_file, key } => [Some(svid_file.clone()), key.file()],
            Enrollment::Est(est) => match &est.authorization {
                EstAuthorizationConfig::Token { source, .. } => {
                    [source.as_ref().and_then(Secret::file), None]
                }
                EstAuthorizationConfig::Certificate(certificate) => certificate.files(),
            },
            Enrollment::FactoryCert | Enrollment::WfmBinding(_) => [None, None],
        });
        let bundle = self.config.mis.as_ref().and_then(MisConfig::bundle_file);
        files.flatten().chain(bundle.map(Path::to_owned)).collect()
    }

    /// Reads these files, and stores what is new in them. Returns what the lifecycle has to know.
    pub(super) async fn read_operator_files(&mut self) -> Vec<Event> {
        let bundle = self.trust_domain.bundle.as_ref().map(|cached| cached.bundle.clone());
        let keys = self.opener();
        let mut events = Vec::new();
        for identity in &mut self.identities {
            let read = match identity.config.enroll.clone() {
                Enrollment::Manual { svid_file: Some(file) } => {
                    identity.read_chain(&file, &keys, bundle.as_ref()).await
                }
                Enrollment::Installed { svid_file, key } => {
                    identity.read_installed(&svid_file, &key, &keys.keys, bundle.as_ref()).await
                }
                Enrollment::Est(est) => {
                    identity.finish_est_request().await;
                    if est.certificate().is_some() {
                        continue;
                    }
                    identity.read_token(est.token()).await
                }
                _ => continue,
            };
            events.extend(identity.note_operator_files(read));
        }
        events
    }
}

impl Identity {
    /// Notes the outcome of reading an operator's files. Returns what the lifecycle has to know.
    pub(super) fn note_operator_files(&mut self, read: Result<Vec<Supplied>, Report>) -> Vec<Event> {
        match read {
            Ok(supplied) => {
                self.operator_problem = None;
                supplied.into_iter().map(|what| Event::Supplied(self.index, what)).collect()
            }
            Err(report) => {
                self.report_operator_problem(report);
                Vec::new()
            }
        }
    }

    /// Checks that this identity may have the SPIFFE ID of a request. `trust_domain`: that of the
    /// device, if it is known yet.
    fn check_name(&self, id: &SpiffeId, trust_domain: Option<&TrustDomain>) -> Result<(), Reason> {
        if !self.config.enroll.name_kind().includes(id) {
            let what = format!("{id} is not the SPIFFE ID of a WFM Client");
            let hint = "Write spiffe://<trust domain>/margo/wfm/<wfm-id>/client/<client-id>";
            return Err(Reason::from(what).with_hint_text(hint));
        }
        if let Some(own) = trust_domain.filter(|own| *own != id.trust_domain()) {
            let what = format!("{id} is not in the trust domain of this device, {own}");
            return Err(Reason::from(what).with_hint_text("Request a SPIFFE ID of that trust domain"));
        }
        match self.config.spiffe_id.as_ref().filter(|guard| *guard != id) {
            Some(guard) => Err(Reason::from(format!(
                "the configuration allows this identity only the SPIFFE ID {guard}"
            ))
            .with_hint_text("Request that one, or correct spiffe_id under its [[identity]]")),
            None => Ok(()),
        }
    }

    /// The key for the next SVID, and whether it has taken the place of another, or of none, now.
    async fn key_to_certify(&mut self, keys: &Providers) -> Result<(Arc<dyn Key>, bool), Reason> {
        if let Some(key) = self.pending_key.clone() {
            match proven(&key).await {
                Ok(()) => return Ok((key, false)),
                Err(e) if e.kind() != ErrorKind::KeyUnusable => return Err(Reason::of(&e)),
                // Nothing else would ever replace it: no request is sent that could fail.
                Err(e) => {
                    self.quarantine_pending_key(&e, keys).await;
                    if let Some(recovered) = self.pending_key.clone() {
                        return Ok((recovered, true));
                    }
                }
            }
        }
        let provider = self.config.key.provider;
        if let Some(current) = self.current.as_ref().filter(|_| self.config.key.rotate == Rotate::Never)
            && current.key.provider() == provider
        {
            match proven(&current.key).await {
                Ok(()) => return Ok((current.key.clone(), false)),
                Err(e) if e.kind() != ErrorKind::KeyUnusable => return Err(Reason::of(&e)),
                Err(_) => {} // it is lost, and replaced
            }
        }
        self.create_key(keys).await.map_err(|failure| Reason {
            what: failure.report.message(),
            hint: failure.report.hint().map(str::to_owned),
        })?;
        let key = self.pending_key.clone().ok_or_else(gone)?;
        Ok((key, true))
    }

    /// Whether this chain is that of the current SVID, or is about to be adopted.
    fn has(&self, chain: &Chain) -> bool {
        self.current.as_ref().is_some_and(|current| current.svid.chain() == chain)
    }

    /// The key of this identity that a chain was issued for.
    async fn key_of(&self, chain: &Chain, keys: &Opener) -> Result<Certified, Reason> {
        let spki = spki(chain)?;
        let is_for = |key: &Arc<dyn Key>| key.public_key().spki_der() == spki;
        if let Some(key) = self.pending_key.clone().filter(is_for) {
            return Ok(Certified::Pending(key));
        }
        let current = self.current.as_ref().map(|current| current.key.clone());
        if let Some(key) = current.filter(is_for) {
            return Ok(Certified::Current(key));
        }
        // It was requested under another configuration, or with a TPM that is back.
        let (store, keys) = (self.store.clone(), keys.clone());
        let found = blocking(move || store.find_quarantined(|record| keys.open_for(record, &spki)));
        if let Some((_, key, _)) = found.await {
            // It may have been quarantined because this TPM does not know it.
            return match proven(&key).await {
                Ok(()) => Ok(Certified::Quarantined(key)),
                Err(e) => Err(Reason::of(&e)),
            };
        }
        let hint =
            format!("Have the request signed that this prints: miaf-agent csr --identity {}", self.name);
        Err(Reason::from("the certificate is for another key than this identity has").with_hint_text(hint))
    }

    /// Stores a chain with the key that it was issued for. Returns what the lifecycle has to know.
    async fn store_certified(
        &mut self,
        certified: Certified,
        issued: state::StoredIssuedChain,
        keys: &Opener,
    ) -> Result<Vec<Supplied>, state::StoreError> {
        let mut supplied = Vec::new();
        if let Certified::Quarantined(key) = certified {
            let (store, keys, spki) = (self.store.clone(), keys.clone(), key.public_key().spki_der());
            blocking(move || store.recover(|record| keys.open_for(record, &spki))).await;
            self.pending_key = Some(key);
            supplied.push(Supplied::Key);
        }
        self.store_issued(issued).await?;
        supplied.push(Supplied::Chain);
        Ok(supplied)
    }

    /// Validates a chain by the rules of an issued one. Returns what will become of it, in a sentence.
    fn judge(
        &self,
        issued: &state::StoredIssuedChain,
        key: &Arc<dyn Key>,
        bundle: Option<&MaybeNamedBundle>,
    ) -> Result<String, Reason> {
        let Some(bundle) = bundle else {
            return Ok("The chain is stored. There is no trust bundle yet to validate it with; it is adopted when there is."
                .to_owned());
        };
        match self.validate_against(bundle, issued, key) {
            Ok(svid) => Ok(adopted(&svid)),
            Err(SvidError::NotYetValid { not_before }) => {
                Ok(format!("The chain is stored, and adopted when it becomes valid, at {not_before}."))
            }
            Err(why) if why.depends_on_bundle() && self.holds_a_good_chain(bundle) => Err(Reason::from(format!(
                "{why}. It would take the place of a chain that is stored until it becomes valid"
            ))
            .with_hint_text("Try again when the trust bundle has its issuer, or when the other chain is in use")),
            Err(why) if why.depends_on_bundle() => {
                Ok("The chain is stored. The trust bundle does not vouch for it: the bundle is refreshed, and the chain \
                    validated again; the status shows the result."
                    .to_owned())
            }
            Err(why) => Err(Reason::from(why.to_string()).with_hint_text(self.what_to_bring(&why))),
        }
    }

    fn validate_against(
        &self,
        bundle: &MaybeNamedBundle,
        issued: &state::StoredIssuedChain,
        key: &Arc<dyn Key>,
    ) -> Result<X509Svid, SvidError> {
        self.validate(issued, key, &*bundle_for(bundle, &issued.chain)?)
    }

    /// What to do where the chain that an operator has brought is refused.
    pub(super) fn what_to_bring(&self, why: &SvidError) -> String {
        use SvidError as E;
        match why {
            E::OtherIdentity { .. } => {
                "Have a certificate with the SPIFFE ID of this identity issued; or correct spiffe_id under its [[identity]]"
                    .to_owned()
            }
            E::OtherTrustDomain { want, .. } => {
                format!("Have a certificate with a SPIFFE ID of the trust domain {want} issued")
            }
            E::OtherKindOfName { .. } | E::NotASpiffeId { .. } | E::UriCount(_) => {
                "Have a certificate with the SPIFFE ID of a WFM Client issued: \
                 spiffe://<trust domain>/margo/wfm/<wfm-id>/client/<client-id>"
                    .to_owned()
            }
            E::Expired { .. } => {
                "Bring one that is valid now; if this one should be, compare the clock of this device with that of the issuer"
                    .to_owned()
            }
            E::FarFuture { .. } => {
                "Bring it again when it is valid; if it should be now, compare the clock of this device with that of the \
                 issuer"
                    .to_owned()
            }
            E::UnknownIssuer | E::IssuerExpired { .. } => MISSING_ISSUER.to_owned(),
            _ => "Have the issuer correct what the error names, and bring another certificate".to_owned(),
        }
    }

    /// Whether a chain is stored that the bundle vouches for, now or when it becomes valid. One that
    /// may yet be refused must not replace it, nor an installed key the only copy of its key.
    fn holds_a_good_chain(&self, bundle: &MaybeNamedBundle) -> bool {
        let Some(held) = &self.issued else { return false };
        let choice = if held.for_pending_key { KeyChoice::Pending } else { KeyChoice::Current };
        let verdict = self.key(choice).map(|key| self.validate_against(bundle, held, &key));
        matches!(verdict, Ok(Ok(_) | Err(SvidError::NotYetValid { .. })))
    }

    /// Reads the file in which an operator leaves the chain.
    async fn read_chain(
        &mut self,
        file: &Path,
        keys: &Opener,
        bundle: Option<&MaybeNamedBundle>,
    ) -> Result<Vec<Supplied>, Report> {
        let Some(chain) = read_chain(file).await? else { return Ok(Vec::new()) };
        if self.has(&chain) || self.supersedes(&chain) {
            return Ok(Vec::new());
        }
        let refused = |why: &Reason| refused(file, why);
        let certified = self.key_of(&chain, keys).await.map_err(|why| refused(&why))?;
        let issued = issued(chain, certified.choice());
        if self.issued.as_ref() == Some(&issued) && !matches!(certified, Certified::Quarantined(_)) {
            return Ok(Vec::new());
        }
        self.judge(&issued, certified.key(), bundle).map_err(|why| refused(&why))?;
        self.store_certified(certified, issued, keys).await.map_err(|e| not_stored(&e))
    }

    /// Whether the current SVID came after this chain: a file that was left behind.
    fn supersedes(&self, chain: &Chain) -> bool {
        let Some(current) = &self.current else { return false };
        let other = X509Svid::from_stored(chain.clone());
        other.is_ok_and(|other| other.not_before() < current.svid.not_before())
    }

    /// Reads the files of an installed identity. Both are replaced one after the other: a pair that
    /// does not belong together is no more than an error that is shown.
    async fn read_installed(
        &mut self,
        svid_file: &Path,
        secret: &Secret,
        keys: &Providers,
        bundle: Option<&MaybeNamedBundle>,
    ) -> Result<Vec<Supplied>, Report> {
        let missing = || {
            let why = Reason::from("the file does not exist")
                .with_hint_text("Put the certificate chain there, leaf first, in PEM");
            refused(svid_file, &why)
        };
        let chain = read_chain(svid_file).await?.ok_or_else(missing)?;
        if self.has(&chain) {
            self.imported_key = None;
            return Ok(Vec::new());
        }
        let secret_shown = secret.shown();
        let (secret, keys, before) = (secret.clone(), keys.clone(), self.imported_key.take());
        let imported = blocking(move || {
            let pem = secret.read_key().map_err(|e| Reason::of(&e))?;
            let digest = digest(&SHA256, &pem).as_ref().to_vec();
            // A pair that is refused is looked at again and again; its key is sealed once.
            if let Some(known) = before.filter(|before| before.digest == digest) {
                return Ok(known);
            }
            let origin = format!("the key of {}", secret.shown());
            let key = keys.import(&pem, &origin).map_err(|e| Reason::of(&e))?;
            let record = key.to_pem().map_err(|e| Reason::of(&e))?;
            Ok::<_, Reason>(ImportedKey { digest, key, record })
        });
        let refused = |why: &Reason| refused(svid_file, why);
        let imported = imported.await.map_err(|why| refused(&why))?;
        let (key, record) = (imported.key.clone(), imported.record.clone());
        self.imported_key = Some(imported);
        if key.public_key().spki_der() != spki(&chain).map_err(|why| refused(&why))? {
            let why = Reason::from(format!(
                "its certificate is for another key than that in {}",
                Excerpt::of(&secret_shown, MAX_PATH)
            ))
            .with_hint_text(
                "Replace the files that svid_file and key_file name by a pair that belongs together",
            );
            return Err(refused(&why));
        }
        let issued = issued(chain, KeyChoice::Pending);
        if self.issued.as_ref() == Some(&issued) {
            return Ok(Vec::new());
        }
        self.judge(&issued, &key, bundle).map_err(|why| refused(&why))?;
        self.keep_requested_key().await;
        let saved = save(&self.store, state::StoredPendingKey { key: record }).await;
        saved.map_err(|e| not_stored(&e))?;
        self.pending_key = Some(key);
        self.store_issued(issued).await.map_err(|e| not_stored(&e))?;
        Ok(vec![Supplied::Key, Supplied::Chain])
    }

    /// Quarantines a pending key that is not an installed one, which came with its chain: a request for
    /// it may be out, from the time when this identity was enrolled by hand.
    async fn keep_requested_key(&mut self) {
        let has_chain = self.issued.as_ref().is_some_and(|issued| issued.for_pending_key);
        let is_requested = |key: &Arc<dyn Key>| key.provider() != ProviderKind::Software || !has_chain;
        if self.pending_key.take_if(|key| is_requested(key)).is_none() {
            return;
        }
        let store = self.store.clone();
        let why = "it was created for a certification request, and another key is installed; the chain for the request can \
                   still be installed with enroll = \"manual\"";
        blocking(move || store.quarantine::<state::StoredPendingKey>(why)).await;
    }

    fn report_operator_problem(&mut self, report: Report) {
        if self.operator_problem.as_ref().is_some_and(|known| known.report == report) {
            return;
        }
        tracing::error!(
            identity = self.name.as_str(),
            code = report.code.as_str(),
            hint = report.hint(),
            "{}",
            cause(&report.message())
        );
        self.operator_problem = Some(LastError { report, at: clock::now().wall, permanent: true });
    }
}

/// When the last certification request was made before this start. The moment at which the key for
/// it was created, since requests are not stored.
pub(super) fn requested_before(store: &Store, config: &IdentityConfig, has_key: bool) -> Option<Timestamp> {
    let is_manual = matches!(config.enroll, Enrollment::Manual { .. });
    if is_manual && has_key { store.changed_at::<state::StoredPendingKey>() } else { None }
}

/// What an operator does once a request is made.
pub(super) fn install_hint(name: &IdentityName, enroll: &Enrollment, requested_at: Timestamp) -> String {
    let into_file = match enroll {
        Enrollment::Manual { svid_file: Some(file) } => {
            format!("; or put the chain into {}", Excerpt::of(file.display(), MAX_PATH_IN_HINT))
        }
        _ => String::new(),
    };
    format!(
        "Have the request of {requested_at} signed, and install the chain: miaf-agent install --identity {name} \
         chain.pem{into_file}; to print the request again: miaf-agent csr --identity {name}"
    )
}

/// The key of an identity that a chain was issued for.
enum Certified {
    Pending(Arc<dyn Key>),
    Current(Arc<dyn Key>),
    /// It takes the place of the pending one.
    Quarantined(Arc<dyn Key>),
}

impl Certified {
    fn key(&self) -> &Arc<dyn Key> {
        let (Self::Pending(key) | Self::Current(key) | Self::Quarantined(key)) = self;
        key
    }

    fn choice(&self) -> KeyChoice {
        match self {
            Self::Pending(_) | Self::Quarantined(_) => KeyChoice::Pending,
            Self::Current(_) => KeyChoice::Current,
        }
    }
}

/// Opens the keys that the configuration allows.
#[derive(Clone)]
struct Opener {
    keys: Providers,
    require: Option<KeyFloor>,
}

impl Opener {
    /// Opens a key, if it is the one of this subject public key info.
    fn open_for(&self, record: &state::StoredPendingKey, spki: &[u8]) -> Result<Arc<dyn Key>, String> {
        let key = self.keys.open(&record.key).map_err(|e| e.to_string())?;
        if key.public_key().spki_der() != spki {
            return Err("it is another key".to_owned());
        }
        let checked = self.require.map_or(Ok(()), |floor| floor.check(key.protection()));
        checked.map(|()| key).map_err(|e| e.to_string())
    }
}

/// A key that was sealed, and is not stored: the chain for it is refused.
pub(super) struct ImportedKey {
    /// SHA-256 of what was read.
    digest: Vec<u8>,
    key: Arc<dyn Key>,
    /// As it is stored.
    record: String,
}

pub(super) fn gone() -> Reason {
    Reason::from("the configuration does not have this identity any more")
        .with_hint_text("See those that it has: miaf-agent status")
}

fn adopted(svid: &X509Svid) -> String {
    format!(
        "The SVID is valid: {}, serial number {}, until {}.",
        svid.spiffe_id(),
        svid.serial(),
        svid.until()
    )
}

/// The record of a chain that an operator has brought.
fn issued(chain: Chain, choice: KeyChoice) -> state::StoredIssuedChain {
    state::StoredIssuedChain {
        renewal: false,
        for_pending_key: choice == KeyChoice::Pending,
        may_rename: true,
        credential: None,
        chain,
        lacks_issuers: false,
    }
}

/// The subject public key info of the leaf.
fn spki(chain: &Chain) -> Result<Vec<u8>, Reason> {
    let leaf = webpki::EndEntityCert::try_from(chain.leaf());
    let leaf = leaf.map_err(|_| {
        let why = Reason::from("the first certificate of the chain cannot be read");
        why.with_hint_text("Put the certificate of the identity first, and its intermediates after it")
    })?;
    Ok(leaf.subject_public_key_info().as_ref().to_vec())
}

/// Reads a file with a chain. `None`: there is none.
async fn read_chain(file: &Path) -> Result<Option<Chain>, Report> {
    let path = file.to_owned();
    let read = blocking(move || files::read_at_most(&path, MAX_CHAIN_FILE)).await;
    let content = match read {
        Ok(content) => content,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(refused(file, &access::unreadable(file, &e))),
    };
    let chain = Chain::from_pem_text(&content).map_err(|e| {
        let hint = "Put the certificate chain there, leaf first, in PEM";
        refused(file, &Reason::from(e.to_string()).with_hint_text(hint))
    });
    chain.map(Some)
}

fn not_stored(e: &state::StoreError) -> Report {
    Report::of(ProblemCode::State, "What an operator has brought could not be stored", e)
}

fn refused(file: &Path, why: &Reason) -> Report {
    let detail = format!("{}: {}", Excerpt::of(file.display(), MAX_PATH), why.what);
    let title = "The certificate chain in a file cannot be used";
    let report = Report::new(ProblemCode::InstalledCredential, title, &detail);
    report.with_hint(why.hint.as_deref())
}
