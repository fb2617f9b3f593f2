//! Permissions of files: the cause of an `EACCES`, and the command that corrects it.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgroups};

use crate::hint::Reason;
use miaf_spiffe::text::Excerpt;

/// Limit of characters of a path or an error in a message.
const MAX_SHOWN: usize = 300;
/// Limit of symbolic links, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Directories that `ProtectHome=yes` hides (systemd.exec(5)).
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// Why a file cannot be read. On `EACCES`: owner and mode of the file or of the directory above it,
/// the user of this process, and the command that lets it read the file.
pub(crate) fn unreadable(path: &Path, e: &io::Error) -> Reason {
    if e.kind() == io::ErrorKind::NotFound {
        return described(e)
            .with_hint_text("Put the file there, or correct what names it in the configuration");
    }
    let denial = is_denial(e).then(|| Denial::of(path)).flatten();
    denial.map_or_else(|| described(e), |denial| denial.reason())
}

/// Why a directory cannot be written. On `EACCES`: its owner, the user of this process, and the
/// command that gives it the directory. The command covers all that is below only if `is_own` says
/// that nothing of other users is there.
pub(crate) fn unwritable(dir: &Path, is_own: bool, e: &io::Error) -> Reason {
    unusable(dir, dir, is_own, e)
}

/// Why an operation at `place` failed: a directory that must belong to this process, or a path in
/// it. On `EACCES`, `EROFS`, and where space is lacking: what to do.
pub(crate) fn unusable_own(dir: &Path, place: &Path, e: &io::Error) -> Reason {
    unusable(dir, place, true, e)
}

fn described(e: &io::Error) -> Reason {
    Excerpt::of(e, MAX_SHOWN).into_string().into()
}

fn unusable(dir: &Path, place: &Path, is_own: bool, e: &io::Error) -> Reason {
    let why = described(e);
    if e.raw_os_error() == Some(Errno::EROFS as i32) {
        return why.with_hint_text(format!(
            "Mount the file system for writing or, where the sandbox of the service makes it read-only, add \
             ReadWritePaths={} under [Service] with: systemctl edit miaf-agent.service",
            Excerpt::of(dir.display(), MAX_SHOWN)
        ));
    }
    if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let dir = Excerpt::of(dir.display(), MAX_SHOWN);
        return why.with_hint_text(format!("Free space on the file system of {dir}"));
    }
    if !is_denial(e) {
        return why;
    }
    let (me, argument) = (current_user(), user_argument(geteuid().as_raw()));
    let seen = place.ancestors().find_map(|seen| Some((seen, fs::symlink_metadata(seen).ok()?.uid())));
    let owner = seen.map(|(seen, uid)| {
        format!(": {} belongs to {}, and this process runs as {me}", shell_word(seen), user(uid))
    });
    let dir_word = shell_word(dir);
    let hint = match seen {
        Some((seen, _)) if !seen.starts_with(dir) => {
            format!("Make a directory for it: install -d -m 0711 -o {argument} {dir_word}")
        }
        _ if is_own => format!("Give it what is there: chown -R {argument} {dir_word}"),
        _ => format!("Give it this one directory: chown {argument} {dir_word}"),
    };
    Reason::from(format!("{why}{}", owner.unwrap_or_default())).with_hint_text(hint)
}

/// Whether owner, group and mode or a security module deny access; EPERM has other causes.
fn is_denial(e: &io::Error) -> bool {
    e.raw_os_error() == Some(Errno::EACCES as i32)
}

/// The user that this process runs as, by name if there is one.
pub(crate) fn current_user() -> String {
    user(geteuid().as_raw())
}

