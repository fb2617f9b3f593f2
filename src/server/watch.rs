//! `GET /v1/watch`: the whole state at once, then again at every change, as server-sent events
//! (WHATWG HTML, section 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, unfold};
use hyper::body::{Bytes, Frame};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::publish::broadcast::StateChange;
use crate::server::peer::ShutdownSignal;

/// Keep-alive interval; detects dead subscribers.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);
/// A comment, which subscribers ignore.
const COMMENT: &[u8] = b":\n\n";

/// The events for one subscriber. One that reads slowly misses some, and never the last. The stream
/// ends when the socket is shut down.
pub(super) fn events(
    mut changes: watch::Receiver<Arc<StateChange>>,
    shutdown: ShutdownSignal,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    changes.mark_changed(); // the state at once
    unfold((changes, shutdown), |(mut changes, mut shutdown)| async move {
        let event = tokio::select! {
            biased;
            _ = shutdown.changed() => return None,
            changed = changes.changed() => {
                changed.ok()?;
                changes.borrow_and_update().event.clone()
            }
            () = sleep(KEEP_ALIVE) => Bytes::from_static(COMMENT),
        };
        Some((Ok(Frame::data(event)), (changes, shutdown)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ProviderKind;
    use crate::problem::{LastError, ProblemCode, Report};
    use crate::publish::Snapshot;
    use crate::publish::broadcast::Broadcaster;
    use futures_util::StreamExt as _;
    use miaf_spiffe::time::Timestamp;
    use std::pin::pin;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn blocked(detail: &str, at: Timestamp) -> Snapshot {
        let report = Report::new(ProblemCode::State, "It cannot be read", &detail);
        let error = LastError { report, at, permanent: true };
        Snapshot::blocked((error, Some(at.after(Duration::from_secs(5)))), ProviderKind::Tpm)
    }

    #[tokio::test(start_paused = true)]
    async fn state_comes_at_once_and_a_comment_after_the_interval() {
        let broadcaster = Broadcaster::new(blocked("disk", NOW), NOW);
        let (_open, shutdown) = watch::channel(());
        let mut stream =
            pin!(events(broadcaster.changes(), shutdown).map(|event| event.unwrap().into_data().unwrap()));
        let (start, first) = (tokio::time::Instant::now(), stream.next().await.unwrap());
        assert!(first.starts_with(b"event: state\nid: 1\ndata: {") && start.elapsed() < KEEP_ALIVE);
        assert_eq!(stream.next().await.unwrap(), COMMENT);
        assert!(start.elapsed() >= KEEP_ALIVE);
    }
}
