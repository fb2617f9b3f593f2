//! Crash-safe state: one file per record, in a directory that only the agent can enter; the records
//! of each identity in a directory of its name there. A record is replaced atomically. One that
//! cannot be read is quarantined under another name, never deleted, and the agent continues with the
//! others.
//!
//! The order in which records are written makes every step of an enrollment safe to repeat: the
//! pending key before the first request; the issued chain before it is validated; the identity
//! (certificate and key in *one* record, so that they cannot disagree) before the pending key and
//! the issued chain are removed.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod records;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};
use zeroize::Zeroizing;

pub use self::records::{
    IdentityDelay, MAX_TOKENS, Record, RetryAfterDelay, RetryAfterDelays, StoredBundle, StoredDiscovery,
    StoredEstRequest, StoredIdentity, StoredIssuedChain, StoredPendingKey, StoredTime, StoredTokens,
    TokenRecord,
};
use crate::hint::{Hint, Reason};
use crate::platform::access::{current_user, shell_word, unusable_own, user, user_argument};
use crate::platform::files;
use miaf_client::api::IdentityName;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;

/// Limit on the characters of why a record cannot be used. It quotes the record.
const MAX_REASON: usize = 400;

/// Limit on the quarantined records that are tried for recovery.
const MAX_RECOVERED: u32 = 32;

/// The records of an agent that knew one identity, which were directly in the private directory: their
/// names there, and now. The identity comes last.
const FORMER: [(&str, &str); 3] = [
    ("answer.json", StoredIssuedChain::NAME),
    (StoredPendingKey::NAME, StoredPendingKey::NAME),
    (StoredIdentity::NAME, StoredIdentity::NAME),
];

/// Directory of the identities' directories.
const IDENTITIES: &str = "identities";

/// The private part of the state directory, or the part of one identity in it.
#[derive(Clone, Debug)]
pub struct Store {
    state_dir: PathBuf,
    private: PathBuf,
    /// The identity whose records these are; `None` for those that exist once.
    identity: Option<IdentityName>,
}