/// A user by name and number, or by number alone.
pub(crate) fn user(uid: u32) -> String {
    user_name(uid).map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

/// A user as chown(1) and runuser(1) take it.
pub(crate) fn user_argument(uid: u32) -> String {
    user_name(uid).unwrap_or_else(|| uid.to_string())
}

/// A path as a word of a shell command.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = Excerpt::of(path.display(), MAX_SHOWN);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.into_string()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn user_name(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

/// A group as chgrp(1) takes it.
pub(crate) fn group_argument(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

/// The mode of a file, if every user of this machine can read or change it, its directories
/// considered.
pub(crate) fn open_to_all(path: &Path) -> Option<u32> {
    let path = fs::canonicalize(path).ok()?;
    let mode = fs::metadata(&path).ok()?.mode();
    let is_way = |directory: &Path| fs::metadata(directory).is_ok_and(|metadata| metadata.mode() & 0o1 != 0);
    (mode & 0o6 != 0 && path.ancestors().skip(1).all(is_way)).then_some(mode & 0o777)
}

/// The credentials of a process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Owner and mode of a file, a directory or a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
}

impl From<&Metadata> for Node {
    fn from(metadata: &Metadata) -> Self {
        Self { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o7777 }
    }
}

impl Process {
    /// The credentials of this process.
    pub(crate) fn current() -> Self {
        let groups = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw);
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups: groups.collect() }
    }

    /// Whether the process is in a group.
    pub(crate) fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }

    /// Whether owner and mode allow the process the access in `bits`: `0o4` read, `0o2` write,
    /// `0o1` search.
    pub(crate) fn may(&self, node: Node, bits: u32) -> bool {
        let shift = match self.uid {
            0 => return true,
            uid if uid == node.uid => 6,
            _ if self.is_in(node.gid) => 3,
            _ => 0,
        };
        node.mode >> shift & bits == bits
    }
}

/// The file that denies access to a process, or the directory on its path that does.
#[derive(Clone, Debug)]
struct Denial {
    place: PathBuf,
    uid: u32,
    gid: u32,
    mode: u32,
    is_dir: bool,
    /// A directory that is to be passed through, not read.
    is_way: bool,
    process: Process,
}

impl Denial {
    /// `None`: it is not to be found any more.
    fn of(path: &Path) -> Option<Self> {
        let (place, found, is_way) = denying(path)?;
        Some(Self {
            uid: found.uid(),
            gid: found.gid(),
            mode: found.mode() & 0o7777,
            is_dir: found.is_dir(),
            is_way,
            process: Process::current(),
            place,
        })
    }

    /// The mode bits that are needed: to pass through a directory, to read a file, to read what is
    /// in a directory.
    fn bits(&self) -> u32 {
        match (self.is_way, self.is_dir) {
            (true, _) => 0o1,
            (false, true) => 0o5,
            (false, false) => 0o4,
        }
    }

    /// Whether owner and mode would allow the access.
    fn is_allowed_by_mode(&self) -> bool {
        self.process.may(Node { uid: self.uid, gid: self.gid, mode: self.mode }, self.bits())
    }

    fn is_hidden_home(&self) -> bool {
        self.is_dir && self.mode & 0o777 == 0 && HOMES.iter().any(|home| self.place.as_os_str() == *home)
    }

    fn command(&self) -> String {
        let word = shell_word(&self.place);
        let letter = match self.bits() {
            0o1 => "x",
            0o5 => "rx",
            _ => "r",
        };
        if self.process.uid == self.uid {
            format!("chmod u+{letter} {word}")
        } else if self.process.is_in(self.gid) {
            format!("chmod g+{letter} {word}")
        } else if self.is_dir {
            // To pass through shows nothing of what is in it. The one directory that is read has no
            // secrets: config.d.
            format!("chmod o+{letter} {word}")
        } else {
            let group = group_argument(self.process.gid);
            format!("chgrp {group} {word} && chmod g+r {word}")
        }
    }
}

impl Denial {
    fn reason(&self) -> Reason {
        let place = Excerpt::of(self.place.display(), MAX_SHOWN);
        let (owner, group) = (user_argument(self.uid), group_argument(self.gid));
        let why = format!(
            "permission denied: {place} belongs to {owner}:{group} with mode {:04o}, and this process runs as {}",
            self.mode,
            user(self.process.uid)
        );
        if self.is_hidden_home() {
            Reason::from(format!("{why}; it is hidden from the service (ProtectHome= in its unit)"))
                .with_hint_text("Put the file below /etc/miaf-agent")
        } else if self.is_allowed_by_mode() {
            Reason::from(format!("{why}, which would allow it")).with_hint_text(
                "Check whether the sandbox of the unit, SELinux, AppArmor or the file server forbids it",
            )
        } else {
            Reason::from(why).with_hint_text(format!("Let it in: {}", self.command()))
        }
    }
}

