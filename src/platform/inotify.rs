//! Changes of a file and of the files in a directory: reported by the kernel (inotify(7)), and
//! found by comparison where it reports nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::future::pending;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::access::{current_user, names};
use miaf_spiffe::text::Excerpt;

/// Interval of comparisons where the kernel reports nothing.
const POLL: Duration = Duration::from_secs(3);
/// Interval of comparisons in addition to what the kernel reports: a file system of another
/// machine, something mounted over the directory, and a directory far above that was moved escape
/// it.
const RARE_POLL: Duration = Duration::from_secs(300);
/// A file that was begun, and of which nothing more is heard, is complete when nothing has changed
/// for so long: one that was written under no name (open(2), `O_TMPFILE`), or under another that is
/// gone, is whole when it appears.
const BEGUN: Duration = Duration::from_secs(3);
/// Limit of files in the directory that are compared, and followed where they are links.
const MAX_ENTRIES: usize = 1024;
/// Limit of symbolic links, as the kernel has it in a path (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Limit of characters of a path in a message.
const MAX_SHOWN: usize = 300;

/// A watch on a file and on the files of one directory, none of which need exist. Symbolic links
/// are followed: what a link leads to counts, and where the link leads.
#[derive(Debug)]
pub(crate) struct FileWatch {
    file: PathBuf,
    directory: Option<PathBuf>,
    /// `None`: the kernel refuses it.
    inotify: Option<Watched>,
    seen: Seen,
    poll_at: Instant,
    /// The files as they were when the last one was begun, until something else is known of it.
    begun: Option<Seen>,
    /// The last error that was logged.
    logged_error: Option<Errno>,
}

impl FileWatch {
    /// Creates a watch, which reports changes from now on.
    pub(crate) fn on(file: PathBuf, directory: PathBuf) -> Self {
        Self::new(file, Some(directory))
    }

    /// Creates a watch on a file alone.
    pub(crate) fn on_file(file: PathBuf) -> Self {
        Self::new(file, None)
    }

    fn new(file: PathBuf, directory: Option<PathBuf>) -> Self {
        let mut watch = Self {
            file,
            directory,
            inotify: None,
            seen: Seen::default(),
            poll_at: Instant::now(),
            begun: None,
            logged_error: None,
        };
        watch.renew();
        watch
    }

    /// Starts again: to be called before the files are read, so that no change falls between
    /// the two.
    pub(crate) fn renew(&mut self) {
        self.inotify = self.watch_by_inotify();
        self.seen = Seen::now(&self.file, self.directory.as_deref());
        self.begun = None;
        self.poll_later();
    }

