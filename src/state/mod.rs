//! What survives a power cut: one small file a record, in a folder that only the agent can enter. A record is replaced
//! whole or not at all. One that cannot be read is set aside under another name, never deleted, and the agent goes on
//! from what is left.
//!
//! The order in which records are written makes every step of an enrollment safe to repeat: the pending key before the
//! first request, the answer before it is judged, the identity (certificate and key in *one* record, so that they
//! cannot disagree) before the pending key and the answer are removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};
use crate::keys;
use crate::lifecycle::{LastError, Memory};
use crate::platform::access::{advice_on_own, current_user, shell_word, user, user_argument};
use crate::platform::files;
use crate::spiffe::TrustDomain;
use crate::text::Excerpt;
use crate::time::{BootTime, Timestamp};
use crate::transport::Validators;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

const VERSION: u32 = 1;

/// Characters of why a record cannot be used. It quotes what stands there.
const MAX_REASON: usize = 400;

/// Certificates that are read back of a chain: more than the MIS may answer with.
const MAX_CERTIFICATES: usize = 64;

/// A kind of record: its file and its content.
pub trait Record: Sized {
    /// Name of its file.
    const NAME: &'static str;

    /// What is in the file.
    ///
    /// # Errors
    /// When the record cannot be put in writing.
    fn encode(&self) -> io::Result<Vec<u8>>;

    /// The record that a file holds.
    ///
    /// # Errors
    /// What is wrong with the file.
    fn decode(content: &[u8]) -> Result<Self, String>;
}

/// The identity that is held: SVID and key together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Leaf, then intermediates, each PEM.
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_CERTIFICATES>")]
    pub chain: Vec<String>,
    /// The key as [`Key::to_pem`](crate::keys::Key::to_pem) wrote it: of no use without this device.
    pub key: String,
    /// The renewal moment drawn for it.
    pub renew_at: Option<Timestamp>,
    /// SHA-256 of the factory certificate that the device was enrolled with, in hex: with another it may become another
    /// device to the MIS (miaf-v0 E5, E9).
    #[serde(default)]
    pub credential: Option<String>,
}

/// A key made for the next SVID, before the first request with it: a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// As [`Key::to_pem`](crate::keys::Key::to_pem) wrote it.
    pub key: String,
}

/// An answer of the MIS that is not adopted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// It answers a renewal: only the identity held is acceptable.
    pub renewal: bool,
    /// It was asked for with the pending key, else with the current one.
    pub for_pending_key: bool,
    /// It may name another identity than the one held: that had expired, or was answered `401` (miaf-v0 E9).
    #[serde(default)]
    pub may_rename: bool,
    /// SHA-256 of the factory certificate that it was asked for with, in hex; of a renewal, as of the SVID before.
    #[serde(default)]
    pub credential: Option<String>,
    /// As returned.
    #[serde(deserialize_with = "json::at_most::<_, _, MAX_CERTIFICATES>")]
    pub chain: Vec<String>,
}

/// The last good discovery document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedDiscovery {
    /// Where it came from: under another URL it counts for nothing.
    pub url: String,
    /// As served.
    pub body: String,
    /// To revalidate it with.
    pub validators: Validators,
}

/// The last good trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedBundle {
    /// Where it came from.
    pub url: String,
    /// Whose it is.
    pub trust_domain: TrustDomain,
    /// The SPIFFE bundle document of the trust domain. Earlier agents kept it as served.
    pub body: String,
    /// To revalidate it with.
    pub validators: Validators,
    /// When it was last known to be current.
    pub fetched_at: Timestamp,
    /// Since when a lower sequence has been served instead (miaf-v0 B5).
    pub regressed_since: Option<Timestamp>,
}

/// What was known of the time besides the wall clock: it is later now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedTime {
    /// By the MIS.
    pub proven: Option<Timestamp>,
    /// By the operator's word.
    pub vouched: Option<Timestamp>,
}

