//! A TLS connection that ends when its reasons do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, Error as TlsError, Stream};

use miaf_spiffe::peer::PeerSvid;
use miaf_spiffe::text::Excerpt;

use super::ConnectError;
use super::connector::now;
use super::error::refusal;
use super::life::{Ended, Life};
use crate::Client;

/// Interval at which the agent is polled for a renewal or another trust bundle, while the
/// connection is used or waited on.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of such a poll: an agent that restarts ends no connection.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// Shortest timeout of a socket; zero would be none.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// A connection to an authenticated peer. Reads and writes fail with
/// [`ConnectionAborted`](ErrorKind::ConnectionAborted) once it has ended: after own renewal, at the
/// expiry of the peer's SVID or the own, after a change of the trust bundle, after an hour
/// (margo-now N12). [`ended`](Self::ended) says why. Open another one then; what was sent on this
/// one and not responded to may have to be sent again.
///
/// The agent's state is polled every 5 seconds while the connection is used; call
/// [`is_current`](Self::is_current) before the next request on one that was idle.
#[derive(Debug)]
pub struct Connection {
    tls: ClientConnection,
    tcp: TcpStream,
    peer: PeerSvid,
    life: Life,
    agent: Client,
    limit: Duration,
    opened: Instant,
    next_check: Instant,
    ended: Option<Ended>,
}

impl Connection {
    pub(super) fn new(
        tls: ClientConnection,
        tcp: TcpStream,
        peer: PeerSvid,
        life: Life,
        agent: Client,
        limit: Duration,
    ) -> Self {
        let opened = Instant::now();
        let agent = agent.with_limit(CHECK_LIMIT);
        Self { tls, tcp, peer, life, agent, limit, opened, next_check: opened + CHECK_INTERVAL, ended: None }
    }

    /// The peer, by its SVID.
    pub fn peer(&self) -> &PeerSvid {
        &self.peer
    }

    /// Why the connection was ended. `None`: it was not, on this side.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Whether a further request may be sent on it. Polls the agent.
    pub fn is_current(&mut self) -> bool {
        self.next_check = Instant::now();
        self.check().is_ok()
    }

    /// Ends the connection if it is time.
    fn check(&mut self) -> io::Result<()> {
        if self.ended.is_none() {
            self.ended = self.life.end_at(now(), self.opened.elapsed()).or_else(|| self.poll_agent());
            if self.ended.is_some() {
                self.close();
            }
        }
        match self.ended {
            Some(why) => Err(io::Error::new(ErrorKind::ConnectionAborted, why)),
            None => Ok(()),
        }
    }

    fn poll_agent(&mut self) -> Option<Ended> {
        if Instant::now() < self.next_check {
            return None;
        }
        let state = self.agent.state();
        self.next_check = Instant::now() + CHECK_INTERVAL;
        self.life.end_in(&state.ok()?)
    }

    fn close(&mut self) {
        self.tls.send_close_notify();
        // It may be that the peer reads nothing any more.
        let _ = self.tcp.set_nonblocking(true);
        while self.tls.wants_write() && self.tls.write_tls(&mut self.tcp).is_ok_and(|length| length > 0) {}
        let _ = self.tcp.shutdown(Shutdown::Both);
    }

    /// The alert that the peer has sent before it closed the connection, if a write has noticed the
    /// closing first.
    fn last_word(&mut self, e: io::Error) -> io::Error {
        if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
            return e;
        }
        let _ = self.tls.read_tls(&mut self.tcp); // what is there to be read
        match self.tls.process_new_packets() {
            Err(alert) => io::Error::new(ErrorKind::InvalidData, alert),
            Ok(_) => e,
        }
    }

    /// Does I/O until it has a result, the time limit is reached, or the connection ends.
    fn until_done<T>(
        &mut self,
        mut io: impl FnMut(&mut Stream<'_, ClientConnection, TcpStream>) -> io::Result<T>,
    ) -> io::Result<T> {
        let until = Instant::now() + self.limit;
        loop {
            self.check()?;
            let wait = self.next_check.min(until).saturating_duration_since(Instant::now()).max(MIN_TIMEOUT);
            self.tcp.set_read_timeout(Some(wait))?;
            self.tcp.set_write_timeout(Some(wait))?;
            match io(&mut Stream::new(&mut self.tls, &mut self.tcp)) {
                Err(e) if is_timeout(&e) && Instant::now() < until => {}
                Err(e) if is_timeout(&e) => return Err(ErrorKind::TimedOut.into()),
                Err(e) => return Err(in_words(self.last_word(e))),
                done => return done,
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.until_done(|stream| stream.read(buffer))
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_done(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_done(|stream| stream.flush())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.close();
        }
    }
}

/// Completes the handshake within the time that is left of `limit`.
pub(super) fn handshake(
    tls: &mut ClientConnection,
    tcp: &mut TcpStream,
    until: Instant,
    limit: Duration,
    address: &Excerpt,
) -> Result<(), ConnectError> {
    let mut timed = Timed { tcp, until };
    while tls.is_handshaking() || tls.wants_write() {
        if let Err(e) = tls.complete_io(&mut timed) {
            return Err(match tls_error(&e) {
                Some(error) => ConnectError::of_handshake(address.clone(), error.clone()),
                None if is_timeout(&e) => ConnectError::Silent(address.clone(), limit),
                None => ConnectError::Unreachable(address.clone(), e),
            });
        }
    }
    Ok(())
}

/// A stream with a moment until which it is used: a peer that sends a byte at a time gains nothing.
struct Timed<'a> {
    tcp: &'a mut TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left.max(MIN_TIMEOUT))) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        self.tcp.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(self.left()?)?;
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The error of rustls in an error of its streams.
fn tls_error(e: &io::Error) -> Option<&TlsError> {
    e.get_ref()?.downcast_ref()
}

/// An error of a read or write, with words where the peer refuses this identity: in TLS 1.3 that
/// arrives in place of the first response.
fn in_words(e: io::Error) -> io::Error {
    match tls_error(&e).and_then(refusal) {
        Some(alert) => {
            let what = format!("the peer refuses this identity's certificate (alert {alert:?})");
            io::Error::new(ErrorKind::PermissionDenied, what)
        }
        None => e,
    }
}
