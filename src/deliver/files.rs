//! The published files. Each generation is a folder of its own that never changes once it has its name; `current` is a
//! symlink that is swapped atomically. Whoever opens the folder once, or reads the combined file, gets key, certificate
//! and bundle that belong together. The generation before stays, for readers that are under way.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Identity;
use crate::config;
use crate::spiffe::Bundle;
use crate::system::files;
use crate::time::Timestamp;

const CURRENT: &str = "current";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readers {
    /// The group of the folder.
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

/// The content of one generation, by file name.
type Content = BTreeMap<&'static str, (Vec<u8>, Readers)>;

/// The folder where generations are published.
#[derive(Clone, Debug)]
pub struct Publisher {
    dir: PathBuf,
    group: Option<String>,
    key_group: Option<String>,
    published: Option<(Content, u64)>,
}

impl Publisher {
    /// Nothing is touched before something is published.
    pub fn new(config: &config::Files) -> Self {
        Self {
            dir: config.dir.clone(),
            group: config.group.clone(),
            key_group: config.key_group.clone(),
            published: None,
        }
    }

    /// Makes `current` hold this identity and bundle, and says which generation that is. What is there already is left
    /// alone. A generation is always whole: while one of the two is missing, nothing is published.
    ///
    /// # Errors
    /// [`PublishError`]; `current` is then as it was.
    pub fn publish(
        &mut self,
        identity: Option<&Identity>,
        bundle: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Option<u64>, PublishError> {
        let (Some(identity), Some(bundle)) = (identity, bundle) else { return Ok(None) };
        let content = content(identity, bundle, now);
        if let Some((published, generation)) = &self.published
            && *published == content
        {
            return Ok(Some(*generation));
        }
        let failed = |source| PublishError { dir: self.dir.clone(), source };
        let generation = self.make_current(&content).map_err(failed)?;
        self.published = Some((content, generation));
        Ok(Some(generation))
    }

    fn make_current(&self, content: &Content) -> io::Result<u64> {
        let group = self.group.as_deref().map(files::group_id).transpose()?;
        let key_group = self.key_group.as_deref().map(files::group_id).transpose()?;
        let groups = Groups { group, key_group };
        files::make_dir(&self.dir, 0o750, group)?;
        files::give_to_group(&self.dir, group)?; // it may have been made under another configuration
        let there = Generations::read(&self.dir)?;
        if let Some(current) = there.current
            && holds(&self.dir.join(current.to_string()), content, groups)
        {
            there.remove_all_but(&self.dir, current, there.before(current));
            return Ok(current);
        }
        let next = there.newest + 1;
        let unnamed = self.dir.join(format!(".{next}.new"));
        files::make_dir(&unnamed, 0o750, group)?;
        for (name, (bytes, readers)) in content {
            files::write_new(&unnamed.join(name), bytes, 0o640, groups.of(*readers))?;
        }
        files::sync_dir(&unnamed)?;
        fs::rename(&unnamed, self.dir.join(next.to_string()))?;
        files::sync_dir(&self.dir)?; // the name is durable before anything points to it
        let link = self.dir.join(".current.new");
        files::remove_if_there(&link)?;
        symlink(next.to_string(), &link)?;
        fs::rename(&link, self.dir.join(CURRENT))?;
        files::sync_dir(&self.dir)?;
        there.remove_all_but(&self.dir, next, there.current);
        Ok(next)
    }
}

/// What is in the folder.
struct Generations {
    all: Vec<u64>,
    newest: u64,
    current: Option<u64>,
}

impl Generations {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Ok(generation) = name.parse() {
                all.push(generation);
            } else if name.starts_with('.') && name.ends_with(".new") && name != ".current.new" {
                fs::remove_dir_all(dir.join(name))?; // begun before a power cut, and never named
            }
        }
        let current = fs::read_link(dir.join(CURRENT)).ok();
        let current =
            current.and_then(|to| to.to_str()?.parse().ok()).filter(|current| all.contains(current));
        Ok(Self { newest: all.iter().copied().max().unwrap_or(0), all, current })
    }

    fn before(&self, generation: u64) -> Option<u64> {
        self.all.iter().copied().filter(|other| *other < generation).max()
    }

    /// What is published is published, whether the old can be cleared away or not: the next time will try again.
    fn remove_all_but(&self, dir: &Path, current: u64, before: Option<u64>) {
        for old in self.all.iter().filter(|old| **old != current && Some(**old) != before) {
            if let Err(e) = fs::remove_dir_all(dir.join(old.to_string())) {
                tracing::warn!(error = %e, generation = old, "an old generation could not be removed");
            }
        }
    }
}