/// Waits that the MIS asked for (miaf-v0 E8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedWaits {
    /// The address of the discovery document of the MIS that asked for them.
    pub mis: Option<String>,
    /// The boot in which the boot times below mean something.
    pub boot_id: Option<String>,
    /// For discovery.
    pub discovery: Option<Wait>,
    /// For the bundle.
    pub bundle: Option<Wait>,
    /// For enrollment and renewal.
    pub identity: Option<Wait>,
    /// Why discovery waits.
    pub discovery_reason: Option<LastError>,
    /// Why enrollment or renewal waits.
    pub reason: Option<LastError>,
    /// It waits to be admitted.
    pub admission_pending: bool,
    /// The operator has allowed that a lost key be replaced.
    #[serde(default)]
    pub replace_lost_key: bool,
}

impl CachedWaits {
    /// What the lifecycle is not to forget, in the words of both clocks.
    /// `wall` is the wall clock where it can be believed; without it, the end of a wait lies at the end of time, so that a
    /// right clock leaves of it after a reboot what was left when it was written.
    pub fn new(
        memory: &Memory,
        mis: Option<String>,
        boot_id: Option<String>,
        wall: Option<Timestamp>,
        now: BootTime,
    ) -> Self {
        let write = |until: Option<BootTime>| {
            until.map(|boot| {
                let left = now.until(boot);
                let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                let end = wall.map_or(UNKNOWN_END, |wall| wall.after(left));
                Wait { boot, wall: end, left: millis }
            })
        };
        Self {
            mis,
            boot_id,
            discovery: write(memory.waits.discovery),
            bundle: write(memory.waits.bundle),
            identity: write(memory.waits.identity),
            discovery_reason: memory.discovery_waits_because.clone(),
            reason: memory.waits_because.clone(),
            admission_pending: memory.admission_pending,
            replace_lost_key: memory.replace_lost_key,
        }
    }

    /// All of them were written by a wall clock that could be believed.
    pub fn ends_by_the_wall_clock(&self) -> bool {
        let ends = [self.discovery, self.bundle, self.identity];
        ends.into_iter().flatten().all(|wait| wait.wall != UNKNOWN_END)
    }
}

/// The end of a wait that was written by a clock that could not be believed.
const UNKNOWN_END: Timestamp = Timestamp::from_millis(i64::MAX);

/// The end of a wait on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Within the same boot.
    pub boot: BootTime,
    /// After a reboot, when only the wall clock is left.
    pub wall: Timestamp,
    /// What was left of it when it was written, in milliseconds: the most that a wrong wall clock can make of it.
    pub left: u64,
}

impl Record for Pending {
    const NAME: &'static str = "pending-key.pem";

    fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(self.key.clone().into_bytes())
    }

    fn decode(content: &[u8]) -> Result<Self, String> {
        let key = str::from_utf8(content).map_err(|_| "it is not PEM".to_owned())?;
        keys::check_form(key).map_err(|e| e.to_string())?;
        Ok(Self { key: key.to_owned() })
    }
}

/// The others are JSON with a version beside them, so that a newer agent's record is told from a damaged one.
macro_rules! json_records {
    ($($record:ty: $name:literal),* $(,)?) => {$(
        impl Record for $record {
            const NAME: &'static str = $name;

            fn encode(&self) -> io::Result<Vec<u8>> {
                Ok(serde_json::to_vec(&Envelope { version: VERSION, record: self })?)
            }

            fn decode(content: &[u8]) -> Result<Self, String> {
                read_json(content)
            }
        }
    )*};
}

json_records! {
    Identity: "identity.json",
    Answer: "answer.json",
    CachedDiscovery: "discovery.json",
    CachedBundle: "bundle.json",
    CachedWaits: "waits.json",
    CachedTime: "time.json",
}

/// The private part of the state folder.
#[derive(Clone, Debug)]
pub struct Store {
    state_dir: PathBuf,
    private: PathBuf,
}

