//! The published files. Each identity has a directory of its name in the configured one. There,
//! each generation is a directory of its own that never changes once it has its name; `current` is
//! a symlink that is swapped atomically. A program that opens the directory once, or reads the
//! combined file, gets key, certificate and bundle that belong together. The previous generation
//! stays, for programs that are reading it.

mod content;
mod error;
mod generations;
mod publish_dir;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use crate::config;
use crate::keys::Protection;
use crate::publish::SvidAndKey;
use miaf_client::api::IdentityName;
use miaf_spiffe::Bundle;
use miaf_spiffe::time::Timestamp;

use content::content;
use publish_dir::PublishDir;

pub(crate) use error::PublishError;

/// Publishes the generations of one identity, in its directories below the configured ones.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    files: PublishDir,
    /// Directory for software keys, with everything that belongs to them. They are published in no
    /// other.
    secrets: Option<PublishDir>,
}

impl Publisher {
    /// A publisher of the identity `name`: lower-case letters, digits and hyphens, and so one
    /// component of a path. It changes no file before the first publication.
    pub(crate) fn new(config: &config::FilesConfig, name: &IdentityName) -> Self {
        let publish_dir = |parent: &PathBuf, volatile: bool| PublishDir {
            parent: parent.clone(),
            name: name.clone(),
            is_own: config.is_own && !volatile,
            group: config.group.clone(),
            key_group: config.key_group.clone(),
            volatile,
            published: None,
        };
        Self {
            files: publish_dir(&config.dir, false),
            secrets: config.software_key_dir.as_ref().map(|dir| publish_dir(dir, true)),
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
        bundle: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Option<u64>, PublishError> {
        let (Some(identity), Some(bundle)) = (identity, bundle) else { return Ok(None) };
        let content = content(identity, bundle, now);
        let key = identity.key.as_ref();
        if key.protection() == Protection::Hardware {
            let generation = self.files.publish(content, Some(key))?;
            self.withdraw_secrets()?; // of an earlier key, which was not made in the TPM
            return Ok(Some(generation));
        }
        let generation = self.files.publish(content.clone(), None)?;
        if let Some(dir) = &mut self.secrets {
            dir.publish(content, Some(key))?;
        }
        Ok(Some(generation))
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
