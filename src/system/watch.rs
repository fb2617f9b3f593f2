//! Folders in which something may have changed (inotify(7)).

use std::future::pending;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A watch on folders. Where there can be none, nothing is ever told: to be used beside a look from time to time.
#[derive(Debug)]
pub struct FolderWatch(Option<Watched>);

#[derive(Debug)]
struct Watched {
    inotify: Inotify,
    /// The same descriptor, in a form that can be waited for.
    ready: AsyncFd<OwnedFd>,
}

impl FolderWatch {
    /// From now on. In the place of a folder that does not exist, the nearest one above it that does is watched.
    pub fn on(folders: &[PathBuf]) -> Self {
        let watch = || -> io::Result<_> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            for folder in folders {
                let folder = folder.ancestors().find(|folder| folder.is_dir());
                let flags = AddWatchFlags::IN_CLOSE_WRITE
                    | AddWatchFlags::IN_MOVED_TO
                    | AddWatchFlags::IN_CREATE
                    | AddWatchFlags::IN_DELETE
                    | AddWatchFlags::IN_ATTRIB;
                folder.map(|folder| inotify.add_watch(folder, flags)).transpose()?;
            }
            // Its successor is unsafe for the sake of types that close or lend their descriptor: an OwnedFd does not.
            #[allow(deprecated)]
            let ready = AsyncFd::new(inotify.as_fd().try_clone_to_owned()?)?;
            Ok(Watched { inotify, ready })
        };
        Self(watch().inspect_err(|e| tracing::debug!(error = %e, "folders cannot be watched")).ok())
    }

    /// Something has changed. A new file counts when it has been written, and not when it is begun.
    pub async fn changed(&self) {
        let Some(Watched { inotify, ready }) = &self.0 else { return pending().await };
        while let Ok(mut readable) = ready.readable().await {
            for event in inotify.read_events().unwrap_or_default() {
                let begun = event.mask.contains(AddWatchFlags::IN_CREATE);
                if !begun || event.mask.contains(AddWatchFlags::IN_ISDIR) {
                    return;
                }
            }
            readable.clear_ready();
        }
        pending().await
    }
}