impl Store {
    /// The store under a state folder. Nothing is touched before the first record is read or written.
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), private: state_dir.join("private") }
    }

    /// The folder that only the agent can enter.
    pub fn private(&self) -> &Path {
        &self.private
    }

    /// Whether this process is the one to work with the state: nothing is written by a user that it does not belong
    /// to, for the agent that it does belong to could not read that. Nor is anything begun while a record that must
    /// not be lost cannot be read.
    ///
    /// # Errors
    /// [`StoreError`] with the command that helps.
    fn check(&self) -> Result<(), StoreError> {
        if let Some((place, owner)) = self.foreign() {
            let source = io::Error::other(self.of_another(&place, owner));
            return Err(StoreError { doing: "use", path: self.state_dir.clone(), advice: None, source });
        }
        [Identity::NAME, Pending::NAME, Answer::NAME].into_iter().try_for_each(|name| {
            match files::read_limited(&self.private.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("read", name, e)),
                _ => Ok(()),
            }
        })
    }

    /// The part of the state that belongs to another user, and to whom. `private` tells who worked with it last. A
    /// state folder without it is as good as its own for whoever may write in it (a volume with a group, say), root
    /// apart, who may write everywhere.
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
                Err(_) => {} // not there; or the state folder is closed
            }
        }
        None
    }

    fn of_another(&self, place: &Path, owner: u32) -> String {
        let (owner, own, me) = (user(owner), user_argument(owner), user_argument(geteuid().as_raw()));
        let (place, state) = (shell_word(place), shell_word(&self.state_dir));
        format!(
            "{place} belongs to {owner}, and this agent runs as {}. What it wrote there, the other user's agent could \
             not read. Start the agent as its owner (systemctl start miaf-agent, or runuser -u {own} -- miaf-agent \
             run); or, if the state is to be this user's: chown -R {me} {state}",
            current_user()
        )
    }

    fn failed(&self, doing: &'static str, name: &str, source: io::Error) -> StoreError {
        let path = self.private.join(name);
        let advice = match source.kind() {
            io::ErrorKind::NotADirectory => {
                let place = shell_word(&self.state_dir);
                Some(format!("{place} and private in it have to be directories: move away what is there"))
            }
            _ => advice_on_own(&self.state_dir, &path, &source),
        };
        StoreError { doing, path, advice, source }
    }

    /// Keeps other agents from this state for as long as the file returned lives. `None` where the file system allows
    /// no lock file, read-only say: what is held is served all the same.
    ///
    /// # Errors
    /// [`StoreError`] when another agent holds it, or it is another user's: nothing is written then.
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
                tracing::warn!("{e}. Another agent could work with the same state");
                return Ok(None);
            }
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let source = io::Error::other("another agent works with this state folder");
                Err(StoreError { doing: "lock", path, advice: None, source })
            }
            _ => Ok(Some(file)),
        }
    }

    /// Reads a record, if it is there and sound.
    ///
    /// # Errors
    /// [`StoreError`] where the file system does not let it be read: it may still be there.
    pub fn load<R: Record>(&self) -> Result<Option<R>, StoreError> {
        let path = self.private.join(R::NAME);
        let content = match files::read_limited(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("read", R::NAME, source)),
        };
        match R::decode(&content) {
            Ok(record) => Ok(Some(record)),
            Err(why) => {
                self.quarantine(&path, &why);
                Ok(None)
            }
        }
    }

    /// Makes a record durable, in the place of the one before.
    ///
    /// # Errors
    /// [`StoreError`]; the one before is then still there.
    pub fn save<R: Record>(&self, record: &R) -> Result<(), StoreError> {
        let path = self.private.join(R::NAME);
        let write = || {
            files::make_dir(&self.state_dir, 0o711, None)?;
            files::make_dir(&self.private, 0o700, None)?;
            files::replace(&path, &record.encode()?, 0o600)
        };
        write().map_err(|source| self.failed("write", R::NAME, source))
    }

    /// Removes a record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove<R: Record>(&self) -> Result<(), StoreError> {
        let path = self.private.join(R::NAME);
        let remove = || {
            files::remove_if_there(&path)?;
            if self.private.exists() { files::sync_dir(&self.private) } else { Ok(()) }
        };
        remove().map_err(|source| self.failed("remove", R::NAME, source))
    }

    /// Sets a sound record aside because something else shows that it cannot be used.
    pub fn set_aside<R: Record>(&self, why: &str) {
        self.quarantine(&self.private.join(R::NAME), why);
    }

    /// Looks among the records that were set aside for one that can be used after all, the newest first, and puts it in
    /// its place again. For when there is none in that place.
    pub fn take_back<R: Record, T>(&self, usable: impl Fn(&R) -> Result<T, String>) -> Option<(T, R)> {
        let path = self.private.join(R::NAME);
        let aside = (1..=MOST_TAKEN_BACK).rev().map(|number| numbered(&path, number));
        aside.filter(|aside| aside.exists()).find_map(|aside| {
            let record = R::decode(&files::read_limited(&aside).ok()?).ok()?;
            let used = usable(&record).ok()?;
            fs::rename(&aside, &path).and_then(|()| files::sync_dir(&self.private)).ok()?;
            tracing::warn!(file = %aside.display(), "a part of the agent's state that was set aside can be used again");
            Some((used, record))
        })
    }

    /// Moves everything that belongs to the identity into a folder of its own, and says which: a trust domain is left.
    /// Nothing is deleted. Waits that an MIS asked for (miaf-v0 E8) and the key-encryption key stay where they are.
    ///
    /// The identity goes in one rename. What could bring it back without its record (an answer that is not adopted yet,
    /// its key, and what was set aside before) has durably gone by then; what goes after it is of no use without it. So
    /// a power cut leaves the identity or none, and nothing to be finished.
    ///
    /// # Errors
    /// [`StoreError`]; the identity is then still there, unless the file system failed after it was moved.
    pub fn leave(&self) -> Result<PathBuf, StoreError> {
        let folder = |number: u32| self.private.join(format!("left-{number}"));
        let left = (1..).map(folder).find(|left| !left.exists()).unwrap_or_default(); // the numbers do not end
        let leave = || {
            files::make_dir(&left, 0o700, None)?;
            Turn::ALL.into_iter().try_for_each(|turn| self.move_aside(turn, &left))
        };
        leave().map_err(|source| StoreError {
            doing: "move aside into",
            path: left.clone(),
            advice: None,
            source,
        })?;
        Ok(left)
    }

    fn move_aside(&self, turn: Turn, left: &Path) -> io::Result<()> {
        let names = fs::read_dir(&self.private)?.map(|entry| Ok(entry?.file_name()));
        for name in names.collect::<io::Result<Vec<_>>>()? {
            if name.to_str().and_then(Turn::of) == Some(turn) {
                fs::rename(self.private.join(&name), left.join(&name))?;
            }
        }
        files::sync_dir(left)?; // where they are now, before where they are no longer
        files::sync_dir(&self.private)
    }

    fn quarantine(&self, path: &Path, why: &str) {
        let numbered = |number| numbered(path, number);
        let aside = (1..).map(numbered).find(|aside| !aside.exists()).unwrap_or_default(); // the numbers do not end
        let moved = fs::rename(path, &aside).and_then(|()| files::sync_dir(&self.private));
        tracing::error!(
            file = %path.display(), kept_as = %aside.display(), moved = moved.is_ok(),
            "a part of the agent's state, {}, cannot be used and is set aside: {}",
            path.display(),
            Excerpt::of(why, MAX_REASON)
        );
    }
}

