//! The published files. Each identity has a directory of its name in the configured one. There,
//! each generation is a directory of its own that never changes once it has its name; `current` is
//! a symlink that is swapped atomically. A program that opens the directory once, or reads the
//! combined file, gets key, certificate and bundle that belong together. The previous generation
//! stays, for programs that are reading it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::config;
use crate::hint::Hint;
use crate::keys::{Key, KeyError, KeyFile, Protection};
use crate::platform::access::unwritable;
use crate::platform::dir::{Attributes, Dir};
use crate::platform::files;
use crate::publish::SvidAndKey;
use miaf_client::api::IdentityName;
use miaf_spiffe::Bundle;
use miaf_spiffe::time::Timestamp;

const CURRENT: &str = "current";
/// The link that replaces [`CURRENT`].
const NEXT: &str = ".current.new";

/// The readers of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// The group of the directory.
    Group,
    /// The group that may use the key.
    KeyGroup,
}

/// The groups that the configuration names.
#[derive(Clone, Copy, Debug)]
struct Groups {
    group: Option<u32>,
    key_group: Option<u32>,
}

impl Groups {
    fn of(self, readers: Readers) -> Option<u32> {
        match readers {
            Readers::Group => self.group,
            Readers::KeyGroup => self.key_group,
        }
    }
}

/// The content of one generation, by file name. It may contain a private key.
type Content = BTreeMap<&'static str, (Zeroizing<Vec<u8>>, Readers)>;

/// Publishes the generations of one identity, in its directories below the configured ones.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    files: PublishDir,
    /// Directory for software keys, with everything that belongs to them. They are published in no
    /// other.
    secrets: Option<PublishDir>,
}

/// The directory of one identity in a configured one.
#[derive(Clone, Debug)]
struct PublishDir {
    /// The configured directory. All identities have theirs in it.
    parent: PathBuf,
    /// The name of the identity.
    name: IdentityName,
    /// No file of others is in the configured directory.
    is_own: bool,
    group: Option<String>,
    key_group: Option<String>,
    /// It must be gone after a power cut (miaf-v0 K2).
    volatile: bool,
    /// What was published last, without the key: its SVID identifies it.
    published: Option<(Content, u64)>,
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

impl PublishDir {
    fn publish(&mut self, content: Content, key: Option<&dyn Key>) -> Result<u64, PublishError> {
        if let Some((published, generation)) = &self.published
            && *published == content
        {
            return Ok(*generation);
        }
        let mut whole = content.clone();
        if let Some(key) = key {
            let key = key.to_key_file().map_err(|why| PublishError::Key { dir: self.path(), why })?;
            add_key(&mut whole, &key);
        }
        let groups = self.groups().map_err(|e| self.failed(&self.parent, e))?;
        let (parent, dir) = self.make(groups)?;
        let path = self.path();
        let generation =
            make_current(&parent, &dir, &path, &whole, groups).map_err(|e| self.failed(&path, e))?;
        self.published = Some((content, generation));
        Ok(generation)
    }

    fn path(&self) -> PathBuf {
        self.parent.join(self.name.as_str())
    }

    /// An error in the configured directory, or in the identity's.
    fn failed(&self, dir: &Path, source: io::Error) -> PublishError {
        // What the sandbox of the service is to permit is the configured directory, which has all.
        let is_read_only = source.raw_os_error() == Some(Errno::EROFS as i32);
        let dir = if is_read_only { &self.parent } else { dir };
        PublishError::Files { dir: dir.to_owned(), is_own: self.is_own, source }
    }

    fn groups(&self) -> io::Result<Groups> {
        let group = self.group.as_deref().map(files::group_id).transpose()?;
        let key_group = self.key_group.as_deref().map(files::group_id).transpose()?;
        Ok(Groups { group, key_group })
    }

    /// Opens the configured directory and the identity's in it, each once: what is checked is what
    /// is used. Those that are missing are created, with the mode 0750; both are given to the
    /// group.
    fn make(&self, groups: Groups) -> Result<(Dir, Dir), PublishError> {
        let (path, in_parent) = (self.path(), |e| self.failed(&self.parent, e));
        files::make_dir(&self.parent, 0o750, None).map_err(in_parent)?;
        let parent = self.open_parent()?;
        self.check(&parent, &self.parent)?;
        parent.give_to_group(groups.group).map_err(in_parent)?;
        let dir = match self.open_in(&parent)? {
            Some(dir) => dir,
            None => parent.make_dir(OsStr::new(self.name.as_str()), 0o750, None).map_err(in_parent)?,
        };
        self.check(&dir, &path)?;
        // Its owner could replace what is in it; the configured directory is the operator's.
        if !dir.is_ours_alone_to_write().map_err(|e| self.failed(&path, e))? {
            return Err(PublishError::Exposed { dir: path });
        }
        // They may have been created under another configuration.
        dir.give_to_group(groups.group).map_err(|e| self.failed(&path, e))?;
        Ok((parent, dir))
    }

