//! The bytes of one connection, read and written within a [`Budget`]; and whether the peer has
//! left.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::Version;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::server::budget::{Budget, Frames, OverBudget, cost_of_read};

/// First bytes of every connection in HTTP/2, and of no method of HTTP/1.1 (RFC 9113, section 3.4).
const HTTP_2: &[u8; 4] = b"PRI ";
/// Interval at which a peer that has closed its sending side is polled: epoll(7) does not report
/// when it closes the other.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// GOAWAY with ENHANCE_YOUR_CALM, up to the last stream (RFC 9113, sections 6.8 and 7).
const GOAWAY: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
const ENHANCE_YOUR_CALM: [u8; 4] = 11_u32.to_be_bytes();

/// A connected socket, shared by the HTTP connection and what waits for the peer to leave.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    is_over_budget: AtomicBool,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Arc<Self> {
        Arc::new(Self { stream, is_over_budget: AtomicBool::new(false) })
    }

    /// Whether the connection was ended because of its [`Budget`].
    pub(super) fn is_over_budget(&self) -> bool {
        self.is_over_budget.load(Ordering::Relaxed)
    }

    /// Waits until the peer has closed its sending side, or both: whatever it has sent before, and
    /// whether or not that was read.
    pub(super) async fn half_closed(&self) {
        // Of all interests this one is met by the end of the sending side and by nothing else:
        // there is no urgent data here.
        while self.stream.ready(Interest::PRIORITY).await.is_ok_and(|ready| !ready.is_read_closed()) {}
    }

    /// Waits until the peer has closed both directions. A peer that has closed its sending side may
    /// still be waiting for a response, until `is_done` says for a second that there is none to
    /// come.
    pub(super) async fn left(&self, is_done: impl Fn() -> bool) {
        self.half_closed().await;
        let mut polls_when_done = 0;
        while !self.is_hung_up() && polls_when_done < 4 {
            sleep(POLL_INTERVAL).await;
            polls_when_done = if is_done() { polls_when_done + 1 } else { 0 };
        }
    }

    /// Whether the peer has closed both directions (`POLLHUP` in poll(2)).
    fn is_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let _ = poll(&mut polled, PollTimeout::ZERO); // where it fails, nothing was found
        let [polled] = polled;
        polled.revents().is_some_and(|found| found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }

    async fn read_one(&self) -> io::Result<Option<u8>> {
        loop {
            self.stream.readable().await?;
            let mut byte = [0];
            match self.stream.try_read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(byte.first().copied()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Reads the first bytes of a connection, and returns which HTTP it is. (hyper-util can do so, too,
/// and brings a client of HTTP/2 with it: 80 KB.)
pub(super) async fn version_of(wire: &Arc<Wire>) -> io::Result<(Version, Metered)> {
    let (mut first, mut read) = ([0; HTTP_2.len()], 0);
    while let Some(next) = first.get_mut(read)
        && let Some(byte) = wire.read_one().await?
    {
        *next = byte;
        read += 1;
        if first.get(..read) != HTTP_2.get(..read) {
            break;
        }
    }
    let version = if first == *HTTP_2 { Version::HTTP_2 } else { Version::HTTP_11 };
    Ok((version, Metered::new(Arc::clone(wire), version, first, read)))
}

/// Stream of a connection for hyper, which accounts for what is read and written.
#[derive(Debug)]
pub(super) struct Metered {
    wire: Arc<Wire>,
    version: Version,
    /// Bytes that were read for [`version_of`], and are read again: those of `again` up to `until`.
    first: [u8; HTTP_2.len()],
    again: usize,
    until: usize,
    budget: Budget,
    received: Frames,
    sent: Frames,
    /// Whether anything was sent: SETTINGS come before anything else (RFC 9113, section 3.4).
    has_sent: bool,
    /// Highest number of a stream that the client has used.
    stream: u32,
}

impl Metered {
    fn new(wire: Arc<Wire>, version: Version, first: [u8; HTTP_2.len()], until: usize) -> Self {
        Self {
            wire,
            version,
            first,
            again: 0,
            until,
            budget: Budget::new(Instant::now()),
            received: Frames::of_client(),
            sent: Frames::of_server(),
            has_sent: false,
            stream: 0,
        }
    }

    /// Charges the budget for one read.
    fn charge(&mut self, read: &[u8]) -> Result<(), OverBudget> {
        let cost = if self.version == Version::HTTP_2 {
            let (mut cost, stream) = (0_u32, &mut self.stream);
            self.received.take(read, |frame| {
                cost = cost.saturating_add(frame.cost());
                *stream = frame.stream.max(*stream);
            });
            cost.max(1) // a frame may come in many pieces
        } else {
            cost_of_read(read.len())
        };
        self.budget.spend(cost, Instant::now())
    }

    /// Credits the budget with one write, of `written` bytes of these pieces.
    fn credit(&mut self, pieces: &[IoSlice<'_>], mut written: usize) {
        self.has_sent |= written > 0;
        let mut responses = u32::from(self.version != Version::HTTP_2 && written > 0);
        if self.version == Version::HTTP_2 {
            for piece in pieces {
                let piece = piece.get(..written).unwrap_or(piece);
                written -= piece.len();
                self.sent.take(piece, |frame| responses += u32::from(frame.is_response()));
            }
        }
        self.budget.earn(responses);
    }

    fn end(&self, why: OverBudget) -> io::Error {
        self.wire.is_over_budget.store(true, Ordering::Relaxed);
        if self.version == Version::HTTP_2 && self.has_sent && self.sent.is_at_boundary() {
            let goaway = [&GOAWAY[..], &self.stream.to_be_bytes(), &ENHANCE_YOUR_CALM].concat();
            let _ = self.wire.stream.try_write(&goaway); // a peer that does not read it will see the end
        }
        io::Error::other(why)
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let first = self.first;
        let again = first.get(self.again..self.until).unwrap_or_default();
        if !again.is_empty() {
            let again = again.get(..buffer.remaining()).unwrap_or(again);
            buffer.put_slice(again);
            self.again += again.len();
            return Poll::Ready(self.charge(again).map_err(|why| self.end(why)));
        }
        let before = buffer.filled().len();
        loop {
            ready!(self.wire.stream.poll_read_ready(cx))?;
            match self.wire.stream.try_read_buf(buffer) {
                // h2 would drop all streams. The owner of the connection learns of it by `left`.
                Ok(0) if self.version == Version::HTTP_2 => return Poll::Pending,
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        let read = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.charge(read).map_err(|why| self.end(why)))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.wire.is_over_budget() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())); // GOAWAY was the last
        }
        loop {
            ready!(self.wire.stream.poll_write_ready(cx))?;
            match self.wire.stream.try_write_vectored(pieces) {
                Ok(written) => {
                    self.credit(pieces, written);
                    return Poll::Ready(Ok(written));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends the response. What the peer sends is still read.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.wire.stream.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    async fn connection(first: &[u8]) -> (UnixStream, Arc<Wire>, Version, Metered) {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        peer.write_all(first).await.unwrap();
        let wire = Wire::new(stream);
        let (version, metered) = version_of(&wire).await.unwrap();
        (peer, wire, version, metered)
    }

    async fn read(from: &mut Metered) -> io::Result<Vec<u8>> {
        let mut part = [0; 64];
        let read = from.read(&mut part).await?;
        Ok(part[..read].to_vec())
    }

    #[tokio::test]
    async fn first_bytes_are_read_again() {
        for (first, expected) in
            [(&b"GET "[..], Version::HTTP_11), (b"POST", Version::HTTP_11), (b"PRI ", Version::HTTP_2)]
        {
            let (peer, _, version, mut metered) = connection(first).await;
            let mut all = Vec::new();
            while all.len() < first.len() {
                all.extend(read(&mut metered).await.unwrap());
            }
            assert_eq!((version, &all[..]), (expected, first));
            drop(peer);
        }
    }

    #[tokio::test]
    async fn reads_without_a_response_end_the_connection() {
        for first in [&b"GET "[..], b"PRI "] {
            let (mut peer, wire, _, mut metered) = connection(first).await;
            let mut reads = 0;
            let ended = loop {
                peer.write_all(b"\0").await.unwrap();
                match read(&mut metered).await {
                    Ok(_) => reads += 1,
                    Err(e) => break e,
                }
            };
            assert!((500..600).contains(&reads) && wire.is_over_budget(), "{reads}: {ended}");
            assert!(metered.write_all(b"x").await.is_err());
        }
    }

    #[tokio::test]
    async fn responses_pay_for_reads() {
        let (mut peer, wire, _, mut metered) = connection(b"GET ").await;
        for part in [&b"G"[..], b"ET "] {
            assert_eq!(read(&mut metered).await.unwrap(), part);
        }
        for _ in 0..5000 {
            for _ in 0..4 {
                peer.write_all(b"x").await.unwrap();
                assert_eq!(read(&mut metered).await.unwrap(), b"x");
            }
            metered.write_all(b"response").await.unwrap();
            peer.read_exact(&mut [0; 8]).await.unwrap();
        }
        assert!(!wire.is_over_budget());
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_only_stops_sending_has_not_left() {
        let long = Duration::from_secs(3600);
        let (mut peer, wire, _, _metered) = connection(b"GET / unread").await;
        assert!(timeout(long, wire.half_closed()).await.is_err());
        peer.shutdown().await.unwrap();
        wire.half_closed().await;
        assert!(timeout(long, wire.left(|| false)).await.is_err());
        wire.left(|| true).await;
        drop(peer);
        wire.left(|| false).await;
    }

    #[tokio::test]
    async fn end_of_a_peer_is_detected_behind_unread_bytes() {
        let (peer, wire, _, _metered) = connection(&[b'x'; 1000]).await;
        let left = tokio::spawn(async move { wire.left(|| false).await });
        tokio::task::yield_now().await;
        drop(peer);
        left.await.unwrap();
    }
}