fn holds(generation: &Path, content: &Content, groups: Groups) -> bool {
    let there = fs::read_dir(generation).map_or(0, Iterator::count);
    let right = |path: &Path, mode: u32, group: Option<u32>| {
        fs::metadata(path)
            .is_ok_and(|is| is.mode() & 0o777 == mode && group.is_none_or(|group| is.gid() == group))
    };
    there == content.len()
        && right(generation, 0o750, groups.group)
        && content.iter().all(|(name, (bytes, readers))| {
            let path = generation.join(name);
            right(&path, 0o640, groups.of(*readers))
                && files::read_limited(&path).is_ok_and(|is| is == *bytes)
        })
}

fn content(identity: &Identity, bundle: &Bundle, now: Timestamp) -> Content {
    let svid = identity.svid.chain().to_pems().concat();
    let combined = format!("{svid}{}", identity.key_pem);
    Content::from([
        ("svid.pem", (svid.into_bytes(), Readers::Group)),
        ("key.pem", (identity.key_pem.clone().into_bytes(), Readers::KeyGroup)),
        ("svid-with-key.pem", (combined.into_bytes(), Readers::KeyGroup)),
        ("bundle.pem", (bundle.to_pem().into_bytes(), Readers::Group)),
        ("bundle.json", (pretty(&bundle.to_document()), Readers::Group)),
        ("identity.json", (description(identity, now), Readers::Group)),
    ])
}

fn description(identity: &Identity, now: Timestamp) -> Vec<u8> {
    pretty(&json!({
        "spiffeId": identity.svid.spiffe_id().to_string(),
        "serial": identity.svid.serial(),
        "notBefore": identity.svid.not_before().to_string(),
        "notAfter": identity.svid.not_after().to_string(),
        "keyProtection": identity.protection.as_str(),
        "valid": identity.is_valid(now),
    }))
}

fn pretty(json: &serde_json::Value) -> Vec<u8> {
    format!("{json:#}\n").into_bytes()
}

/// The files could not be published. Those published before are untouched.
#[derive(Debug, thiserror::Error)]
#[error("could not publish the identity under {}: {source}", dir.display())]
pub struct PublishError {
    dir: PathBuf,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Protection;
    use crate::spiffe::TrustDomain;
    use crate::spiffe::svid::{Chain, X509Svid};
    use std::os::unix::fs::PermissionsExt as _;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn bundle(sequence: u64) -> Bundle {
        let served = format!(r#"{{"keys":[],"spiffe_sequence":{sequence}}}"#);
        Bundle::from_served(served.as_bytes(), &TrustDomain::parse("factory.example").unwrap()).unwrap()
    }

    fn identity() -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let id = "spiffe://factory.example/margo/device/123e4567-e89b-42d3-a456-426614174000";
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        let chain = Chain::from_pem(&[params.self_signed(&key).unwrap().pem()]).unwrap();
        Identity {
            svid: X509Svid::from_stored(chain).unwrap(),
            key_pem: "-----BEGIN TSS2 PRIVATE KEY-----\n".into(),
            protection: Protection::Hardware,
            algorithm: "ecdsa-p256",
        }
    }

    fn publisher(dir: &Path) -> Publisher {
        Publisher::new(&config::Files {
            dir: dir.join("svid"),
            group: None,
            key_group: None,
            software_key_dir: None,
        })
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_same_content_is_published_once_also_across_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity();
        let mut first = publisher(folder.path());
        assert_eq!(first.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(1));
        assert_eq!(first.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(1));
        let mut after_restart = publisher(folder.path());
        assert_eq!(after_restart.publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(), Some(1));
        assert_eq!(after_restart.publish(Some(&identity), Some(&bundle(2)), NOW).unwrap(), Some(2));
    }

    #[test]
    fn a_generation_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut publisher = publisher(folder.path());
        assert_eq!(publisher.publish(None, Some(&bundle(1)), NOW).unwrap(), None);
        assert_eq!(publisher.publish(Some(&identity()), None, NOW).unwrap(), None);
        assert!(!folder.path().join("svid").exists());
    }

    #[test]
    fn the_generation_before_stays_and_older_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut publisher = publisher(folder.path());
        let identity = identity();
        for sequence in 1..=4 {
            publisher.publish(Some(&identity), Some(&bundle(sequence)), NOW).unwrap();
        }
        let dir = folder.path().join("svid");
        assert_eq!(names(&dir), ["3", "4", "current"]);
        assert_eq!(fs::read_link(dir.join("current")).unwrap(), Path::new("4"));
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o750);
    }

    #[test]
    fn what_a_power_cut_left_is_cleared_and_a_torn_generation_is_not_taken_for_current() {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity();
        publisher(folder.path()).publish(Some(&identity), Some(&bundle(1)), NOW).unwrap();
        let dir = folder.path().join("svid");
        fs::create_dir(dir.join(".2.new")).unwrap();
        symlink("9", dir.join(".current.new")).unwrap();
        fs::write(dir.join("1/bundle.pem"), "torn").unwrap();
        assert_eq!(
            publisher(folder.path()).publish(Some(&identity), Some(&bundle(1)), NOW).unwrap(),
            Some(2)
        );
        assert_eq!(names(&dir), ["1", "2", "current"]);
    }
}