    /// Waits until something has changed. A new file counts when it has been written, and not when
    /// it is begun. May be dropped, and called again.
    pub(crate) async fn changed(&mut self) {
        loop {
            let reported = async {
                match &self.inotify {
                    Some(watched) => watched.next_event().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                found = reported => match found {
                    Event::Changed => return,
                    Event::Begun => {
                        self.wait_for_completion(Seen::now(&self.file, self.directory.as_deref()));
                        continue;
                    }
                },
                () = sleep_until(self.poll_at) => {}
            }
            let now = Seen::now(&self.file, self.directory.as_deref());
            if self.begun.take().is_some_and(|begun| begun != now) {
                self.wait_for_completion(now);
                continue;
            }
            if now != self.seen {
                return;
            }
            if self.inotify.is_none() {
                self.renew(); // it may be available again
            }
            self.poll_later();
        }
    }

    fn wait_for_completion(&mut self, begun: Seen) {
        self.begun = Some(begun);
        self.poll_at = Instant::now() + BEGUN;
    }

    fn poll_later(&mut self) {
        self.poll_at = Instant::now() + if self.inotify.is_some() { RARE_POLL } else { POLL };
    }

    fn watch_by_inotify(&mut self) -> Option<Watched> {
        match Watched::new(&WatchedNames::of(&self.file, self.directory.as_deref())) {
            Ok(watched) => {
                if self.logged_error.take().is_some() {
                    tracing::info!(file = %Excerpt::of(self.file.display(), MAX_SHOWN), "inotify works again");
                }
                Some(watched)
            }
            Err(refusal) => {
                // What has just gone is checked again at the next comparison.
                let is_passing = matches!(refusal.errno, Errno::ENOENT | Errno::ENOTDIR);
                if !is_passing && self.logged_error.replace(refusal.errno) != Some(refusal.errno) {
                    tracing::warn!(
                        "inotify is not available: {}. The file {} is compared every {} s instead",
                        refusal.explanation(),
                        Excerpt::of(self.file.display(), MAX_SHOWN),
                        POLL.as_secs()
                    );
                }
                None
            }
        }
    }
}

/// Why inotify cannot be used, and for which directory.
#[derive(Debug)]
struct InotifyError {
    directory: Option<PathBuf>,
    errno: Errno,
}

impl InotifyError {
    fn explanation(&self) -> String {
        let raise = |what: &str, name: &str| {
            format!("the limit of {what} is reached. Raise it: sysctl fs.inotify.{name} (sysctl.d(5))")
        };
        match (self.errno, &self.directory) {
            (Errno::EMFILE, None) => {
                raise("inotify instances of this user, or of open files,", "max_user_instances")
            }
            (Errno::ENOSPC, _) => raise("inotify watches of this user", "max_user_watches"),
            (Errno::EACCES, Some(directory)) => {
                let (place, me) = (Excerpt::of(directory.display(), MAX_SHOWN), current_user());
                format!("inotify needs to list {place}, which this process ({me}) may not")
            }
            (errno, _) => format!("the kernel refuses inotify ({})", errno.desc()),
        }
    }
}

/// Which names count in a directory; `None`: all of them.
type Names = Option<BTreeSet<OsString>>;

/// The directories in which a change can be one of the file or of the directory, and the names that
/// count there.
#[derive(Debug, Default, PartialEq, Eq)]
struct WatchedNames(BTreeMap<PathBuf, Names>);

impl WatchedNames {
    fn of(file: &Path, directory: Option<&Path>) -> Self {
        let mut places = Self::default();
        places.add_path(file);
        let directory = directory.and_then(|directory| places.add_path(directory));
        if let Some(directory) = directory.filter(|found| found.is_dir()) {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten().take(MAX_ENTRIES);
            for link in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink())) {
                places.add_path(&link.path());
            }
            places.0.insert(directory, None);
        }
        places
    }

    fn add(&mut self, directory: &Path, name: &OsStr) {
        if let Some(names) = self.0.entry(directory.to_owned()).or_insert_with(|| Some(BTreeSet::new())) {
            names.insert(name.to_owned());
        }
    }

    /// The directory that a path ends in, those of the links on the way, or the last one that
    /// exists. Returns where the path leads.
    fn add_path(&mut self, path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let mut rest = names(&path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let found = fs::symlink_metadata(&next);
            let is_link = found.as_ref().is_ok_and(Metadata::is_symlink);
            if found.is_err() || is_link || rest.is_empty() {
                self.add(&at, &name);
            }
            found.ok()?;
            if is_link {
                links += 1;
                let target = fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS)?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                rest.extend(names(&target));
            } else {
                at = next;
            }
        }
        Some(at)
    }
}

#[derive(Debug)]
struct Watched {
    inotify: Inotify,
    /// The same descriptor, in a form that can be waited for.
    ready: AsyncFd<OwnedFd>,
    directories: HashMap<WatchDescriptor, (PathBuf, Names)>,
}