impl Store {
    /// Creates the store of a state directory. Nothing is read or written yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), private: state_dir.join("private"), identity: None }
    }

    /// The records of one identity.
    #[must_use]
    pub fn of(&self, identity: &IdentityName) -> Self {
        Self { identity: Some(identity.clone()), ..self.clone() }
    }

    /// The directory that only the agent can enter.
    pub fn private(&self) -> &Path {
        &self.private
    }

    /// The directory of the records.
    fn directory(&self) -> PathBuf {
        match &self.identity {
            Some(name) => self.private.join(IDENTITIES).join(name.as_str()),
            None => self.private.clone(),
        }
    }

    /// Creates the directory of the records, and those that it is in.
    fn make_directory(&self) -> io::Result<()> {
        files::make_dir(&self.state_dir, 0o711, None)?;
        files::make_dir(&self.private, 0o700, None)?;
        if self.identity.is_some() {
            files::make_dir(&self.private.join(IDENTITIES), 0o700, None)?;
            files::make_dir(&self.directory(), 0o700, None)?;
        }
        Ok(())
    }

    /// The identities that have records, in the order of their names.
    ///
    /// # Errors
    /// [`StoreError`] where the file system does not tell.
    pub fn identities(&self) -> Result<Vec<IdentityName>, StoreError> {
        let entries = match fs::read_dir(self.private.join(IDENTITIES)) {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => Err(e),
        };
        let entries = entries.map_err(|e| self.failed("read", IDENTITIES, e))?;
        let names = entries.iter().filter_map(|name| IdentityName::parse(name.to_str()?).ok());
        Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
    }

    /// Checks that this process may work with the state: it belongs to this user, whose agent could
    /// not read what another user's process wrote; and no record that must not be lost is
    /// unreadable.
    ///
    /// # Errors
    /// [`StoreError`].
    fn check(&self) -> Result<(), StoreError> {
        if let Some((place, owner)) = self.foreign() {
            let why = self.of_another(&place, owner);
            return Err(StoreError { operation: "use", path: self.state_dir.clone(), why });
        }
        // Also where an earlier version stored them.
        self.check_records()?;
        self.identities()?.iter().try_for_each(|name| self.of(name).check_records())
    }

    fn check_records(&self) -> Result<(), StoreError> {
        [StoredIdentity::NAME, StoredPendingKey::NAME, StoredIssuedChain::NAME].into_iter().try_for_each(
            |name| match files::read_limited(&self.directory().join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("read", name, e)),
                _ => Ok(()),
            },
        )
    }

    /// Returns the part of the state that belongs to another user, and that user. The owner of
    /// `private` is the one who worked with the state last. A state directory without it counts as
    /// this user's if this user may write there (a volume with a group, say). That does not hold
    /// for root, who may write everywhere.
    fn foreign(&self) -> Option<(PathBuf, u32)> {
        let me = geteuid();
        let is_open = |dir: &Path| {
            let both = AccessFlags::W_OK | AccessFlags::X_OK;
            !me.is_root() && access(dir, both).is_ok()
        };
        for dir in [&self.private, &self.state_dir] {
            match fs::metadata(dir) {
                Ok(found) if found.uid() == me.as_raw() => return None,
                Ok(_) if is_open(dir) => return None, // as a file system without owners shows it
                Ok(found) => return Some((dir.clone(), found.uid())),
                Err(_) => {} // not there; or the state directory is closed
            }
        }
        None
    }

    /// Why the state of another user is not used, and what to do.
    fn of_another(&self, place: &Path, owner: u32) -> Reason {
        let (owner, own, me) = (user(owner), user_argument(owner), user_argument(geteuid().as_raw()));
        let (place, state) = (shell_word(place), shell_word(&self.state_dir));
        let why = format!(
            "{place} belongs to {owner}, and this agent runs as {}. What it wrote there, the other \
             user's agent could not read",
            current_user()
        );
        let hint = format!(
            "Give the state to this user: chown -R {me} {state}; or, if it is to stay the other's, start the agent as its \
             owner (systemctl start miaf-agent, or runuser -u {own} -- miaf-agent run)"
        );
        Reason::from(why).with_hint_text(hint)
    }

    fn failed(&self, operation: &'static str, name: &str, source: io::Error) -> StoreError {
        let path = self.directory().join(name);
        let why = match source.kind() {
            io::ErrorKind::NotADirectory => {
                let place = shell_word(&self.state_dir);
                Reason::from(format!("{source}: {place} and private in it have to be directories"))
                    .with_hint_text("Move away what is there")
            }
            _ => unusable_own(&self.state_dir, &path, &source),
        };
        StoreError { operation, path, why }
    }

    /// Locks the state against other agents until the returned file is closed. `None`: the file
    /// system allows no lock file (it is read-only, say). What is stored is served nevertheless.
    ///
    /// # Errors
    /// [`StoreError`] when another agent has the lock, or the state is another user's. Nothing is
    /// written then.
    pub fn lock(&self) -> Result<Option<File>, StoreError> {
        self.check()?;
        let path = self.private.join("lock");
        let open = || {
            files::make_dir(&self.state_dir, 0o711, None)?;
            files::make_dir(&self.private, 0o700, None)?;
            File::options().create(true).truncate(false).write(true).mode(0o600).open(&path)
        };
        let file = match open() {
            Ok(file) => file,
            Err(e) => {
                let e = self.failed("lock", "lock", e);
                tracing::warn!("state not locked against other agents: {}", e.with_hint());
                return Ok(None);
            }
        };
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let why = Reason::from("another agent uses this state directory")
                .with_hint_text("Stop one of the two, or give one another state_dir");
            return Err(StoreError { operation: "lock", path, why });
        }
        let device = self.of(&IdentityName::DEVICE);
        device.take_over_former().map_err(|e| device.failed("move here", StoredIdentity::NAME, e))?;
        self.take_over_former_delays()?;
        Ok(Some(file))
    }

    /// Moves the records of an agent that knew one identity, directly in the private directory, to
    /// where they are now; also quarantined ones, which may be of use again. Safe to repeat after a
    /// power cut.
    ///
    /// Nothing is left behind. What is found there later was written by such an agent that was started
    /// again, after an update that was undone, and is newer: the MIS may know no other key by now
    /// (miaf-v0 E6).
    fn take_over_former(&self) -> io::Result<()> {
        let (from, to) = (&self.private, self.directory());
        let mut is_found = false;
        let mut take = |file: &Path, to: &Path| {
            fs::rename(file, to)?;
            is_found = true;
            io::Result::Ok(())
        };
        for (before, now) in FORMER {
            let (file, now) = (from.join(before), to.join(now));
            for number in 1..=MAX_RECOVERED {
                let quarantined = quarantine_path(&file, number);
                if quarantined.exists() {
                    self.make_directory()?;
                    take(&quarantined, &free_quarantine_path(&now))?;
                }
            }
            if file.exists() {
                self.make_directory()?;
                if now.exists() {
                    self.quarantine_file(
                        &now,
                        "an earlier version of the agent has stored another one since",
                    );
                }
                take(&file, &now)?;
            }
        }
        if is_found {
            files::sync_dir(&to)?;
            files::sync_dir(from)?;
        }
        Ok(())
    }

    /// Takes over the Retry-After delays that an agent has stored that knew one identity (miaf-v0 E8).
    fn take_over_former_delays(&self) -> Result<(), StoreError> {
        const FORMER: &str = "waits.json";
        let path = self.private.join(FORMER);
        let content = match files::read_limited(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.failed("read", FORMER, e)),
        };
        match RetryAfterDelays::decode_former(&content) {
            Ok(delays) => self.save(&delays)?,
            Err(why) => self.quarantine_file(&path, &why),
        }
        files::remove_if_there(&path)
            .and_then(|()| files::sync_dir(&self.private))
            .map_err(|e| self.failed("remove", FORMER, e))
    }

    /// Reads a record. `None`: there is none, or it was damaged and is quarantined now.
    ///
    /// # Errors
    /// [`StoreError`] where the file system does not let it be read: it may still exist.
    pub fn load<R: Record>(&self) -> Result<Option<R>, StoreError> {
        let path = self.record_path::<R>();
        let content = match files::read_limited(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("read", R::NAME, source)),
        };
        let content = Zeroizing::new(content);
        match R::decode(&content) {
            Ok(record) => return Ok(Some(record)),
            Err(_) if R::IS_SECRET => {
                tracing::error!(file = %path.display(), "a record is damaged, and is removed");
                self.remove::<R>()?;
            }
            Err(why) => self.quarantine_file(&path, &why),
        }
        Ok(None)
    }

    /// Where a record is read from: where an agent that knew one identity had it, as long as it could
    /// not be moved (the file system is read-only, say).
    fn record_path<R: Record>(&self) -> PathBuf {
        let path = self.directory().join(R::NAME);
        let is_former = self.identity.as_ref() == Some(&IdentityName::DEVICE);
        let former = FORMER.iter().find(|(_, now)| is_former && *now == R::NAME);
        let former = former.map(|(before, _)| self.private.join(before));
        former.filter(|former| !path.exists() && former.exists()).unwrap_or(path)
    }

    /// When a record was written, by the file system. `None`: there is none, or it does not tell.
    pub fn changed_at<R: Record>(&self) -> Option<Timestamp> {
        let metadata = fs::metadata(self.record_path::<R>()).ok()?;
        metadata.modified().ok().map(Timestamp::from)
    }

    /// Writes a record durably, in place of the one before.
    ///
    /// # Errors
    /// [`StoreError`]. The one before is unchanged then.
    pub fn save<R: Record>(&self, record: &R) -> Result<(), StoreError> {
        let path = self.directory().join(R::NAME);
        let write = || {
            self.make_directory()?;
            files::replace(&path, &record.encode()?, 0o600)
        };
        write().map_err(|source| self.failed("write", R::NAME, source))
    }

    /// Removes a record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove<R: Record>(&self) -> Result<(), StoreError> {
        let (directory, path) = (self.directory(), self.directory().join(R::NAME));
        let remove = || {
            files::remove_if_there(&path)?;
            if directory.exists() { files::sync_dir(&directory) } else { Ok(()) }
        };
        remove().map_err(|source| self.failed("remove", R::NAME, source))
    }

    /// Quarantines an intact record that cannot be used for another reason.
    pub fn quarantine<R: Record>(&self, why: &str) {
        self.quarantine_file(&self.directory().join(R::NAME), why);
    }

    /// Recovers the newest quarantined record that can be used again, if there is one. A record in its
    /// place is quarantined.
    pub fn recover<R: Record, T>(&self, usable: impl Fn(&R) -> Result<T, String>) -> Option<(T, R)> {
        let path = self.directory().join(R::NAME);
        let (file, used, record) = self.find_quarantined(usable)?;
        if path.exists() {
            self.quarantine_file(&path, "another record that was quarantined takes its place");
        }
        fs::rename(&file, &path).and_then(|()| files::sync_dir(&self.directory())).ok()?;
        tracing::warn!(file = %file.display(), "quarantined record recovered: it can be used again");
        Some((used, record))
    }

    /// Finds the newest quarantined record that can be used again.
    pub fn find_quarantined<R: Record, T>(
        &self,
        usable: impl Fn(&R) -> Result<T, String>,
    ) -> Option<(PathBuf, T, R)> {
        let path = self.directory().join(R::NAME);
        let quarantined = (1..=MAX_RECOVERED).rev().map(|number| quarantine_path(&path, number));
        quarantined.filter(|file| file.exists()).find_map(|file| {
            let record = R::decode(&files::read_limited(&file).ok()?).ok()?;
            let used = usable(&record).ok()?;
            Some((file, used, record))
        })
    }

    /// Moves everything of this identity away, and returns where it is now: the identity is retired.
    /// Nothing is deleted but an enrollment token (X43). The cached documents follow where it `leaves`
    /// the trust domain, in which no other identity stays: its MIS may be another one next time
    /// (miaf-v0 B5). Retry-after delays (miaf-v0 E8) and the key-encryption key stay where they are.
    ///
    /// It goes in one rename: a power cut leaves all of it or nothing. What follows is of no use
    /// without it.
    ///
    /// # Errors
    /// [`StoreError`]. The identity is still there then, unless the file system failed after it was
    /// moved.
    pub fn retire(&self, leaves: bool) -> Result<PathBuf, StoreError> {
        let directory = self.directory();
        let name = self.identity.as_ref().map_or("", IdentityName::as_str);
        self.remove::<StoredEstRequest>()?;
        let retired = |number: u32| self.private.join(format!("retired-{number}-{name}"));
        // The numbers do not end.
        let retired = (1..).map(retired).find(|path| !path.exists()).unwrap_or_default();
        let retire = || {
            fs::rename(&directory, &retired)?;
            files::sync_dir(&self.private)?; // where it is now, before where it is no longer
            files::sync_dir(&self.private.join(IDENTITIES))?;
            if leaves { self.move_documents(&retired) } else { Ok(()) }
        };
        retire().map_err(|source| StoreError {
            operation: "move the identity into",
            path: retired.clone(),
            why: unusable_own(&self.state_dir, &retired, &source),
        })?;
        Ok(retired)
    }

    /// Moves the cached documents, and quarantined ones.
    fn move_documents(&self, to: &Path) -> io::Result<()> {
        let names = fs::read_dir(&self.private)?.map(|entry| Ok(entry?.file_name()));
        for name in names.collect::<io::Result<Vec<_>>>()? {
            let is_of = |document: &str| {
                let rest = name.to_str().and_then(|name| name.strip_prefix(document));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            if [StoredDiscovery::NAME, StoredBundle::NAME].into_iter().any(is_of) {
                fs::rename(self.private.join(&name), to.join(&name))?;
            }
        }
        files::sync_dir(to)?;
        files::sync_dir(&self.private)
    }

    fn quarantine_file(&self, path: &Path, why: &str) {
        let to = free_quarantine_path(path);
        let moved = fs::rename(path, &to).and_then(|()| files::sync_dir(&self.directory()));
        tracing::error!(
            file = %path.display(), quarantined_as = %to.display(), moved = moved.is_ok(),
            "record quarantined: {}: {}", path.display(), Excerpt::of(why, MAX_REASON)
        );
    }
}

