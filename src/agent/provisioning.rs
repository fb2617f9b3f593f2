//! Provisioned input: the initial trust and the bootstrap credential. Both are read at every use,
//! and checked from time to time in between, so that what is wrong with them is known before they
//! are needed. Both outlive a configuration: what a new one names and cannot be used does not
//! replace what is good.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::blocking;
use super::executor::Executor;
use super::removed::FormerFiles;
use super::reporting::{local, local_failure};
use crate::config::{self, Config, Enrollment, IdentityConfig, TrustDomainSource};
use crate::factory_credential::{
    CredentialError, CredentialFacts, CurrentCredential, FactoryCredential, Purpose,
};
use crate::keys::tpm::Tpm;
use crate::keys::{ProviderKind, Providers};
use crate::lifecycle::{Failure, Lifecycle};
use crate::platform::credentials::Secret;
use crate::platform::{clock, files};
use crate::problem::{LastError, ProblemCode, Report};
use crate::publish::released_client::ca_file_fault_for_released_client;
use crate::transport::{ClientIdentity, ServerTrust, Transport, TransportError};
use miaf_client::api::IdentityName;
use miaf_spiffe::NameKind;
use miaf_spiffe::time::{BootTime, Now};

/// Interval between checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// Interval while something is wrong: perhaps the TPM was only busy.
const CHECK_INTERVAL_IN_TROUBLE: Duration = Duration::from_secs(60);

/// What one configuration hands on to the next.
#[derive(Clone)]
pub(super) struct Provisioned {
    /// The MIS that it is for. Under another, what was good for this one counts for nothing.
    mis: Option<TrustDomainSource>,
    pub(super) trust: ServerTrust,
    pub(super) bootstrap: CurrentCredential,
    /// The certificates that authorize enrollments over EST, by identity.
    pub(super) est: BTreeMap<IdentityName, CurrentCredential>,
    /// Remembers the passwords that it refused, so that none is tried often enough to lock it.
    pub(super) tpm: Tpm,
    /// Purpose of the first check.
    pub(super) purpose: Purpose,
    /// What was published where the next configuration does not look for it.
    pub(super) former_files: Vec<FormerFiles>,
}

impl Provisioned {
    /// What a configuration names, with what was good under the one before it to fall back on.
    pub(super) fn under(config: &Config, mut before: Option<Self>) -> Self {
        let former_files =
            before.as_mut().map(|before| std::mem::take(&mut before.former_files)).unwrap_or_default();
        let (mis, trust) = config.mis.as_ref().map(|mis| (mis.source.clone(), mis.trust.clone())).unzip();
        let (trust, tcti) = (trust.unwrap_or_default(), &config.key.tcti);
        let (good, tpm) = match before {
            Some(before) if before.mis == mis => {
                (Some((before.trust, before.bootstrap, before.est)), Some(before.tpm))
            }
            Some(before) => (None, Some(before.tpm)),
            None => (None, None),
        };
        // A reload is an occasion to try everything; a mere start is none.
        let purpose = if tpm.is_some() { Purpose::Use } else { Purpose::Check };
        let tpm = tpm.filter(|tpm| tpm.is_at(tcti)).unwrap_or_else(|| Tpm::start(tcti.clone()));
        let tpm = tpm.with_parent(config.key.parent, config.key.owner_auth.clone());
        let (trust, bootstrap, est) = match good {
            Some((before, bootstrap, est)) => (ServerTrust::succeeding(trust, &before), bootstrap, est),
            None => (ServerTrust::new(trust), CurrentCredential::default(), BTreeMap::new()),
        };
        Self { mis, trust, bootstrap, est, tpm, purpose, former_files }
    }
}

/// The bootstrap credential, and the checks of all provisioned input.
pub(super) struct Provisioning {
    pub(super) bootstrap: CurrentCredential,
    /// The certificates that authorize enrollments over EST, by identity.
    est: BTreeMap<IdentityName, (config::BootstrapConfig, CurrentCredential)>,
    /// Why there is no initial trust at all.
    trust_error: Option<LastError>,
    /// What the configuration says of it.
    settings: Settings,
    /// The secrets whose files are open to others have been warned about.
    warned_of_secrets: bool,
    /// The fault of the CA file that was last warned about.
    ca_file_fault: Option<&'static str>,
    next_check: BootTime,
    purpose: Purpose,
}