    /// Checks that a directory, `path`, may have secrets in it, where they are published: also that
    /// of the identity, which may be a mount point.
    fn check(&self, dir: &Dir, path: &Path) -> Result<(), PublishError> {
        if !self.volatile {
            return Ok(());
        }
        let failed = |e| self.failed(path, e);
        if !dir.is_volatile().map_err(failed)? {
            return Err(PublishError::Persistent { dir: path.to_owned() });
        }
        if !dir.is_ours_alone_to_write().map_err(failed)? {
            return Err(PublishError::Exposed { dir: path.to_owned() });
        }
        Ok(())
    }

    /// Opens the configured directory. For secrets it must not be a symbolic link, which another
    /// process could change.
    fn open_parent(&self) -> Result<Dir, PublishError> {
        let open = if self.volatile { Dir::open_itself } else { Dir::open };
        open(&self.parent).map_err(|e| {
            if self.volatile && self.parent.is_symlink() {
                PublishError::Link { dir: self.parent.clone() }
            } else {
                self.failed(&self.parent, e)
            }
        })
    }

    /// Opens the identity's directory in the configured one; a symbolic link is never followed.
    /// `None`: it does not exist.
    fn open_in(&self, parent: &Dir) -> Result<Option<Dir>, PublishError> {
        let (name, path) = (OsStr::new(self.name.as_str()), self.path());
        match parent.open_dir(name) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(_) if parent.read_link(name).is_ok() => Err(PublishError::Link { dir: path }),
            Err(e) => Err(self.failed(&path, e)),
        }
    }