fn free_quarantine_path(path: &Path) -> PathBuf {
    let free = (1..).map(|number| quarantine_path(path, number)).find(|to| !to.exists());
    free.unwrap_or_default() // the numbers do not end
}

fn quarantine_path(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".unusable-{number}"));
    path.with_file_name(name)
}

/// An operation on the state directory that failed: it is full, read-only, not permitted, broken.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {}: {why}", path.display())]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    why: Reason,
}

impl Hint for StoreError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.why.hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tss2::{Parent, Tss2Key};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn error_has_a_hint_apart_from_its_message() {
        use crate::hint::assert_apart;
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        for kind in [io::ErrorKind::NotADirectory, io::ErrorKind::ReadOnlyFilesystem] {
            assert_apart(&store.failed("write", "identity.json", kind.into()));
        }
        let denied = store.failed("write", "identity.json", io::Error::from_raw_os_error(13));
        assert_apart(&denied);
        assert!(denied.to_string().contains("Permission denied"), "{denied}");
        assert!(denied.hint().unwrap().contains("chown -R "), "{denied}");
        let foreign = store.of_another(directory.path(), 4_000_000);
        assert_apart(&foreign);
        assert!(foreign.hint().unwrap().starts_with("Give the state to this user: chown -R "), "{foreign}");
        let _lock = store.lock().unwrap();
        let locked = store.lock().unwrap_err();
        assert_apart(&locked);
        assert!(locked.hint().unwrap().starts_with("Stop one of the two"), "{locked}");
    }

    fn pending() -> StoredPendingKey {
        // Well-formed, though no TPM created it.
        let key = Tss2Key { parent: Parent::OwnerPrimary, public: vec![7; 90], private: vec![9; 126] };
        StoredPendingKey { key: key.to_pem().unwrap() }
    }

    #[test]
    fn record_is_read_back_and_only_the_agent_can_reach_it() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let store = Store::new(&state).of(&IdentityName::DEVICE);
        assert_eq!(store.load::<StoredPendingKey>().unwrap(), None);
        store.save(&pending()).unwrap();
        assert_eq!(store.load().unwrap(), Some(pending()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o711);
        assert_eq!(mode(&state.join("private")), 0o700);
        assert_eq!(mode(&state.join("private/identities/device")), 0o700);
        assert_eq!(mode(&state.join("private/identities/device/pending-key.pem")), 0o600);
        store.remove::<StoredPendingKey>().unwrap();
        store.remove::<StoredPendingKey>().unwrap();
        assert_eq!(store.load::<StoredPendingKey>().unwrap(), None);
    }

    #[test]
    fn damaged_record_is_quarantined_and_not_deleted() {
        for content in
            ["", "{", "null", "{\"version\":2,\"record\":{}}", "{\"version\":1,\"record\":{\"key\":5}}"]
        {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::new(directory.path());
            store.save(&RetryAfterDelays::default()).unwrap();
            let path = directory.path().join("private/retry-after.json");
            fs::write(&path, content).unwrap();
            assert_eq!(store.load::<RetryAfterDelays>().unwrap(), None, "{content:?}");
            let quarantined = directory.path().join("private/retry-after.json.unusable-1");
            assert_eq!(fs::read_to_string(quarantined).unwrap(), content);
            assert!(!path.exists());
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
        let mut names: Vec<_> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn name(text: &str) -> IdentityName {
        IdentityName::parse(text).unwrap()
    }

    #[test]
    fn retire_moves_one_identity_and_deletes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let private = directory.path().join("private");
        for identity in ["device", "wfm"] {
            store.of(&name(identity)).save(&pending()).unwrap();
        }
        store.save(&RetryAfterDelays::default()).unwrap();
        for document in ["discovery.json", "bundle.json", "bundle.json.unusable-1", "bundle.jsonnet"] {
            fs::write(private.join(document), "x").unwrap();
        }
        fs::write(private.join("identities/device/identity.json.unusable-1"), "x").unwrap();
        fs::create_dir(private.join("retired-1-device")).unwrap();
        let retired = store.of(&name("device")).retire(false).unwrap();
        assert_eq!(retired, private.join("retired-2-device"), "earlier ones are not touched");
        assert_eq!(names(&retired), ["identity.json.unusable-1", "pending-key.pem"]);
        assert!(private.join("discovery.json").exists() && private.join("retry-after.json").exists());
        assert_eq!(store.identities().unwrap(), [name("wfm")]);
        assert_eq!(store.of(&name("wfm")).load().unwrap(), Some(pending()));
        assert!(store.of(&name("device")).load::<StoredPendingKey>().unwrap().is_none());
        let request =
            StoredEstRequest { csr: None, token: Some("line-7:secret".into()), token_for_pending_key: None };
        store.of(&name("wfm")).save(&request).unwrap();
        // With the last one the documents go.
        let retired = store.of(&name("wfm")).retire(true).unwrap();
        let all = ["bundle.json", "bundle.json.unusable-1", "discovery.json", "pending-key.pem"];
        assert_eq!(names(&retired), all);
        let left = ["bundle.jsonnet", "identities", "retired-1-device", "retired-1-wfm", "retired-2-device"];
        assert_eq!(names(&private)[..5], left);
    }

    #[test]
    fn damaged_record_with_a_secret_is_not_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path()).of(&name("wfm"));
        let request = StoredEstRequest {
            csr: Some("AA==".into()),
            token: Some("line-7:secret".into()),
            token_for_pending_key: Some(true),
        };
        store.save(&request).unwrap();
        assert_eq!(store.load().unwrap(), Some(request));
        let there = directory.path().join("private/identities/wfm");
        let written = fs::read_to_string(there.join("est-request.json")).unwrap();
        fs::write(there.join("est-request.json"), &written[..written.len() - 1]).unwrap();
        assert_eq!(store.load::<StoredEstRequest>().unwrap(), None);
        assert_eq!(names(&there), [""; 0]);
    }

    #[test]
    fn records_of_one_identity_are_taken_over_in_any_state() {
        let record = pending().encode().unwrap();
        for moved in [&[][..], &["pending-key.pem"], &["pending-key.pem", "identity.json"]] {
            let directory = tempfile::tempdir().unwrap();
            let private = directory.path().join("private");
            fs::create_dir_all(private.join("identities/device")).unwrap();
            for file in ["answer.json", "pending-key.pem", "identity.json"] {
                let at = if moved.contains(&file) { "identities/device" } else { "" };
                fs::write(private.join(at).join(file), &record).unwrap();
            }
            let store = Store::new(directory.path());
            // Also where it cannot be moved.
            let device = store.of(&IdentityName::DEVICE);
            assert_eq!(device.load().unwrap(), Some(pending()), "{moved:?}");
            assert_eq!(store.of(&name("wfm")).load::<StoredPendingKey>().unwrap(), None);
            drop(store.lock().unwrap());
            drop(store.lock().unwrap());
            let now = names(&private.join("identities/device"));
            assert_eq!(now, ["identity.json", "issued.json", "pending-key.pem"], "{moved:?}");
            assert_eq!(names(&private), ["identities", "lock"]);
        }
    }

    #[test]
    fn records_of_an_undone_update_are_the_newer_ones() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let private = directory.path().join("private");
        let device = store.of(&IdentityName::DEVICE);
        let newer = pending();
        let older = Tss2Key { parent: Parent::OwnerPrimary, public: vec![5; 90], private: vec![9; 126] };
        let older = StoredPendingKey { key: older.to_pem().unwrap() };
        device.save(&older).unwrap();
        fs::write(private.join("pending-key.pem"), &newer.key).unwrap();
        fs::write(private.join("pending-key.pem.unusable-1"), "once").unwrap();
        for _ in 0..2 {
            drop(store.lock().unwrap());
            assert_eq!(device.load().unwrap(), Some(newer.clone()));
        }
        let there = private.join("identities/device");
        let all = ["pending-key.pem", "pending-key.pem.unusable-1", "pending-key.pem.unusable-2"];
        assert_eq!(names(&there), all, "nothing is lost");
        assert_eq!(fs::read_to_string(there.join(all[1])).unwrap(), "once");
        assert_eq!(fs::read_to_string(there.join(all[2])).unwrap(), older.key);
        assert_eq!(names(&private), ["identities", "lock"]);
    }

    #[test]
    fn delays_of_one_identity_are_taken_over() {
        let end = r#"{"boot":7000,"wall":9000,"left":3000}"#;
        let former = format!(
            r#"{{"version":1,"record":{{"mis":"https://mis.example/","boot_id":"b","discovery":null,"bundle":{end},
            "identity":{end},"discovery_reason":null,"reason":null,"admission_pending":true}}}}"#
        );
        let directory = tempfile::tempdir().unwrap();
        let private = directory.path().join("private");
        fs::create_dir_all(&private).unwrap();
        let store = Store::new(directory.path());
        fs::write(private.join("waits.json"), former).unwrap();
        drop(store.lock().unwrap());
        let delays: RetryAfterDelays = store.load().unwrap().unwrap();
        let [device] = delays.identities.as_slice() else { panic!("{delays:?}") };
        assert_eq!((&device.name, device.admission_pending), (&IdentityName::DEVICE, true));
        assert_eq!((device.retry_after.unwrap().left, device.retry_after), (3000, delays.bundle));
        assert_eq!(
            (delays.mis.as_deref(), delays.boot_id.as_deref()),
            (Some("https://mis.example/"), Some("b"))
        );
        // One that cannot be read stops nothing.
        fs::write(private.join("waits.json"), "nonsense").unwrap();
        drop(store.lock().unwrap());
        assert_eq!(store.load().unwrap(), Some(delays));
        assert_eq!(names(&private), ["lock", "retry-after.json", "waits.json.unusable-1"]);
    }
}
