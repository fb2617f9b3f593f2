//! What was provisioned: the initial trust and the bootstrap credential. Both are read at every use, and looked at from
//! time to time besides, so that what is wrong with them is known before they are needed. Both outlive a configuration:
//! what a new one names and cannot be used does not take the place of what is good.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::device::{Device, blocking};
use super::failures::local;
use crate::config::Config;
use crate::factory_credential::{self, CredentialError, CurrentCredential, FactoryCredential, Purpose};
use crate::hint::Hint as _;
use crate::keys::ProviderKind;
use crate::keys::tpm::Tpm;
use crate::lifecycle::{Failure, LastError};
use crate::platform::clock;
use crate::platform::credentials::Secret;
use crate::time::{Now, Timestamp};
use crate::transport::{ClientIdentity, ServerTrust};

/// How often it is looked at, whether used or not.
const LOOK: Duration = Duration::from_secs(3600);
/// The same while something is wrong with it: perhaps the TPM was only busy.
const LOOK_IN_TROUBLE: Duration = Duration::from_secs(60);

/// What goes on into the next configuration.
#[derive(Clone)]
pub(super) struct Provisioned {
    /// For which MIS. Under another, what was good for this one counts for nothing.
    mis: Option<Url>,
    pub(super) trust: ServerTrust,
    pub(super) bootstrap: CurrentCredential,
    /// It remembers the passwords that it refused, so that none is tried often enough to lock it.
    pub(super) tpm: Tpm,
    /// For what it is to be looked at first.
    pub(super) look_for: Purpose,
}

impl Provisioned {
    /// What a configuration names, with what was good under the one before it to fall back on.
    pub(super) fn under(config: &Config, before: Option<Self>) -> Self {
        let (mis, trust) =
            config.mis.as_ref().map(|mis| (mis.discovery_url.clone(), mis.trust.clone())).unzip();
        let (trust, tcti) = (trust.unwrap_or_default(), &config.key.tcti);
        let (good, tpm) = match before {
            Some(before) if before.mis == mis => (Some((before.trust, before.bootstrap)), Some(before.tpm)),
            Some(before) => (None, Some(before.tpm)),
            None => (None, None),
        };
        // Whoever reads the configuration anew wants to know how it stands; a mere start is no occasion.
        let look_for = if tpm.is_some() { Purpose::Use } else { Purpose::Check };
        let tpm = tpm.filter(|tpm| tpm.is_at(tcti)).unwrap_or_else(|| Tpm::start(tcti.clone()));
        let tpm = tpm.with_parent(config.key.parent, config.key.owner_auth.clone());
        let (trust, bootstrap) = match good {
            Some((before, bootstrap)) => (ServerTrust::succeeding(trust, &before), bootstrap),
            None => (ServerTrust::new(trust), CurrentCredential::default()),
        };
        Self { mis, trust, bootstrap, tpm, look_for }
    }
}

impl Device {
    /// What the next configuration can fall back on.
    pub(super) fn into_provisioned(self) -> Provisioned {
        Provisioned {
            mis: self.config.mis.as_ref().map(|mis| mis.discovery_url.clone()),
            trust: self.issuer.transport().trust().clone(),
            tpm: self.keys.tpm().clone(),
            bootstrap: self.bootstrap,
            look_for: Purpose::Use,
        }
    }

    /// Looks at it if it is time to, and says whether it was.
    pub(super) async fn look_at_provisioned(&mut self, now: Now) -> bool {
        if now.boot < self.look_again_at {
            return false;
        }
        // What is wrong comes up where it is used, and is in the log and in the status until then.
        let trusted = self.issuer.transport().check_trust().await;
        let first = self.bootstrap.facts().is_none();
        let purpose = match self.look_for {
            Purpose::Use => Purpose::Use,
            Purpose::Check => self.bootstrap.next_purpose(),
        };
        let credential = self.credential(purpose).await;
        self.look_for = Purpose::Check;
        if first {
            self.warn_of_unused_hardware();
            self.warn_of_open_secrets();
        }
        let fine = trusted.is_ok() && credential.is_ok() && self.provisioned_problem().is_none();
        self.look_again_at = now.boot.after(if fine { LOOK } else { LOOK_IN_TROUBLE });
        true
    }

    /// To be called when the clock that it was judged by has been set.
    pub(super) fn look_at_provisioned_again(&mut self) {
        self.look_again_at = clock::now().boot;
    }

    /// When it is looked at next.
    pub(super) fn next_look(&self, now: Now) -> Timestamp {
        now.wall.after(self.next_look_in(now))
    }

    /// The same, as a wait.
    pub(super) fn next_look_in(&self, now: Now) -> Duration {
        now.boot.until(self.look_again_at)
    }

    /// What is wrong with it, while everything else goes well.
    pub(super) fn provisioned_problem(&self) -> Option<LastError> {
        self.issuer.transport().trust().problem().or_else(|| self.bootstrap.problem().cloned())
    }

    /// The device as its maker knows it. Read at every use, so that a replaced file counts at once.
    pub(super) async fn factory_credential(&mut self) -> Result<ClientIdentity, Failure> {
        let cannot =
            |why: &dyn std::fmt::Display| local(factory_credential::PROBLEM, factory_credential::TITLE, why);
        let credential = self.credential(Purpose::Use).await.map_err(|why| cannot(&why.with_hint()))?;
        ClientIdentity::new(credential.certified_key().clone()).map_err(|why| cannot(&why))
    }

    async fn credential(&mut self, purpose: Purpose) -> Result<Arc<FactoryCredential>, CredentialError> {
        let (config, tpm) = (self.config.bootstrap.clone(), self.keys.tpm().clone());
        let found = match config {
            Some(config) => blocking(move || FactoryCredential::read(&config, &tpm, purpose)).await,
            None => Err(CredentialError::NotConfigured),
        };
        let now = clock::now();
        let time = match &found {
            // A clock that cannot be right does not tell what is not valid yet; what ended before the time that it is at least
            // has ended.
            Ok(credential) if !self.lifecycle.believes(now) => {
                credential.not_before().max(self.lifecycle.likely_time(now))
            }
            _ => self.lifecycle.likely_time(now),
        };
        self.bootstrap.update(found, purpose, time)
    }

    /// Said once, when the credential has been read.
    fn warn_of_open_secrets(&self) {
        if self.bootstrap.facts().is_none() {
            return;
        }
        let Config { mis, bootstrap, key, .. } = &self.config;
        let secrets = [
            bootstrap.as_ref().and_then(|bootstrap| bootstrap.key_auth.as_ref()),
            key.owner_auth.as_ref(),
            mis.as_ref().and_then(|mis| mis.proxy.auth.as_ref()),
        ];
        for warning in secrets.into_iter().flatten().filter_map(Secret::warning) {
            tracing::warn!("{warning}");
        }
    }

    /// Rule K1: where there is secure hardware, the key belongs in it. The configuration decides, and it is told.
    fn warn_of_unused_hardware(&self) {
        let in_tpm = self.bootstrap.facts().is_some_and(|facts| facts.in_tpm);
        if in_tpm && self.config.key.provider == ProviderKind::Software {
            tracing::warn!(
                "this device has a TPM, for its factory key is in it, and the configuration asks for software keys all \
                 the same: set provider = \"tpm\" under [key]"
            );
        }
    }
}
