//! `GET /v1/watch`: the whole state at once, then again at every change, as server-sent events (WHATWG HTML, section 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use hyper::body::{Bytes, Frame};
use tokio::sync::watch;
use tokio::time::sleep;

use super::peer::Closing;
use crate::publish::broadcast::Change;

/// After so long without a change something is said all the same: by that a watcher who has left without a word is found out.
const QUIET: Duration = Duration::from_secs(5 * 60);
/// What watchers pass over.
const COMMENT: &[u8] = b":\n\n";

/// The events for one who watches. Whoever reads slowly misses some, and never the last. Ends when the socket is closed.
pub(super) fn events(
    mut changes: watch::Receiver<Arc<Change>>,
    closing: Closing,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    changes.mark_changed(); // the state at once
    unfold((changes, closing), |(mut changes, mut closing)| async move {
        let told = tokio::select! {
            biased;
            _ = closing.changed() => return None,
            there_is_one = changes.changed() => {
                there_is_one.ok()?;
                changes.borrow_and_update().event.clone()
            }
            () = sleep(QUIET) => Bytes::from_static(COMMENT),
        };
        Some((Ok(Frame::data(told)), (changes, closing)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{LastError, Report};
    use crate::publish::Snapshot;
    use crate::publish::broadcast::Publication;
    use crate::time::Timestamp;
    use futures_util::StreamExt as _;
    use std::pin::pin;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn blocked(detail: &str, at: Timestamp) -> Snapshot {
        let report = Report::of_agent("state", "It cannot be read", &detail);
        Snapshot::blocked(LastError { report, at, permanent: true }, Some(at.after(Duration::from_secs(5))))
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_comes_at_once_and_a_comment_after_a_quiet_while() {
        let publication = Publication::new(blocked("disk", NOW), NOW);
        let (_open, closing) = watch::channel(());
        let mut told =
            pin!(events(publication.changes(), closing).map(|told| told.unwrap().into_data().unwrap()));
        let (begun, first) = (tokio::time::Instant::now(), told.next().await.unwrap());
        assert!(first.starts_with(b"event: state\nid: 1\ndata: {") && begun.elapsed() < QUIET);
        assert_eq!(told.next().await.unwrap(), COMMENT);
        assert!(begun.elapsed() >= QUIET);
    }
}