    /// Opens the identity's directory to remove from it. `None`: there is nothing of this agent.
    fn find(&self) -> Result<Option<Dir>, PublishError> {
        // Of secrets whatever the mode is by now. A directory of another user was never this
        // agent's, unless there is something published in it: then its owner was changed.
        let may_have = |dir: &Dir| -> Result<bool, PublishError> {
            let failed = |e| self.failed(&self.path(), e);
            if !self.volatile || dir.attributes().map_err(failed)?.is_ours() {
                return Ok(true);
            }
            let published = dir.read_link(OsStr::new(CURRENT)).is_ok();
            if published { Err(PublishError::Exposed { dir: self.path() }) } else { Ok(false) }
        };
        let find = || -> Result<Option<Dir>, PublishError> {
            let parent = self.open_parent()?;
            let dir = if may_have(&parent)? { self.open_in(&parent)? } else { None };
            Ok(match dir {
                Some(dir) if may_have(&dir)? => Some(dir),
                _ => None,
            })
        };
        match find() {
            Err(PublishError::Files { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            found => found,
        }
    }

    /// Removes all generations, and what a power cut left of earlier ones; `current` first, so that
    /// no program reads half a generation. With `keeps_number`, an empty directory keeps the
    /// number.
    fn withdraw(&self, keeps_number: bool) -> Result<(), PublishError> {
        let Some(dir) = self.find()? else { return Ok(()) };
        let remove = || {
            let there = Generations::read(&dir)?;
            if keeps_number && there.newest > 0 {
                dir.make_dir(OsStr::new(&there.next()?.to_string()), 0o700, None)?;
            }
            dir.remove_file(OsStr::new(NEXT))?;
            dir.remove_file(OsStr::new(CURRENT))?;
            dir.sync()?; // a power cut does not restore it
            for old in there.all {
                dir.remove_all(OsStr::new(&old.to_string()))?;
            }
            dir.sync()
        };
        remove().map_err(|e| self.failed(&self.path(), e))
    }
}

/// Makes `content` the current generation in `dir`, which is in `parent`. `path` is the path of
/// `dir`, for messages.
fn make_current(parent: &Dir, dir: &Dir, path: &Path, content: &Content, groups: Groups) -> io::Result<u64> {
    let there = Generations::read(dir)?;
    if there.all.is_empty() {
        // The directory is durable before anything is in it, also where the attempt that created it
        // came no further.
        parent.sync()?;
    }
    if let Some(current) = there.current
        && matches(dir, current, content, groups)
    {
        there.remove_all_but(dir, path, current, there.previous(current));
        return Ok(current);
    }
    let next = there.next()?;
    let (name, unnamed) = (next.to_string(), format!(".{next}.new"));
    let (name, unnamed) = (OsStr::new(&name), OsStr::new(&unnamed));
    let generation = dir.make_dir(unnamed, 0o750, groups.group)?;
    for (name, (bytes, readers)) in content {
        generation.write_new(OsStr::new(name), bytes, 0o640, groups.of(*readers))?;
    }
    generation.sync()?;
    dir.rename(unnamed, name)?;
    dir.sync()?; // the name is durable before anything points to it
    dir.remove_file(OsStr::new(NEXT))?;
    dir.symlink(name, OsStr::new(NEXT))?;
    dir.rename(OsStr::new(NEXT), OsStr::new(CURRENT))?;
    dir.sync()?;
    there.remove_all_but(dir, path, next, there.current);
    Ok(next)
}

/// Parses the name of a generation's directory.
fn generation(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// The generations in a directory.
struct Generations {
    all: Vec<u64>,
    newest: u64,
    current: Option<u64>,
}

impl Generations {
    fn read(dir: &Dir) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in dir.names()? {
            let Some(name) = entry.to_str() else { continue };
            if let Some(generation) = generation(name) {
                all.push(generation);
            } else if name.starts_with('.') && name.ends_with(".new") && name != NEXT {
                dir.remove_all(&entry)?; // begun before a power cut, and never renamed
            }
        }
        let current = dir.read_link(OsStr::new(CURRENT)).ok();
        let current = current.and_then(|to| generation(to.to_str()?)).filter(|current| all.contains(current));
        Ok(Self { newest: all.iter().copied().max().unwrap_or(0), all, current })
    }

    /// The number of the next generation.
    fn next(&self) -> io::Result<u64> {
        let next = self.newest.checked_add(1);
        next.ok_or_else(|| io::Error::other("there is no higher number than that of a directory in it"))
    }

    fn previous(&self, generation: u64) -> Option<u64> {
        self.all.iter().copied().filter(|other| *other < generation).max()
    }

    /// Removes old generations. A failure does not matter to the publication: the next one tries
    /// again.
    fn remove_all_but(&self, dir: &Dir, path: &Path, current: u64, previous: Option<u64>) {
        for old in self.all.iter().filter(|old| **old != current && Some(**old) != previous) {
            if let Err(e) = dir.remove_all(OsStr::new(&old.to_string())) {
                let generation = path.join(old.to_string());
                tracing::warn!("old generation {} not removed: {e}", generation.display());
            }
        }
    }
}

/// Whether a generation has exactly this content. A file that has another hard link, or is a
/// symbolic link, is not the one that was published.
fn matches(dir: &Dir, generation: u64, content: &Content, groups: Groups) -> bool {
    let Ok(generation) = dir.open_dir(OsStr::new(&generation.to_string())) else { return false };
    let is = |is: Attributes, mode: u32, group: Option<u32>| {
        is.is_ours() && is.mode == mode && group.is_none_or(|group| is.gid == group)
    };
    generation.attributes().is_ok_and(|found| is(found, 0o750, groups.group))
        && generation.names().is_ok_and(|names| names.len() == content.len())
        && content.iter().all(|(name, (bytes, readers))| {
            generation.read_secret(OsStr::new(name), bytes.len()).is_ok_and(|(found, there)| {
                is(found, 0o640, groups.of(*readers)) && found.links == 1 && there == *bytes
            })
        })
}

fn content(identity: &SvidAndKey, bundle: &Bundle, now: Timestamp) -> Content {
    let svid = identity.svid.chain().to_pems().concat();
    [
        ("svid.pem", svid.into_bytes()),
        ("bundle.pem", bundle.to_pem().into_bytes()),
        ("bundle.json", pretty(&bundle.to_document())),
        ("identity.json", description(identity, now)),
    ]
    .map(|(name, bytes)| (name, (Zeroizing::new(bytes), Readers::Group)))
    .into()
}

fn add_key(content: &mut Content, key: &KeyFile) {
    let key = match key {
        KeyFile::Tss2(pem) => pem.as_bytes(),
        KeyFile::Secret { pem, .. } => pem.as_bytes(),
    };
    let svid = content.get("svid.pem").map_or(&[][..], |(svid, _)| svid.as_slice());
    let combined = Zeroizing::new([svid, key].concat());
    content.insert("svid-with-key.pem", (combined, Readers::KeyGroup));
    content.insert("key.pem", (Zeroizing::new(key.to_vec()), Readers::KeyGroup));
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

/// Error of a publication. What was published before is unchanged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum PublishError {
    /// A file operation failed.
    #[error("could not publish the identity under {}: {}", dir.display(), unwritable(dir, *is_own, source))]
    Files { dir: PathBuf, is_own: bool, source: io::Error },
    /// The key cannot be read.
    #[error("could not publish the key under {}: {why}", dir.display())]
    Key { dir: PathBuf, why: KeyError },
    /// A software key is never written in the clear where it would outlive a power cut (miaf-v0
    /// K2).
    #[error(
        "the software key is not published as software_key_dir says: {} is not on a tmpfs, and a software key is never \
         written in the clear to persistent storage",
        dir.display()
    )]
    Persistent { dir: PathBuf },
    /// The configured directory, or the identity's in it, is a symbolic link: its owner could lead
    /// readers to other files.
    #[error("nothing is published under {}: it is a symbolic link, which is not followed", dir.display())]
    Link { dir: PathBuf },
    /// Another user could replace the files.
    #[error("nothing is published under {}: it belongs to another user, or others may write in it", dir.display())]
    Exposed { dir: PathBuf },
}

