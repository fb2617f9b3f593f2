//! The port: a thread that accepts connections, and outages.

use crate::error::{Context as _, Error, Result};
use std::future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(2);
const BACKLOG: u32 = 1024;
/// How long an address is waited for that is in use, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(20);

/// Commands of the handle to the running server.
enum Command {
    /// Closes the port and every connection, then confirms it.
    Stop(mpsc::SyncSender<()>),
    /// Opens the same port again.
    Resume(mpsc::SyncSender<Result<()>>),
    /// Ends the server.
    End,
}

/// A port that is bound, and whose connections are not served yet.
pub struct Bound {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Binds an address; port 0 takes any free one.
    ///
    /// # Errors
    ///
    /// The system's, with the address.
    pub fn new(listen: SocketAddr) -> Result<Self> {
        let socket = patiently(|| std::net::TcpListener::bind(listen)).context(listen)?;
        socket.set_nonblocking(true).context(listen)?;
        let address = socket.local_addr().context(listen)?;
        Ok(Self { socket, address })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Serves every connection with `connection`, on a thread of this name.
    ///
    /// # Errors
    ///
    /// Those of the runtime and the thread.
    pub fn serve<F>(
        self,
        name: &'static str,
        connection: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Result<Server>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (commands, receiver) = unbounded_channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
        let Self { socket, address } = self;
        let serve = async move || match TcpListener::from_std(socket) {
            Ok(listener) => run(listener, address, receiver, connection).await,
            Err(error) => eprintln!("{name}: {address}: {error}"),
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || runtime.block_on(serve()))
            .context("a thread")?;
        Ok(Server { port: address.port(), commands, thread: Some(thread) })
    }
}

/// A running server. Dropping it ends it.
pub struct Server {
    port: u16,
    commands: UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Begins an outage: the port is closed and every connection is cut on return.
    ///
    /// # Errors
    ///
    /// Where the server has ended.
    pub fn stop_listening(&self) -> Result<()> {
        self.request(Command::Stop)
    }

    /// Ends an outage: the same port accepts connections again on return.
    ///
    /// # Errors
    ///
    /// Where the server has ended, or the port cannot be opened.
    pub fn resume(&self) -> Result<()> {
        self.request(Command::Resume)?
    }

    fn request<T>(&self, command: impl FnOnce(mpsc::SyncSender<T>) -> Command) -> Result<T> {
        let (done, wait) = mpsc::sync_channel(1);
        self.commands.send(command(done)).map_err(|_| Error::new("the server has ended"))?;
        wait.recv().map_err(|_| Error::new("the server has ended"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves until the end is requested.
async fn run<F>(
    listener: TcpListener,
    address: SocketAddr,
    mut commands: UnboundedReceiver<Command>,
    connection: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut port = Port::Open(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = port.accept() => {
                if let Ok(stream) = stream {
                    connections.spawn(connection(stream));
                }
            }
            Some(_) = connections.join_next() => {}
            command = commands.recv() => match command {
                Some(Command::Stop(done)) => {
                    drop(std::mem::replace(&mut port, Port::Closed)); // the listener goes first
                    port = bound(address).map_or(Port::Closed, Port::Bound);
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Resume(done)) => {
                    let listener = match port {
                        Port::Open(listener) => Ok(listener),
                        Port::Bound(socket) => socket.listen(BACKLOG),
                        Port::Closed => bound(address).and_then(|socket| socket.listen(BACKLOG)),
                    };
                    let (again, result) = match listener {
                        Ok(listener) => (Port::Open(listener), Ok(())),
                        Err(error) => (Port::Closed, Err(error)),
                    };
                    port = again;
                    let _ = done.send(result.context(address));
                }
                Some(Command::End) | None => return,
            }
        }
    }
}

/// The server's port, in and out of an outage.
enum Port {
    Open(TcpListener),
    /// The port is bound and does not accept: no other process gets it meanwhile.
    Bound(TcpSocket),
    Closed,
}

impl Port {
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Open(listener) => listener.accept().await.map(|(stream, _)| stream),
            Self::Bound(_) | Self::Closed => future::pending().await,
        }
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    patiently(|| bind(address))
}

/// Binds the address of a server that has just ended. A process that another thread forks holds a copy
/// of its socket until it has begun to run its program.
fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The TLS handshake of a connection. Where it fails, `refused` is told why, and the client has time
/// to read it.
pub async fn accept(
    tls: &TlsAcceptor,
    stream: TcpStream,
    refused: impl FnOnce(String),
) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    match tls.accept(stream).into_fallible().await {
        Ok(stream) => Some(stream),
        Err((error, stream)) => {
            refused(error.to_string());
            linger(stream).await;
            None
        }
    }
}

/// After a refused handshake the client may have sent a request already. Closing with that unread
/// would reset the connection and lose the alert that says why.
async fn linger(mut stream: TcpStream) {
    let _ = time::timeout(LINGER, async {
        let mut sink = [0; 4096];
        let _ = stream.shutdown().await;
        while matches!(stream.read(&mut sink).await, Ok(1..)) {}
    })
    .await;
}

/// A connection that reports the application data it receives, and its end.
pub struct Counted<R: Fn(u64), D: Fn()> {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// Called with the number of bytes of each read.
    pub received: R,
    /// Called at the end.
    pub ended: D,
}

impl<R: Fn(u64), D: Fn()> Drop for Counted<R, D> {
    fn drop(&mut self) {
        (self.ended)();
    }
}

impl<R: Fn(u64) + Unpin, D: Fn() + Unpin> AsyncRead for Counted<R, D> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        let received = buffer.filled().len() - before;
        if received > 0 {
            (self.received)(received as u64);
        }
        done
    }
}

impl<R: Fn(u64) + Unpin, D: Fn() + Unpin> AsyncWrite for Counted<R, D> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_is_about_to_be_free_is_waited_for() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let freed = thread::spawn(move || {
            thread::sleep(10 * INTERVAL);
            drop(taken);
        });
        assert_eq!(Bound::new(address).unwrap().port(), address.port());
        freed.join().unwrap();
    }
}