/// The settings of provisioned input.
struct Settings {
    /// A server of the MIS is contacted, which the initial trust authenticates.
    contacts_mis: bool,
    /// An identity enrolls with the bootstrap credential. Where none does, its absence is no fault.
    needs_bootstrap: bool,
    bootstrap: Option<config::BootstrapConfig>,
    provider: ProviderKind,
    /// Secrets whose files may be open to others.
    secrets: Vec<Secret>,
    /// The CA file of the initial trust, where there is an identity that a released WFM client can
    /// have: such a client may be given that file, too.
    shared_ca_file: Option<PathBuf>,
}

impl Provisioning {
    pub(super) fn new(
        config: &Config,
        bootstrap: CurrentCredential,
        mut known: BTreeMap<IdentityName, CurrentCredential>,
        purpose: Purpose,
        now: Now,
    ) -> Self {
        let secret_of = |identity: &IdentityConfig| match &identity.enroll {
            Enrollment::Installed { key, .. } => Some(key.clone()),
            // That of a token, which may come at any time, is looked at when it is read.
            Enrollment::Est(est) => est.certificate()?.key_auth.clone(),
            _ => None,
        };
        let est = config.identities.iter().filter_map(|identity| {
            let Enrollment::Est(est) = &identity.enroll else { return None };
            let credential = known.remove(&identity.name).unwrap_or_else(CurrentCredential::for_est);
            Some((identity.name.clone(), (est.certificate()?.clone(), credential)))
        });
        let est = est.collect();
        let secrets = [
            config.bootstrap.as_ref().and_then(|bootstrap| bootstrap.key_auth.as_ref()),
            config.key.owner_auth.as_ref(),
            config.mis.as_ref().and_then(|mis| mis.proxy.auth.as_ref()),
        ];
        let for_released_client = config.identities.iter().any(|identity| {
            let is_client = identity.enroll.name_kind() == NameKind::WfmClient;
            is_client && identity.key.provider == ProviderKind::Software
        });
        let settings = Settings {
            contacts_mis: config.contacts_mis(),
            needs_bootstrap: config.device().is_some(),
            bootstrap: config.bootstrap.clone(),
            provider: config.key.provider,
            secrets: secrets
                .into_iter()
                .flatten()
                .cloned()
                .chain(config.identities.iter().filter_map(secret_of))
                .collect(),
            shared_ca_file: config
                .mis
                .as_ref()
                .and_then(|mis| mis.trust.ca_file.clone())
                .filter(|_| for_released_client),
        };
        Self {
            // What another configuration has read, it has warned about.
            warned_of_secrets: bootstrap.facts().is_some(),
            bootstrap,
            est,
            trust_error: None,
            ca_file_fault: None,
            settings,
            next_check: now.boot,
            purpose,
        }
    }

    /// Checks trust and credential, if that is due. Returns whether it was.
    pub(super) async fn check(
        &mut self,
        transport: &Transport,
        keys: &Providers,
        lifecycle: &Lifecycle,
        now: Now,
    ) -> bool {
        if now.boot < self.next_check {
            return false;
        }
        // No server is contacted for a bundle file, so none has to be trusted for it.
        let trusted = match transport.check_trust().await {
            Err(TransportError::NoTrust) if !self.settings.contacts_mis => Ok(()),
            checked => checked.map(drop),
        };
        self.record_trust(trusted.as_ref().err(), now);
        self.warn_of_ca_file().await;
        let first = self.bootstrap.facts().is_none();
        let purpose = match self.purpose {
            Purpose::Use => Purpose::Use,
            Purpose::Check => self.bootstrap.next_purpose(),
        };
        let est_is_good = self.check_est(keys, lifecycle).await;
        let credential = match self.settings.needs_bootstrap {
            true => self.credential(purpose, keys, lifecycle).await.map(drop),
            false => Ok(()),
        };
        self.purpose = Purpose::Check;
        if first {
            self.warn_of_unused_hardware();
        }
        self.warn_of_open_secrets();
        let fine = trusted.is_ok() && credential.is_ok() && est_is_good && self.problem(transport).is_none();
        self.next_check = now.boot.after(if fine { CHECK_INTERVAL } else { CHECK_INTERVAL_IN_TROUBLE });
        true
    }