impl Watched {
    fn new(places: &WatchedNames) -> Result<Self, InotifyError> {
        let of_all = |errno| InotifyError { directory: None, errno };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(of_all)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut directories = HashMap::new();
        for (directory, names) in &places.0 {
            let of_one = |errno| InotifyError { directory: Some(directory.clone()), errno };
            let watch = inotify.add_watch(directory, flags).map_err(of_one)?;
            directories.insert(watch, (directory.clone(), names.clone()));
        }
        let descriptor = inotify.as_fd().try_clone_to_owned();
        // Its successor is unsafe for the sake of types that close or lend their descriptor: an
        // OwnedFd does not.
        #[allow(deprecated)]
        let ready = descriptor.and_then(AsyncFd::new);
        let ready =
            ready.map_err(|e| of_all(e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)))?;
        Ok(Self { inotify, ready, directories })
    }

    async fn next_event(&self) -> Event {
        while let Ok(mut readable) = self.ready.readable().await {
            let mut found = None;
            while found != Some(Event::Changed)
                && let Ok(events) = self.inotify.read_events()
            {
                found = events.iter().filter_map(|event| self.event_of(event)).chain(found).max();
            }
            match found {
                Some(found) => return found,
                None => readable.clear_ready(),
            }
        }
        pending().await
    }

    /// The event, if it concerns the watched names.
    fn event_of(&self, event: &InotifyEvent) -> Option<Event> {
        let (Some(name), Some((directory, names))) = (&event.name, self.directories.get(&event.wd)) else {
            return Some(Event::Changed); // the directory itself is another one, or events were lost
        };
        if names.as_ref().is_some_and(|names| !names.contains(name)) {
            return None;
        }
        let is_created = event.mask.contains(AddWatchFlags::IN_CREATE);
        Some(if is_created && is_begun(&directory.join(name)) { Event::Begun } else { Event::Changed })
    }
}

/// An event of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// There is a new file that may be written to.
    Begun,
    Changed,
}

/// Whether a new file may still be written to. A link, a second name of a file, and a directory are
/// whole.
fn is_begun(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|new| new.is_file() && new.nlink() == 1)
}

/// The files as they were at one moment, as far as that is seen without reading them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen(BTreeMap<OsString, Option<Stamp>>);

/// Another file, or another content of the same.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    mode: (u32, u32, u32),
    changed: (i64, i64),
}