impl Hint for PublishError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::Files { dir, is_own, source } => {
                return unwritable(dir, *is_own, source).hint().map(|hint| hint.into_owned().into());
            }
            Self::Key { why, .. } => return why.hint(),
            Self::Persistent { .. } => "Name a directory under /run in software_key_dir",
            Self::Link { .. } => {
                "Remove the link, and the agent creates the directory as it should be; or configure the directory that it \
                 leads to"
            }
            Self::Exposed { .. } => "Remove it with what is in it, and the agent creates it as it should be",
        };
        Some(fixed.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::software::Software;
    use crate::keys::{ProviderKind, PublicKey};
    use miaf_spiffe::TrustDomain;
    use miaf_spiffe::svid::{Chain, X509Svid};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Arc;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const NAME: IdentityName = IdentityName::DEVICE;

    fn bundle(sequence: u64) -> Bundle {
        let served = format!(r#"{{"keys":[],"spiffe_sequence":{sequence}}}"#);
        Bundle::from_stored(served.as_bytes(), &TrustDomain::parse("factory.example").unwrap()).unwrap()
    }

    fn identity() -> SvidAndKey {
        identity_with(Arc::new(Tss2))
    }

    fn identity_with(key: Arc<dyn Key>) -> SvidAndKey {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let id = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        let chain = Chain::from_pem(&[params.self_signed(&pair).unwrap().pem()]).unwrap();
        SvidAndKey { svid: X509Svid::from_stored(chain).unwrap(), key, credential: None }
    }

    /// A key in the TPM, as the publisher uses it.
    #[derive(Debug)]
    struct Tss2;

    impl Key for Tss2 {
        fn public_key(&self) -> &PublicKey {
            unreachable!()
        }
        fn sign_digest(&self, _: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
            unreachable!()
        }
        fn protection(&self) -> Protection {
            Protection::Hardware
        }
        fn provider(&self) -> ProviderKind {
            ProviderKind::Tpm
        }
        fn to_pem(&self) -> Result<String, KeyError> {
            unreachable!()
        }
        fn to_key_file(&self) -> Result<KeyFile, KeyError> {
            Ok(KeyFile::Tss2("-----BEGIN TSS2 PRIVATE KEY-----\n".into()))
        }
    }

    fn software(dir: &Path) -> Arc<dyn Key> {
        Arc::new(Software::new(None, dir.join("kek")).create_key().unwrap())
    }

    fn publisher(dir: &Path) -> Publisher {
        publisher_with(dir, None)
    }

    fn publisher_with(dir: &Path, software_key_dir: Option<&Path>) -> Publisher {
        Publisher::new(&config(dir, software_key_dir), &NAME)
    }

    fn config(dir: &Path, software_key_dir: Option<&Path>) -> config::FilesConfig {
        config::FilesConfig {
            dir: dir.join("svid"),
            is_own: true,
            group: None,
            key_group: None,
            software_key_dir: software_key_dir.map(Path::to_owned),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// Path and content of every file and link below a directory, itself not followed.
    fn everything_in(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for name in names(dir) {
            let path = dir.join(name);
            let is = fs::symlink_metadata(&path).unwrap();
            if is.is_dir() {
                all.push((path.clone(), Vec::new()));
                all.extend(everything_in(&path));
            } else if is.is_symlink() {
                all.push((path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
            } else {
                all.push((path.clone(), fs::read(&path).unwrap()));
            }
        }
        all
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn same_content_is_published_once_also_across_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let identity = identity();
        let mut first = publisher(root.path());
        assert_eq!(first.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(1));
        assert_eq!(first.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(1));
        let mut after_restart = publisher(root.path());
        assert_eq!(after_restart.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(1));
        assert_eq!(after_restart.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap(), Some(2));
    }

    #[test]
    fn generation_is_whole_or_absent() {
        let root = tempfile::tempdir().unwrap();
        let mut publisher = publisher(root.path());
        assert_eq!(publisher.publish(None, Some(&bundle(1)), NOW).unwrap(), None);
        assert_eq!(publisher.publish(Some(&identity()), None, NOW).unwrap(), None);
        assert!(!root.path().join("svid").exists());
    }

    #[test]
    fn previous_generation_stays_and_older_ones_go() {
        let root = tempfile::tempdir().unwrap();
        let mut publisher = publisher(root.path());
        let identity = identity();
        for sequence in 1..=4 {
            publisher.publish(Some(&identity), Some(&bundle(sequence)), NOW).unwrap();
        }
        assert_eq!(names(&root.path().join("svid")), ["device"]);
        let dir = root.path().join("svid/device");
        assert_eq!(names(&dir), ["3", "4", "current"]);
        assert_eq!(fs::read_link(dir.join("current")).unwrap(), Path::new("4"));
        assert_eq!((mode(&root.path().join("svid")), mode(&dir)), (0o750, 0o750));
    }

    #[test]
    fn torn_generations_are_replaced_or_removed() {
        let root = tempfile::tempdir().unwrap();
        let identity = identity();
        publisher(root.path()).publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
        let dir = root.path().join("svid/device");
        fs::create_dir(dir.join(".2.new")).unwrap();
        symlink("9", dir.join(".current.new")).unwrap();
        fs::write(dir.join("1/bundle.pem"), "torn").unwrap();
        assert_eq!(publisher(root.path()).publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(2));
        assert_eq!(names(&dir), ["1", "2", "current"]);
    }

    #[test]
    fn software_key_is_published_on_tmpfs_or_not_at_all() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let keys = memory.path().join("keys");
        let identity = identity_with(software(disk.path()));
        let current = |dir: &Path| names(&dir.join("device/current"));
        let public = ["bundle.json", "bundle.pem", "identity.json", "svid.pem"];

        publisher(disk.path()).publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
        assert_eq!(current(&disk.path().join("svid")), public);

        let mut with_keys = publisher_with(disk.path(), Some(&keys));
        with_keys.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
        assert_eq!(current(&disk.path().join("svid")), public);
        assert_eq!(
            current(&keys),
            ["bundle.json", "bundle.pem", "identity.json", "key.pem", "svid-with-key.pem", "svid.pem"]
        );
        let key = keys.join("device/current/key.pem");
        assert!(fs::read_to_string(&key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!((mode(&key), mode(&keys), mode(&keys.join("device"))), (0o640, 0o750, 0o750));

        let exposed = memory.path().join("exposed");
        fs::create_dir_all(exposed.join("device")).unwrap();
        let publish_in_exposed =
            || publisher_with(disk.path(), Some(&exposed)).publish(Some(&identity), Some(&bundle(1)), NOW);
        // Others may write in the configured directory, and in the identity's.
        for (parent, own) in [(0o777, 0o755), (0o775, 0o755), (0o755, 0o777), (0o755, 0o770)] {
            fs::set_permissions(&exposed, fs::Permissions::from_mode(parent)).unwrap();
            fs::set_permissions(exposed.join("device"), fs::Permissions::from_mode(own)).unwrap();
            let refused = publish_in_exposed().unwrap_err();
            assert!(matches!(refused, PublishError::Exposed { .. }), "{refused}");
            assert_eq!(names(&exposed), ["device"]);
            assert!(names(&exposed.join("device")).is_empty());
        }
        fs::set_permissions(exposed.join("device"), fs::Permissions::from_mode(0o755)).unwrap();
        publish_in_exposed().unwrap();

        let elsewhere = disk.path().join("keys");
        let mut on_disk = publisher_with(disk.path(), Some(&elsewhere));
        let refused = on_disk.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap_err();
        assert!(matches!(refused, PublishError::Persistent { .. }), "{refused}");
        assert!(names(&elsewhere).is_empty());
        assert_eq!(current(&disk.path().join("svid")), public);
    }

    #[test]
    fn software_key_is_not_published_by_a_symbolic_link() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (keys, target) = (memory.path().join("keys"), memory.path().join("target"));
        fs::create_dir(&target).unwrap();
        symlink(&target, &keys).unwrap();
        let identity = identity_with(software(disk.path()));
        let mut publisher = publisher_with(disk.path(), Some(&keys));
        let refused = publisher.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap_err();
        assert!(matches!(refused, PublishError::Link { .. }), "{refused}");
        assert!(names(&target).is_empty());
        // Changed to a link after the first publication, which was as it should be.
        fs::remove_file(&keys).unwrap();
        publisher.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
        fs::rename(&keys, memory.path().join("moved")).unwrap();
        symlink(&target, &keys).unwrap();
        let refused = publisher.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap_err();
        assert!(matches!(refused, PublishError::Link { .. }), "{refused}");
        assert!(matches!(publisher.withdraw_secrets().unwrap_err(), PublishError::Link { .. }));
        assert!(names(&target).is_empty());
    }

    #[test]
    fn link_in_place_of_the_identitys_key_directory_is_refused() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let (keys, target) = (memory.path().join("keys"), memory.path().join("target"));
        fs::create_dir(&keys).unwrap();
        // What looks like something that was published, also by this agent.
        publisher_with(disk.path(), Some(&target))
            .publish(Some(&identity_with(software(disk.path()))), Some(&bundle(1)), NOW)
            .unwrap();
        let before = everything_in(&target);
        let identity = identity_with(software(disk.path()));
        let mut publisher = publisher_with(disk.path(), Some(&keys));
        let link = keys.join("device");
        for to in [target.join("device"), PathBuf::from("../target/device"), PathBuf::from("nowhere")] {
            symlink(&to, &link).unwrap();
            let refused = publisher.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap_err();
            assert!(matches!(&refused, PublishError::Link { dir } if *dir == link), "{refused}");
            assert!(matches!(publisher.withdraw_secrets().unwrap_err(), PublishError::Link { .. }));
            assert!(matches!(publisher.withdraw().unwrap_err(), PublishError::Link { .. }));
            assert_eq!((everything_in(&target), names(&keys)), (before.clone(), vec!["device".to_owned()]));
            fs::remove_file(&link).unwrap();
        }
        // Changed to a link after the first publication, which was as it should be.
        publisher.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
        fs::rename(&link, memory.path().join("moved")).unwrap();
        symlink(target.join("device"), &link).unwrap();
        let refused = publisher.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap_err();
        assert!(matches!(refused, PublishError::Link { .. }), "{refused}");
        assert_eq!(everything_in(&target), before);
    }

    #[test]
    fn link_in_place_of_the_identitys_directory_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let (link, target) = (root.path().join("svid/device"), root.path().join("target"));
        let mut publisher = publisher(root.path());
        publisher.publish(Some(&identity()), Some(&bundle(1)), NOW).unwrap();
        fs::rename(&link, &target).unwrap();
        symlink(&target, &link).unwrap();
        let before = everything_in(&target);
        let refused = publisher.publish(Some(&identity()), Some(&bundle(2)), NOW).unwrap_err();
        assert!(refused.to_string().contains("svid/device: it is a symbolic link"), "{refused}");
        // The files that other programs read are still there, so it must not say that they are not.
        let refused = publisher.withdraw().unwrap_err();
        assert!(refused.to_string().contains("svid/device: it is a symbolic link"), "{refused}");
        assert_eq!(everything_in(&target), before);
        // The configured directory itself may be a link, which is the operator's.
        fs::remove_file(&link).unwrap();
        fs::rename(root.path().join("svid"), root.path().join("elsewhere")).unwrap();
        symlink("elsewhere", root.path().join("svid")).unwrap();
        assert_eq!(publisher.publish(Some(&identity()), Some(&bundle(2)), NOW).unwrap(), Some(1));
        assert!(root.path().join("elsewhere/device/current/svid.pem").exists());
    }

    #[test]
    fn error_names_the_directory_that_is_to_be_corrected() {
        let root = tempfile::tempdir().unwrap();
        let files = publisher(root.path()).files;
        let (dir, own) = (root.path().join("svid"), root.path().join("svid/device"));
        fs::create_dir_all(&own).unwrap();
        let failed = |errno: Errno| files.failed(&own, errno.into()).with_hint().to_string();
        let denied = failed(Errno::EACCES);
        assert!(denied.contains(&format!("under {}: ", own.display())), "{denied}");
        // The identities that are configured later are to be published, too.
        let read_only = failed(Errno::EROFS);
        assert!(read_only.contains(&format!("ReadWritePaths={} ", dir.display())), "{read_only}");
    }

    #[test]
    fn generation_has_the_name_that_the_agent_writes() {
        assert_eq!(generation("7"), Some(7));
        for name in ["", "007", "+7", "-7", "7 ", "18446744073709551616", "current"] {
            assert_eq!(generation(name), None, "{name:?}");
        }
        let root = tempfile::tempdir().unwrap();
        let mut publisher = publisher(root.path());
        fs::create_dir_all(root.path().join(format!("svid/device/{}", u64::MAX))).unwrap();
        let refused = publisher.publish(Some(&identity()), Some(&bundle(1)), NOW).unwrap_err();
        assert!(refused.to_string().contains("no higher number"), "{refused}");
    }

    #[test]
    fn error_has_one_hint_apart_from_its_message() {
        let dir = || PathBuf::from("/run/keys/device");
        let denied = io::Error::from_raw_os_error(Errno::EACCES as i32);
        for error in [
            PublishError::Files { dir: dir(), is_own: true, source: denied },
            PublishError::Key { dir: dir(), why: KeyError::Internal("x".into()) },
            PublishError::Persistent { dir: dir() },
            PublishError::Link { dir: dir() },
            PublishError::Exposed { dir: dir() },
        ] {
            crate::hint::assert_apart(&error);
        }
    }

    #[test]
    fn other_identities_are_untouched() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let config = config(disk.path(), Some(memory.path()));
        let of = |name: &str| {
            (
                Publisher::new(&config, &IdentityName::parse(name).unwrap()),
                identity_with(software(disk.path())),
            )
        };
        let ((mut device, first), (mut line, second)) = (of("device"), of("line-2"));
        let dirs = [disk.path().join("svid"), memory.path().to_owned()];
        let content = |name: &str| dirs.clone().map(|dir| everything_in(&dir.join(name)));
        assert_eq!(device.publish(Some(&first), Some(&bundle(1)), NOW).unwrap(), Some(1));
        let of_device = content("device");
        // Each counts its own generations.
        for sequence in 1..=3 {
            let generation = line.publish(Some(&second), Some(&bundle(sequence)), NOW).unwrap();
            assert_eq!(generation, Some(sequence));
        }
        assert_eq!(content("device"), of_device);
        let of_line = content("line-2");
        assert_eq!(device.publish(Some(&first), Some(&bundle(2)), NOW).unwrap(), Some(2));
        assert_eq!(content("line-2"), of_line);
        // A secret that is withdrawn, or replaced by a key in the TPM, and a retired identity.
        device.withdraw_secrets().unwrap();
        device.publish(Some(&identity()), Some(&bundle(2)), NOW).unwrap();
        device.withdraw().unwrap();
        assert_eq!(content("line-2"), of_line);
        assert_eq!(names(&disk.path().join("svid/device")), ["4"]);
        assert!(names(&memory.path().join("device")).is_empty());
        // Nor does it matter what the directory of one of them has become.
        fs::remove_dir_all(memory.path().join("device")).unwrap();
        symlink("line-2", memory.path().join("device")).unwrap();
        device.publish(Some(&first), Some(&bundle(3)), NOW).unwrap_err();
        device.withdraw().unwrap_err();
        assert_eq!(content("line-2"), of_line);
        assert_eq!(line.publish(Some(&second), Some(&bundle(4)), NOW).unwrap(), Some(4));
    }

    #[test]
    #[ignore = "needs root: gives directories to groups, and one to another user"]
    fn both_directories_belong_to_the_configured_group() {
        use std::os::unix::fs::MetadataExt as _;
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let keys = memory.path().join("keys");
        let identity = identity_with(software(disk.path()));
        let dirs = || [disk.path().join("svid"), keys.clone()].map(|dir| [dir.join("device"), dir]);
        // Groups that every Debian has. Another one in the configuration applies to both, too.
        for (group, gid) in [("users", 100), ("games", 60)] {
            let config =
                config::FilesConfig { group: Some(group.into()), ..config(disk.path(), Some(&keys)) };
            Publisher::new(&config, &NAME).publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
            for dir in dirs().concat() {
                assert_eq!((fs::metadata(&dir).unwrap().gid(), mode(&dir)), (gid, 0o750), "{dir:?}");
            }
        }
        // Another user could replace what is in its directory.
        let mut publisher = publisher_with(disk.path(), Some(&keys));
        let before = everything_in(&keys);
        nix::unistd::chown(&keys.join("device"), Some(4_000_001.into()), None).unwrap();
        let refused = publisher.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap_err();
        assert!(
            matches!(&refused, PublishError::Exposed { dir } if *dir == keys.join("device")),
            "{refused}"
        );
        // Nor is a key in it taken for withdrawn.
        for refused in [publisher.withdraw_secrets(), publisher.withdraw()] {
            assert!(matches!(refused, Err(PublishError::Exposed { .. })), "{refused:?}");
        }
        assert_eq!(everything_in(&keys), before);
        fs::remove_file(keys.join("device/current")).unwrap();
        publisher.withdraw_secrets().unwrap();
    }

    #[test]
    #[ignore = "needs root: mounts"]
    fn software_key_is_not_published_on_a_mounted_disk() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let place = memory.path().join("device");
        fs::create_dir(&place).unwrap();
        let persistent = disk.path().join("persistent");
        fs::create_dir(&persistent).unwrap();
        let run = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
        run(std::process::Command::new("mount").arg("--bind").args([&persistent, &place]));
        let published = publisher_with(disk.path(), Some(memory.path())).publish(
            Some(&identity_with(software(disk.path()))),
            Some(&bundle(1)),
            NOW,
        );
        run(std::process::Command::new("umount").arg(&place));
        let refused = published.unwrap_err();
        assert!(matches!(&refused, PublishError::Persistent { dir } if *dir == place), "{refused}");
        assert!(names(&persistent).is_empty());
    }

    #[test]
    fn key_file_that_is_a_link_or_a_pipe_is_replaced() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let identity = identity_with(software(disk.path()));
        let publish = || {
            publisher_with(disk.path(), Some(memory.path()))
                .publish(Some(&identity), Some(&bundle(1)), NOW)
                .unwrap();
            fs::read_link(memory.path().join("device/current"))
                .unwrap()
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        assert_eq!((publish(), publish()), (1, 1));
        let spoilers: [fn(&Path, &Path); 4] = [
            |key, other| symlink(other, key).unwrap(),
            |key, other| fs::hard_link(other, key).unwrap(),
            |key, _| nix::unistd::mkfifo(key, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            |key, _| fs::create_dir(key).unwrap(),
        ];
        for (number, spoil) in (2..).zip(spoilers) {
            let (key, other) = (memory.path().join("device/current/key.pem"), memory.path().join("other"));
            let _ = fs::remove_file(&other);
            fs::rename(&key, &other).unwrap(); // the same content, mode and owner
            spoil(&key, &other);
            assert_eq!(publish(), number);
            let published = fs::symlink_metadata(&key).unwrap();
            assert!(published.is_file() && std::os::unix::fs::MetadataExt::nlink(&published) == 1);
        }
    }

    #[test]
    fn software_key_is_withdrawn_when_the_key_is_in_the_tpm() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let mut publisher = publisher_with(disk.path(), Some(memory.path()));
        publisher.publish(Some(&identity_with(software(disk.path()))), Some(&bundle(1)), NOW).unwrap();
        assert!(memory.path().join("device/current/key.pem").exists());
        // A power cut in the middle of an earlier attempt, and of the publication before it.
        fs::remove_file(memory.path().join("device/current")).unwrap();
        fs::create_dir(memory.path().join("device/.2.new")).unwrap();
        publisher.publish(Some(&identity()), Some(&bundle(1)), NOW).unwrap();
        assert_eq!(names(memory.path()), ["device"]);
        assert!(names(&memory.path().join("device")).is_empty());
        assert!(disk.path().join("svid/device/current/key.pem").exists());
    }

    #[test]
    fn withdrawn_generation_number_is_not_reused() {
        let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
        let mut publisher = publisher_with(disk.path(), Some(memory.path()));
        publisher.withdraw().unwrap();
        assert!(!disk.path().join("svid").exists(), "there was nothing to withdraw");
        let identity = identity_with(software(disk.path()));
        for sequence in 1..=2 {
            publisher.publish(Some(&identity), Some(&bundle(sequence)), NOW).unwrap();
        }
        publisher.withdraw().unwrap();
        let dir = disk.path().join("svid/device");
        assert_eq!(names(&dir), ["3"]);
        assert!(names(&dir.join("3")).is_empty() && names(&memory.path().join("device")).is_empty());
        // The same content is another publication.
        assert_eq!(publisher.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap(), Some(4));
        assert_eq!(names(&dir), ["4", "current"]);
        assert!(memory.path().join("device/current/key.pem").exists());
    }

    /// The usual directory for temporary files may itself be on a tmpfs.
    fn dir_on_disk() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }
}