    /// The error is logged where the trust is used; the status has it at once.
    fn record_trust(&mut self, error: Option<&TransportError>, now: Now) {
        let report = error.map(|error| {
            let (code, title) = error.kind();
            Report::of(code, title, error)
        });
        if self.trust_error.as_ref().map(|known| &known.report) != report.as_ref() {
            self.trust_error = report.map(|report| LastError { report, at: now.wall, permanent: true });
        }
    }

    /// Makes the next check due: the clock that the last one went by has been set.
    pub(super) fn check_soon(&mut self) {
        self.next_check = clock::now().boot;
    }

    /// Has the next check come soon: something is wrong that may be over by then.
    pub(super) fn check_in_trouble(&mut self) {
        self.next_check = self.next_check.min(clock::now().boot.after(CHECK_INTERVAL_IN_TROUBLE));
    }

    /// Makes the next check due, with everything tried: the input may have been corrected.
    pub(super) fn retry(&mut self) {
        self.check_soon();
        self.purpose = Purpose::Use;
    }

    /// Time until the next check.
    pub(super) fn next_check_in(&self, now: Now) -> Duration {
        now.boot.until(self.next_check)
    }

    /// What is wrong with the input, while everything else goes well.
    pub(super) fn problem(&self, transport: &Transport) -> Option<LastError> {
        let trust = transport.trust().problem().or_else(|| self.trust_error.clone());
        let bootstrap = || self.bootstrap.problem().filter(|_| self.settings.needs_bootstrap).cloned();
        trust.or_else(bootstrap)
    }

    /// Client certificate and key of the device maker. Read at every use, so that a replaced file
    /// counts at once.
    pub(super) async fn factory_credential(
        &mut self,
        keys: &Providers,
        lifecycle: &Lifecycle,
    ) -> Result<ClientIdentity, Failure> {
        let credential = self.credential(Purpose::Use, keys, lifecycle).await;
        let credential = credential.map_err(|why| local_failure(self.bootstrap.report(&why)))?;
        ClientIdentity::new(credential.certified_key().clone())
            .map_err(|why| local(ProblemCode::FactoryCredential, self.bootstrap.title(), &why))
    }

    /// Reads the certificates that authorize enrollments over EST. Returns whether all are good.
    async fn check_est(&mut self, keys: &Providers, lifecycle: &Lifecycle) -> bool {
        let mut all_good = true;
        for (config, credential) in self.est.values_mut() {
            let purpose = match self.purpose {
                Purpose::Use => Purpose::Use,
                Purpose::Check => credential.next_purpose(),
            };
            let read = read_credential(Some(config.clone()), credential, purpose, keys, lifecycle).await;
            all_good &= read.is_ok() && credential.problem().is_none();
        }
        all_good
    }

    /// Certificate and key that authorize the enrollment of an identity over EST. Read at every use.
    pub(super) async fn est_credential(
        &mut self,
        identity: &IdentityName,
        keys: &Providers,
        lifecycle: &Lifecycle,
    ) -> Result<ClientIdentity, Failure> {
        let mut none = CurrentCredential::for_est();
        let (config, credential) = match self.est.get_mut(identity) {
            Some((config, credential)) => (Some(config.clone()), credential),
            None => (None, &mut none),
        };
        let read = read_credential(config, credential, Purpose::Use, keys, lifecycle).await;
        let read = read.map_err(|why| local_failure(credential.report(&why)))?;
        ClientIdentity::new(read.certified_key().clone())
            .map_err(|why| local(ProblemCode::FactoryCredential, credential.title(), &why))
    }

    /// What is known of that certificate.
    pub(super) fn est_facts(&self, identity: &IdentityName) -> Option<&CredentialFacts> {
        self.est.get(identity)?.1.facts()
    }