impl Seen {
    fn now(file: &Path, directory: Option<&Path>) -> Self {
        let stamp = |path: &Path| fs::metadata(path).ok().as_ref().map(Stamp::of);
        let entries = directory.and_then(|directory| fs::read_dir(directory).ok());
        let entries = entries.into_iter().flatten().flatten().take(MAX_ENTRIES);
        let all = entries.map(|entry| (entry.file_name(), stamp(&entry.path())));
        // A name in the directory has no slash in it.
        let own = [(file.into(), stamp(file)), ("/".into(), directory.and_then(stamp))];
        Self(all.chain(own).collect())
    }
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self {
            file: (found.dev(), found.ino()),
            size: found.size(),
            mode: (found.mode(), found.uid(), found.gid()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn watch(directory: &Path) -> FileWatch {
        FileWatch::on(directory.join("conf/config.toml"), directory.join("conf/config.d"))
    }

    /// The kernel tells nothing, and the next comparison is due.
    fn refused(directory: &Path) -> FileWatch {
        FileWatch { inotify: None, poll_at: Instant::now(), ..watch(directory) }
    }

    async fn reports(watch: &mut FileWatch) -> bool {
        timeout(PATIENCE, watch.changed()).await.is_ok()
    }

    async fn is_silent(watch: &mut FileWatch) -> bool {
        timeout(Duration::from_millis(100), watch.changed()).await.is_err()
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        (directory, path)
    }

    #[tokio::test]
    async fn watch_reports_changes_of_its_files_only() {
        let (_directory, dir) = directory();
        let mut watch = watch(&dir);
        fs::write(dir.join("other"), "").unwrap();
        assert!(is_silent(&mut watch).await, "next to the missing directory");
        fs::create_dir(dir.join("conf")).unwrap();
        assert!(reports(&mut watch).await, "its directory");
        watch.renew();
        fs::write(dir.join("conf/ca.pem"), "").unwrap();
        assert!(is_silent(&mut watch).await);
        fs::write(dir.join("conf/config.toml"), "").unwrap();
        assert!(reports(&mut watch).await, "the file");
        watch.renew();
        fs::create_dir(dir.join("conf/config.d")).unwrap();
        assert!(reports(&mut watch).await, "the directory of drop-ins");
        watch.renew();
        fs::write(dir.join("conf/config.d/a.toml"), "").unwrap();
        assert!(reports(&mut watch).await, "a drop-in");
        watch.renew();
        fs::rename(dir.join("conf/config.d/a.toml"), dir.join("conf/config.d/a.off")).unwrap();
        assert!(reports(&mut watch).await, "a drop-in that is taken away");
    }

    #[tokio::test(start_paused = true)]
    async fn watch_waits_for_a_begun_file_and_not_for_a_link() {
        let (_directory, dir) = directory();
        fs::create_dir(dir.join("conf")).unwrap();
        let mut watch = watch(&dir);
        let begun = fs::File::create(dir.join("conf/config.toml")).unwrap();
        assert!(is_silent(&mut watch).await);
        drop(begun);
        assert!(reports(&mut watch).await);
        fs::remove_file(dir.join("conf/config.toml")).unwrap();
        for make in [symlink::<PathBuf, PathBuf>, fs::hard_link] {
            watch.renew();
            fs::write(dir.join("another"), "").unwrap();
            make(dir.join("another"), dir.join("conf/config.toml")).unwrap();
            assert!(reports(&mut watch).await);
            fs::remove_file(dir.join("conf/config.toml")).unwrap();
        }
    }

    /// Such a file only appears, and looks like one that was begun.
    #[tokio::test]
    async fn watch_reports_a_file_that_appears_whole() {
        use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
        use nix::sys::stat::Mode;
        let (_directory, dir) = directory();
        let conf = dir.join("conf");
        fs::create_dir_all(conf.join("config.d")).unwrap();
        let moved = |to: &Path| {
            fs::write(dir.join("another"), "").unwrap();
            fs::hard_link(dir.join("another"), to).unwrap();
            fs::remove_file(dir.join("another")).unwrap();
        };
        let unnamed = |to: &Path| {
            let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            // Not every file system has it.
            let Ok(file) = open(&dir, flags, Mode::S_IRUSR) else { return moved(to) };
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            nix::unistd::linkat(AT_FDCWD, path.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW).unwrap();
        };
        for appear in [&moved as &dyn Fn(&Path), &unnamed] {
            for file in ["config.toml", "config.d/a.toml"] {
                let mut watch = watch(&dir);
                appear(&conf.join(file));
                assert!(reports(&mut watch).await, "{file}");
                fs::remove_file(conf.join(file)).unwrap();
            }
        }
    }

    /// As long as it grows; here at every comparison.
    #[tokio::test(start_paused = true)]
    async fn watch_waits_while_a_file_is_written() {
        use std::io::Write as _;
        let (_directory, dir) = directory();
        fs::create_dir(dir.join("conf")).unwrap();
        let mut watch = watch(&dir);
        let mut begun = fs::File::create(dir.join("conf/config.toml")).unwrap();
        for _ in 0..5 {
            assert!(timeout(BEGUN * 3 / 4, watch.changed()).await.is_err());
            begun.write_all(b"#").unwrap();
        }
        drop(begun);
        assert!(timeout(BEGUN / 2, watch.changed()).await.is_ok());
    }

    #[tokio::test]
    async fn watch_follows_a_directory_that_goes_and_returns() {
        let (_directory, dir) = directory();
        let conf = dir.join("conf");
        fs::create_dir(&conf).unwrap();
        let mut watch = watch(&dir);
        let moved = dir.join("moved");
        for go in [&|| fs::rename(&conf, &moved) as _, &|| fs::remove_dir(&conf) as _]
            as [&dyn Fn() -> std::io::Result<()>; 2]
        {
            go().unwrap();
            assert!(reports(&mut watch).await, "it is gone");
            watch.renew();
            fs::create_dir(&conf).unwrap();
            assert!(reports(&mut watch).await, "it is there again");
            watch.renew();
            fs::write(conf.join("config.toml"), "").unwrap();
            assert!(reports(&mut watch).await, "what is in it counts");
            fs::remove_file(conf.join("config.toml")).unwrap();
            watch.renew();
        }
    }

    /// As a mounted ConfigMap and other tools do it: a link to a directory is put in the place of
    /// another.
    #[tokio::test]
    async fn watch_follows_a_swapped_link_on_the_path() {
        let (_directory, dir) = directory();
        for version in ["v1", "v2"] {
            fs::create_dir_all(dir.join(version).join("config.d")).unwrap();
            fs::write(dir.join(version).join("config.toml"), version).unwrap();
        }
        let swap = |to: &str| {
            symlink(to, dir.join("new")).unwrap();
            fs::rename(dir.join("new"), dir.join("data")).unwrap();
        };
        swap("v1");
        fs::create_dir(dir.join("conf")).unwrap();
        symlink("../data/config.toml", dir.join("conf/config.toml")).unwrap();
        symlink("../data/config.d", dir.join("conf/config.d")).unwrap();
        let mut watched = watch(&dir);
        let mut compared = refused(&dir);
        swap("v2");
        assert!(reports(&mut watched).await && reports(&mut compared).await, "the link");
        watched.renew();
        fs::write(dir.join("v2/config.toml"), "changed").unwrap();
        assert!(reports(&mut watched).await, "the file that it leads to now");
        watched.renew();
        fs::write(dir.join("v1/a.toml"), "").unwrap();
        symlink("../../v1/a.toml", dir.join("v2/config.d/a.toml")).unwrap();
        assert!(reports(&mut watched).await, "a drop-in that is a link");
        watched.renew();
        fs::write(dir.join("v1/a.toml"), "changed").unwrap();
        assert!(reports(&mut watched).await, "the file that it leads to");
    }

    #[tokio::test]
    async fn watch_compares_files_without_inotify() {
        let (_directory, dir) = directory();
        let steps: [(&str, &dyn Fn()); 4] = [
            ("the file", &|| fs::write(dir.join("conf/config.toml"), "").unwrap()),
            ("another content", &|| fs::write(dir.join("conf/config.toml"), "more").unwrap()),
            ("the directory of drop-ins", &|| fs::create_dir(dir.join("conf/config.d")).unwrap()),
            ("a drop-in", &|| fs::write(dir.join("conf/config.d/a.toml"), "").unwrap()),
        ];
        fs::create_dir(dir.join("conf")).unwrap();
        for (what, step) in steps {
            let mut watch = refused(&dir);
            step();
            assert!(reports(&mut watch).await, "{what}");
            assert!(watch.inotify.is_none(), "{what}: it was compared");
        }
    }

    #[test]
    fn inotify_refusal_names_the_limit_to_raise() {
        let says = |directory: Option<&str>, errno| {
            InotifyError { directory: directory.map(PathBuf::from), errno }.explanation()
        };
        assert!(says(None, Errno::EMFILE).contains("sysctl fs.inotify.max_user_instances"));
        assert!(says(Some("/etc"), Errno::ENOSPC).contains("sysctl fs.inotify.max_user_watches"));
        assert!(says(Some("/etc"), Errno::EACCES).contains("list /etc"));
        assert!(says(None, Errno::ENOSYS).contains("Function not implemented"));
    }

    #[tokio::test(start_paused = true)]
    async fn watch_retries_inotify_and_then_compares_rarely() {
        let (_directory, dir) = directory();
        let mut watch = refused(&dir);
        assert!(timeout(RARE_POLL * 3, watch.changed()).await.is_err());
        assert!(watch.inotify.is_some());
        assert!(watch.poll_at > Instant::now() && watch.poll_at <= Instant::now() + RARE_POLL);
    }
}