/// The last visible part of a path, and whether there is more behind it.
fn denying(path: &Path) -> Option<(PathBuf, Metadata, bool)> {
    let path = std::path::absolute(path).ok()?;
    let mut rest = names(&path);
    let mut at = PathBuf::from("/");
    let mut seen = fs::metadata(&at).ok()?;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            seen = fs::symlink_metadata(&at).ok()?;
            continue;
        }
        let next = at.join(&name);
        let Ok(found) = fs::symlink_metadata(&next) else { return Some((at, seen, true)) };
        if found.is_symlink() {
            links += 1;
            let target = fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
                seen = fs::metadata(&at).ok()?;
            }
            rest.extend(names(&target));
        } else {
            (at, seen) = (next, found);
        }
    }
    Some((at, seen, false))
}

/// The names in a path, the first one last.
pub(super) fn names(path: &Path) -> Vec<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::{Hint as _, assert_apart};
    use std::os::unix::fs::symlink;

    /// Message and hint, which are checked to be apart.
    fn in_all(reason: &Reason) -> String {
        assert_apart(reason);
        reason.with_hint().to_string()
    }

    const ME: u32 = 4_000_001;

    /// Denied to a process whose user does not exist here.
    fn denial(place: &str, (uid, gid): (u32, u32), mode: u32, is_dir: bool) -> Denial {
        let process = Process { uid: ME, gid: ME, groups: vec![ME + 1] };
        Denial { place: place.into(), uid, gid, mode, is_dir, is_way: is_dir, process }
    }

    #[test]
    fn denial_names_owner_mode_process_and_command() {
        let other = (4_000_008, 4_000_009);
        for (denial, command) in [
            (denial("/etc/key", other, 0o600, false), "chgrp 4000001 /etc/key && chmod g+r /etc/key"),
            (denial("/etc/key", (4_000_008, ME + 1), 0o600, false), "chmod g+r /etc/key"),
            (denial("/etc/a key", (ME, 0), 0o000, false), "chmod u+r '/etc/a key'"),
            (denial("/srv/keys", other, 0o700, true), "chmod o+x /srv/keys"),
            (denial("/srv/it's", (4_000_008, ME), 0o700, true), "chmod g+x '/srv/it'\\''s'"),
        ] {
            let text = in_all(&denial.reason());
            assert!(text.ends_with(&format!(". Let it in: {command}")), "{text}");
            let mode = format!("with mode {:04o}, and this process runs as uid 4000001", denial.mode);
            assert!(text.contains(&mode), "{text}");
        }
        let listed = Denial { is_way: false, ..denial("/etc/config.d", other, 0o700, true) };
        let text = in_all(&listed.reason());
        assert!(text.ends_with(". Let it in: chmod o+rx /etc/config.d"), "{text}");
        let text = denial("/etc/key", other, 0o600, false).reason().to_string();
        assert!(text.starts_with("permission denied: /etc/key belongs to 4000008:4000009 "), "{text}");
    }

    #[test]
    fn own_directory_is_given_or_made() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("state");
        let denied = io::Error::from(Errno::EACCES);
        let (owner, me) = (
            format!("{denied}: {} belongs to ", shell_word(directory.path())),
            user_argument(geteuid().as_raw()),
        );
        let text = in_all(&unusable_own(&dir, &dir.join("private/kek"), &denied));
        assert!(text.starts_with(&owner), "{text}");
        assert!(text.ends_with(&format!(": install -d -m 0711 -o {me} {}", shell_word(&dir))), "{text}");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("record"), "").unwrap();
        let record = dir.join("record");
        let text = in_all(&unusable_own(&dir, &record, &denied));
        assert!(text.starts_with(&format!("{denied}: {} belongs to ", shell_word(&record))), "{text}");
        assert!(text.ends_with(&format!(": chown -R {me} {}", shell_word(&dir))), "{text}");
        let text = in_all(&unusable_own(&dir, &record, &io::Error::from(Errno::EROFS)));
        assert!(text.contains(&format!("ReadWritePaths={} ", dir.display())), "{text}");
        for lacking in [Errno::ENOSPC, Errno::EDQUOT] {
            let full = unusable_own(&dir, &dir, &lacking.into());
            assert!(full.hint().is_some_and(|hint| hint.starts_with("Free space ")), "{full}");
        }
        assert_eq!(unusable_own(&dir, &dir, &io::Error::from(Errno::EIO)).hint(), None);
    }

    #[test]
    fn denial_names_no_command_where_the_mode_allows() {
        for (denial, says) in [
            (denial("/etc/key", (0, 0), 0o644, false), "SELinux"),
            (denial("/etc/key", (0, ME), 0o640, false), "SELinux"),
            (denial("/home", (0, 0), 0o000, true), "ProtectHome="),
        ] {
            let text = in_all(&denial.reason());
            assert!(text.contains(says) && !text.contains("chmod"), "{text}");
        }
        let mut of_root = denial("/net/key", (ME, ME), 0o600, false);
        of_root.process.uid = 0;
        assert!(in_all(&of_root.reason()).contains("file server"), "{of_root:?}");
    }

    #[test]
    fn denying_path_is_found_behind_links() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().canonicalize().unwrap();
        fs::create_dir_all(directory.join("real/deep")).unwrap();
        fs::write(directory.join("real/file"), "").unwrap();
        symlink("real/deep", directory.join("link")).unwrap();
        symlink("loop", directory.join("loop")).unwrap();
        let place = |path: &str| denying(&directory.join(path)).map(|(place, ..)| place);
        assert_eq!(place("link/../file"), Some(directory.join("real/file")));
        assert_eq!(place("link/none/file"), Some(directory.join("real/deep")), "the last that is seen");
        assert_eq!(place("loop"), None);
    }

    #[test]
    fn file_is_open_to_all_if_its_directories_are() {
        use std::os::unix::fs::PermissionsExt as _;
        let set_mode =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        fs::write(&file, "x").unwrap();
        for (directory_mode, mode, expected) in [
            (0o755, 0o644, Some(0o644)),
            (0o711, 0o602, Some(0o602)),
            (0o700, 0o644, None),
            (0o755, 0o640, None),
        ] {
            set_mode(directory.path(), directory_mode);
            set_mode(&file, mode);
            assert_eq!(open_to_all(&file), expected, "{directory_mode:o} {mode:o}");
        }
        assert_eq!(open_to_all(&directory.path().join("missing")), None);
    }

    #[test]
    fn shared_directory_is_not_given_with_its_content() {
        let denied = io::Error::from(Errno::EACCES);
        let directory = tempfile::tempdir().unwrap();
        let (there, missing) = (directory.path(), directory.path().join("of its own"));
        let me = user_argument(geteuid().as_raw());
        let shared = in_all(&unwritable(there, false, &denied));
        assert!(shared.ends_with(&format!(": chown {me} {}", shell_word(there))), "{shared}");
        let shared = in_all(&unwritable(&missing, false, &denied));
        let install = format!(": install -d -m 0711 -o {me} {}", shell_word(&missing));
        assert!(shared.ends_with(&install), "{shared}");
        let own = in_all(&unwritable(there, true, &denied));
        assert!(own.ends_with(&format!(": chown -R {me} {}", shell_word(there))), "{own}");
        assert_eq!(unwritable(there, false, &io::Error::other("full")), Reason::from("full"));
    }

    #[test]
    fn other_errors_keep_their_words() {
        let e = io::Error::other("it is\nodd");
        assert_eq!(unreadable(Path::new("/etc"), &e), Reason::from("it is odd"));
    }
}