/// When a file of an identity is moved aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Unfinished,
    Identity,
    Documents,
}

impl Turn {
    const ALL: [Self; 3] = [Self::Unfinished, Self::Identity, Self::Documents];

    /// `None`: it stays.
    fn of(name: &str) -> Option<Self> {
        let is_of = |record: &str| {
            name.strip_prefix(record).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if name == Identity::NAME {
            Some(Self::Identity)
        } else if [Answer::NAME, Pending::NAME, Identity::NAME].into_iter().any(is_of) {
            Some(Self::Unfinished)
        } else {
            [CachedDiscovery::NAME, CachedBundle::NAME].into_iter().any(is_of).then_some(Self::Documents)
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".unusable-{number}"));
    path.with_file_name(name)
}

/// Of more than this many nobody will want one back.
const MOST_TAKEN_BACK: u32 = 32;

/// The state folder does not do what it should: full, read-only, not permitted, broken.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} {}: {source}{}{}", path.display(), if advice.is_some() { ". " } else { "" },
        advice.as_deref().unwrap_or_default())]
pub struct StoreError {
    doing: &'static str,
    path: PathBuf,
    /// What to do.
    advice: Option<String>,
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    version: u32,
    record: R,
}

fn read_json<R: DeserializeOwned>(content: &[u8]) -> Result<R, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let damaged = |e: JsonError| format!("it is damaged: {e}");
    let Version { version } = json::read(content).map_err(damaged)?;
    if version != VERSION {
        return Err(format!("it is of version {version}, and this agent reads version {VERSION}"));
    }
    let envelope: Envelope<R> = json::read(content).map_err(damaged)?;
    Ok(envelope.record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::tss2::{Parent, Tss2Key};
    use std::os::unix::fs::PermissionsExt as _;

    fn pending() -> Pending {
        // Shaped as it should be, though no TPM made it.
        let key = Tss2Key { parent: Parent::OwnerPrimary, public: vec![7; 90], private: vec![9; 126] };
        Pending { key: key.to_pem().unwrap() }
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_only_the_agent_can_reach_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let store = Store::new(&state);
        assert_eq!(store.load::<Pending>().unwrap(), None);
        store.save(&pending()).unwrap();
        assert_eq!(store.load().unwrap(), Some(pending()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&state), 0o711);
        assert_eq!(mode(&state.join("private")), 0o700);
        assert_eq!(mode(&state.join("private/pending-key.pem")), 0o600);
        store.remove::<Pending>().unwrap();
        store.remove::<Pending>().unwrap();
        assert_eq!(store.load::<Pending>().unwrap(), None);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_and_kept() {
        for content in
            ["", "{", "null", "{\"version\":2,\"record\":{}}", "{\"version\":1,\"record\":{\"key\":5}}"]
        {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::new(folder.path());
            store.save(&CachedWaits::default()).unwrap();
            let path = folder.path().join("private/waits.json");
            fs::write(&path, content).unwrap();
            assert_eq!(store.load::<CachedWaits>().unwrap(), None, "{content:?}");
            let aside = folder.path().join("private/waits.json.unusable-1");
            assert_eq!(fs::read_to_string(aside).unwrap(), content);
            assert!(!path.exists());
        }
    }

    /// All files of an identity, and all that are not.
    fn full(private: &Path) -> [Vec<&'static str>; 4] {
        let files = [
            vec![
                "answer.json",
                "answer.json.unusable-1",
                "identity.json.new",
                "identity.json.unusable-1",
                "pending-key.pem",
                "pending-key.pem.unusable-2",
            ],
            vec!["identity.json"],
            vec!["bundle.json", "discovery.json"],
            vec!["identity.jsonnet", "kek", "lock", "waits.json"],
        ];
        fs::create_dir_all(private.join("left-1")).unwrap();
        for name in files.iter().flatten() {
            fs::write(private.join(name), name).unwrap();
        }
        files
    }

    fn names(folder: &Path) -> Vec<String> {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|entry| entry.file_type().unwrap().is_file());
        let mut names: Vec<_> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_identity_is_left_with_everything_that_could_bring_it_back_and_nothing_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let private = folder.path().join("private");
        let [unfinished, identity, documents, others] = full(&private);
        let left = Store::new(folder.path()).leave().unwrap();
        assert_eq!(left, private.join("left-2"), "what was left before is not touched");
        assert_eq!(fs::metadata(&left).unwrap().permissions().mode() & 0o777, 0o700);
        let mut all = [unfinished, identity, documents].concat();
        all.sort_unstable();
        assert_eq!(names(&left), all);
        assert_eq!(names(&private), others);
        assert_eq!(fs::read_to_string(left.join("identity.json")).unwrap(), "identity.json");
    }

    #[test]
    fn a_power_cut_leaves_the_identity_or_none_and_nothing_that_could_bring_it_back() {
        for turns in 0..=3 {
            let folder = tempfile::tempdir().unwrap();
            let private = folder.path().join("private");
            let [unfinished, identity, documents, others] = full(&private);
            let store = Store::new(folder.path());
            for turn in &Turn::ALL[..turns] {
                store.move_aside(*turn, &private.join("left-1")).unwrap();
            }
            let mut all = [unfinished, identity, documents][turns..].concat();
            all.extend(others);
            all.sort_unstable();
            assert_eq!(names(&private), all, "after {turns}");
        }
    }
}
