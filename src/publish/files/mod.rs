//! The published files. Each identity has a directory of its name in the configured one. There,
//! each generation is a directory of its own that never changes once it has its name; `current` is
//! a symlink that is swapped atomically. A program that opens the directory once, or reads the
//! combined file, gets key, certificate and bundle that belong together. The previous generation
//! stays, for programs that are reading it.
//!
//! `authorized.json` is the one file that is not in a generation: the client that reads it watches
//! the directory that has it, and does not notice that a symlink on the way is swapped.

mod authorized;
mod content;
mod error;
mod generations;
mod publish_dir;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use crate::config;
use crate::keys::Protection;
use crate::publish::SvidAndKey;
use miaf_client::api::IdentityName;
use miaf_spiffe::Bundle;
use miaf_spiffe::svid;
use miaf_spiffe::time::Timestamp;

use authorized::Authorized;
use content::content;
use publish_dir::PublishDir;

pub(crate) use error::PublishError;

/// The published files of one identity, as configured. What it does not say is as in `[files]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdentityFiles {
    /// Name of the identity, and of its directory.
    pub(crate) name: IdentityName,
    /// Group that may read its files.
    pub(crate) group: Option<String>,
    /// Group that may read its key file.
    pub(crate) key_group: Option<String>,
    /// Whether the intermediates that lead from its SVID to an anchor are keys of its `bundle.json`
    /// too, for clients that look at anchors only.
    pub(crate) publish_intermediates: bool,
}

/// The trust bundle, and how often the agent polls it where the MIS gives no refresh hint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BundleToPublish<'a> {
    /// The bundle.
    pub(crate) bundle: &'a Bundle,
    /// Poll interval of the agent.
    pub(crate) refresh_interval: Duration,
}

/// Publishes the generations of one identity, in its directories below the configured ones.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    publish_intermediates: bool,
    files: PublishDir,
    /// Directory for software keys, with everything that belongs to them. They are published in no
    /// other.
    secrets: Option<PublishDir>,
    /// The leaf that it was last warned about that released clients refuse it.
    warned: Option<CertificateDer<'static>>,
}

impl Publisher {
    /// A publisher of one identity. Its name has lower-case letters, digits and hyphens, and so is
    /// one component of a path. It changes no file before the first publication.
    pub(crate) fn new(config: &config::FilesConfig, identity: &IdentityFiles) -> Self {
        let or_else = |own: &Option<String>, common: &Option<String>| own.clone().or_else(|| common.clone());
        let publish_dir = |parent: &PathBuf, volatile: bool| PublishDir {
            parent: parent.clone(),
            name: identity.name.clone(),
            is_own: config.is_own && !volatile,
            parent_group: config.group.clone(),
            group: or_else(&identity.group, &config.group),
            key_group: or_else(&identity.key_group, &config.key_group),
            volatile,
            published: None,
        };
        Self {
            publish_intermediates: identity.publish_intermediates,
            files: publish_dir(&config.dir, false),
            secrets: config.software_key_dir.as_ref().map(|dir| publish_dir(dir, true)),
            warned: None,
        }
    }

    /// Publishes this identity and bundle, and returns the generation with them: a new one, or the
    /// current one if it has this content. A generation is always whole: while one of the two is
    /// missing, nothing is published. A key that is a secret is published on tmpfs, if a directory
    /// there is configured, and then not among the other files (miaf-v0 K2).
    ///
    /// # Errors
    /// [`PublishError`]; `current` in the directory that it names is then unchanged. A secret that
    /// cannot be published does not prevent the rest.
    pub(crate) fn publish(
        &mut self,
        identity: Option<&SvidAndKey>,
        bundle: Option<BundleToPublish<'_>>,
        now: Timestamp,
    ) -> Result<Option<u64>, PublishError> {
        let (Some(identity), Some(bundle)) = (identity, bundle) else { return Ok(None) };
        let further =
            if self.publish_intermediates { issuers(identity, bundle.bundle, now) } else { Vec::new() };
        let content = content(identity, bundle, &further, now);
        let authorized = Authorized::of(&identity.svid);
        self.warn_of_intermediates(identity, bundle.bundle);
        let key = identity.key.as_ref();
        if key.protection() == Protection::Hardware {
            let generation = self.files.publish(content, Some(key), authorized.as_ref())?;
            self.withdraw_secrets()?; // of an earlier key, which was not made in the TPM
            return Ok(Some(generation));
        }
        let generation = self.files.publish(content.clone(), None, authorized.as_ref())?;
        if let Some(dir) = &mut self.secrets {
            dir.publish(content, Some(key), None)?;
        }
        Ok(Some(generation))
    }

    /// Warns, once for an SVID, that the released WFM client would not start with it: of an
    /// identity that such a client can have, because its key can be read.
    fn warn_of_intermediates(&mut self, identity: &SvidAndKey, bundle: &Bundle) {
        let SvidAndKey { svid, key, .. } = identity;
        let leaf = svid.chain().leaf();
        if self.publish_intermediates
            || key.protection() == Protection::Hardware
            || svid.spiffe_id().wfm_of_client().is_none()
            || bundle.anchors().is_empty()
            || self.warned.as_ref() == Some(leaf)
            || svid.is_signed_by_anchor(bundle)
        {
            return;
        }
        self.warned = Some(leaf.clone());
        tracing::warn!(
            identity = self.files.name.as_str(),
            serial = svid.serial(),
            hint = "Set publish_intermediates = true for this identity, or have the MIS issue by an anchor",
            "no anchor of the trust bundle signed the SVID itself: the WFM client that Margo has released does not start \
             with it"
        );
    }

    /// Whether another publisher publishes in the same directories.
    pub(crate) fn is_at_the_place_of(&self, other: &Self) -> bool {
        fn place(of: &Publisher) -> (&PathBuf, Option<&PathBuf>, &IdentityName) {
            (&of.files.parent, of.secrets.as_ref().map(|dir| &dir.parent), &of.files.name)
        }
        place(self) == place(other)
    }

    /// Withdraws everything that was published, when the identity is retired. Its directories stay,
    /// and programs may go on watching them. The next generation has a higher number than any
    /// before it, so that no reader takes it for the same.
    ///
    /// # Errors
    /// [`PublishError`]; part of the files may still be there.
    pub(crate) fn withdraw(&mut self) -> Result<(), PublishError> {
        for dir in [&mut self.files].into_iter().chain(&mut self.secrets) {
            dir.published = None;
        }
        self.withdraw_secrets()?;
        self.files.withdraw(true)
    }

    /// Withdraws published software keys.
    ///
    /// # Errors
    /// [`PublishError`].
    pub(crate) fn withdraw_secrets(&self) -> Result<(), PublishError> {
        self.secrets.as_ref().map_or(Ok(()), |dir| dir.withdraw(false))
    }
}

/// The intermediates that lead from an SVID to an anchor, which are no anchors themselves. There are
/// none where no anchor vouches for the SVID: then they would be anchors that the MIS has withdrawn.
fn issuers(identity: &SvidAndKey, bundle: &Bundle, now: Timestamp) -> Vec<CertificateDer<'static>> {
    let path = svid::trust_path(&identity.svid, bundle, now);
    let mut issuers = path.map(|path| path.intermediates).unwrap_or_default();
    issuers.retain(|issuer| !bundle.anchors().contains(issuer));
    issuers
}