    /// SHA-256 of that certificate, in hex.
    pub(super) fn est_credential_sha256(&self, identity: &IdentityName) -> Option<String> {
        self.est_facts(identity).map(|facts| facts.sha256.clone())
    }

    /// What is wrong with that certificate.
    pub(super) fn est_problem(&self, identity: &IdentityName) -> Option<&LastError> {
        self.est.get(identity)?.1.problem()
    }

    async fn credential(
        &mut self,
        purpose: Purpose,
        keys: &Providers,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<FactoryCredential>, CredentialError> {
        let config = self.settings.bootstrap.clone();
        read_credential(config, &mut self.bootstrap, purpose, keys, lifecycle).await
    }

    /// Logged once, when the credential has been read, if one is needed.
    fn warn_of_open_secrets(&mut self) {
        let is_read = self.bootstrap.facts().is_some() || !self.settings.needs_bootstrap;
        if self.warned_of_secrets || !is_read {
            return;
        }
        self.warned_of_secrets = true;
        for warning in self.settings.secrets.iter().filter_map(Secret::warning) {
            tracing::warn!("{warning}");
        }
    }

    /// Warns, once for a fault, of a CA file that is good for this agent and that a released WFM
    /// client refuses without a reason. One that cannot be read is another error.
    async fn warn_of_ca_file(&mut self) {
        let Some(path) = self.settings.shared_ca_file.clone() else { return };
        let file = path.clone();
        let read = move || ca_file_fault_for_released_client(&files::read_limited(&file).ok()?);
        let fault = blocking(read).await;
        if self.ca_file_fault == fault {
            return;
        }
        self.ca_file_fault = fault;
        if let Some(fault) = fault {
            tracing::warn!(
                file = %path.display(),
                hint = "Give that client a CA file that begins with a CA of both key usages, keyCertSign and cRLSign",
                "ca_file: the WFM client that Margo has released would refuse it: {fault}"
            );
        }
    }

    /// Rule K1: where there is secure hardware, the key belongs in it. The configuration decides,
    /// and the log says so.
    fn warn_of_unused_hardware(&self) {
        let in_tpm = self.bootstrap.facts().is_some_and(|facts| facts.in_tpm);
        if in_tpm && self.settings.provider == ProviderKind::Software {
            tracing::warn!(
                "this device has a TPM, for its factory key is in it, and the configuration asks for software keys all \
                 the same: set provider = \"tpm\" under [key]"
            );
        }
    }
}

/// Reads a credential, and has it take the place of the one before it.
async fn read_credential(
    config: Option<config::BootstrapConfig>,
    current: &mut CurrentCredential,
    purpose: Purpose,
    keys: &Providers,
    lifecycle: &Lifecycle,
) -> Result<Arc<FactoryCredential>, CredentialError> {
    let tpm = keys.tpm().clone();
    let found = match config {
        Some(config) => blocking(move || FactoryCredential::read(&config, &tpm, purpose)).await,
        None => Err(CredentialError::NotConfigured),
    };
    let now = clock::now();
    let time = match &found {
        // A clock that is not trusted does not tell what is not valid yet; what ended before the
        // earliest time that it can be has ended.
        Ok(credential) if !lifecycle.trusts_clock(now) => {
            credential.not_before().max(lifecycle.likely_time(now))
        }
        _ => lifecycle.likely_time(now),
    };
    current.update(found, purpose, time)
}

impl Executor {
    /// What the next configuration can fall back on.
    pub(super) fn into_provisioned(self) -> Provisioned {
        Provisioned {
            mis: self.config.mis.as_ref().map(|mis| mis.source.clone()),
            trust: self.trust_domain.issuer.transport().trust().clone(),
            tpm: self.keys.tpm().clone(),
            bootstrap: self.provisioning.bootstrap,
            est: self
                .provisioning
                .est
                .into_iter()
                .map(|(name, (_, credential))| (name, credential))
                .collect(),
            purpose: Purpose::Use,
            former_files: Vec::new(),
        }
    }
}
