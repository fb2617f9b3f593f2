//! What was provisioned: the initial trust and the bootstrap credential. Both are read at every use, and looked at from
//! time to time besides, so that what is wrong with them is known before they are needed. Both outlive a configuration:
//! what a new one names and cannot be used does not take the place of what is good.

use std::sync::Arc;
use std::time::Duration;

use super::device::{Device, blocking};
use super::failures::local;
use crate::bootstrap::{Bootstrap, BootstrapError, Credential, Purpose};
use crate::config::{self, FactoryKey};
use crate::keys::ProviderKind;
use crate::keys::tpm::Tpm;
use crate::lifecycle::{Failure, LastError, Report};
use crate::mis::{Identified, Trust};
use crate::system::clock;
use crate::time::{Now, Timestamp};

/// How often it is looked at, whether used or not.
const LOOK: Duration = Duration::from_secs(3600);

/// What goes on into the next configuration.
#[derive(Clone)]
pub(super) struct Provisioned {
    pub(super) trust: Trust,
    pub(super) bootstrap: Bootstrap,
    /// It remembers the passwords that it refused, so that none is tried often enough to lock it.
    pub(super) tpm: Tpm,
    /// For what it is to be looked at first.
    pub(super) look_for: Purpose,
}

impl Provisioned {
    /// What a configuration names, with what was good under the one before it to fall back on.
    pub(super) fn under(config: &config::Config, before: Option<Self>) -> Self {
        let trust = config.mis.as_ref().map(|mis| mis.trust.clone()).unwrap_or_default();
        let tcti = &config.key.tcti;
        match before {
            Some(before) => Self {
                trust: Trust::succeeding(trust, &before.trust),
                bootstrap: before.bootstrap,
                tpm: if before.tpm.is_at(tcti) { before.tpm } else { Tpm::start(tcti.clone()) },
                look_for: Purpose::Use, // whoever reads the configuration anew wants to know
            },
            None => Self {
                trust: Trust::new(trust),
                bootstrap: Bootstrap::default(),
                tpm: Tpm::start(tcti.clone()),
                look_for: Purpose::Look,
            },
        }
    }
}

impl Device {
    /// What the next configuration can fall back on.
    pub(super) fn into_provisioned(self) -> Provisioned {
        let (trust, tpm) = (self.mis.trust().clone(), self.keys.tpm().clone());
        Provisioned { trust, bootstrap: self.bootstrap, tpm, look_for: Purpose::Use }
    }

    /// Looks at it if it is time to, and says whether it was.
    pub(super) async fn look_at_provisioned(&mut self, now: Now) -> bool {
        if now.boot < self.look_again_at {
            return false;
        }
        self.look_again_at = now.boot.after(LOOK);
        // What is wrong comes up where it is used, and is in the log and in the status until then.
        let _ = self.mis.look_at_trust().await;
        let _ = self.credential(self.look_for).await;
        self.look_for = Purpose::Look;
        true
    }

    /// When that will be.
    pub(super) fn next_look(&self, now: Now) -> Timestamp {
        now.wall.after(now.boot.until(self.look_again_at))
    }

    /// What is wrong with it while everything else goes well.
    pub(super) fn provisioned_problem(&self, now: Now) -> Option<LastError> {
        let of_bootstrap = || {
            let report = Report::of_agent("factory-credential", TITLE, &self.bootstrap.trouble()?);
            Some(LastError { report, at: now.wall, permanent: false })
        };
        self.mis.trust().problem().or_else(of_bootstrap)
    }

    /// The device as its maker knows it. Read at every use, so that a replaced file counts at once.
    pub(super) async fn factory_credential(&mut self) -> Result<Identified, Failure> {
        let cannot = |why: &dyn std::fmt::Display| local("factory-credential", TITLE, why);
        let credential = self.credential(Purpose::Use).await.map_err(|why| cannot(&why))?;
        Identified::new(credential.certified_key().clone()).map_err(|why| cannot(&why))
    }

    async fn credential(&mut self, purpose: Purpose) -> Result<Arc<Credential>, BootstrapError> {
        let (config, tpm) = (self.config.bootstrap.clone(), self.keys.tpm().clone());
        let found = match config {
            Some(config) => blocking(move || Credential::read(&config, &tpm, purpose)).await,
            None => Err(BootstrapError::NotConfigured),
        };
        self.bootstrap.take(found, purpose, clock::now().wall)
    }
}

/// Rule K1: where there is secure hardware, the key belongs in it. The configuration decides, and it is told.
pub(super) fn warn_of_unused_hardware(config: &config::Config) {
    let in_tpm = config.bootstrap.as_ref().is_some_and(|b| matches!(b.key, FactoryKey::TpmHandle(_)));
    if in_tpm && config.key.provider == ProviderKind::Software {
        tracing::warn!(
            "this device has a TPM, for its factory key is in it, and the configuration asks for software keys all the \
             same: set provider = \"tpm\" under [key]"
        );
    }
}

const TITLE: &str = "The factory credential cannot be used";
