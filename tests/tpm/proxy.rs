//! A TPM with other responses to some commands: a proxy before swtpm's two ports, for its commands
//! and for its control channel.

use std::io::{Read as _, Result, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::support::ports;
use super::support::swtpm::Swtpm;

/// The TPM's response to a request for `TPM2_PT_NV_BUFFER_MAX`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// This response code.
    Error(u32),
    /// This many bytes.
    Is(u32),
}

/// How the TPM differs from swtpm.
struct Faults {
    reported: Limit,
    /// `TPM2_NV_Read` gives out no more than this at a time…
    most: u16,
    /// …and responds to a longer one with this code; or with a part of it, if `None`.
    refusal: Option<u32>,
    reads: AtomicUsize,
}

pub(crate) struct Proxy {
    port: u16,
    faults: Arc<Faults>,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) fn start(tpm: &Swtpm, reported: Limit, most: u16, refusal: Option<u32>) -> Self {
        let port_of = |tcti: &str| tcti.rsplit_once('=').unwrap().1.parse::<u16>().unwrap();
        let behind = port_of(&tpm.tcti());
        let faults = Arc::new(Faults { reported, most, refusal, reads: AtomicUsize::default() });
        let stopped = Arc::new(AtomicBool::default());
        let (port, commands, control) = (0..50)
            .find_map(|_| {
                let port = ports::free_in_a_row(2);
                let commands = TcpListener::bind(("127.0.0.1", port)).ok()?;
                Some((port, commands, TcpListener::bind(("127.0.0.1", port + 1)).ok()?))
            })
            .expect("two free ports");
        let serve = |listener: TcpListener, to: u16, faults: Option<Arc<Faults>>| {
            let stopped = Arc::clone(&stopped);
            thread::spawn(move || {
                for client in listener.incoming() {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let faults = faults.clone();
                    thread::spawn(move || {
                        relay(client?, TcpStream::connect(("127.0.0.1", to))?, faults.as_deref())
                    });
                }
            });
        };
        serve(commands, behind, Some(Arc::clone(&faults)));
        serve(control, behind + 1, None);
        Self { port, faults, stopped }
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// How many `TPM2_NV_Read` it has seen.
    pub(crate) fn reads(&self) -> usize {
        self.faults.reads.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for port in [self.port, self.port + 1] {
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
    }
}

fn relay(mut client: TcpStream, mut tpm: TcpStream, faults: Option<&Faults>) -> Result<()> {
    let Some(faults) = faults else {
        let (mut from, mut to) = (client.try_clone()?, tpm.try_clone()?);
        let there = thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            to.shutdown(Shutdown::Write)
        });
        let _ = std::io::copy(&mut tpm, &mut client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = there.join();
        return Ok(());
    };
    while let Ok(mut command) = message(&mut client) {
        let response = match faults.response(&mut command) {
            Some(response) => response,
            None => {
                tpm.write_all(&command)?;
                faults.change(&command, message(&mut tpm)?)
            }
        };
        client.write_all(&response)?;
    }
    Ok(())
}

/// One command or response: a tag, its length, a code, and the rest.
fn message(from: &mut TcpStream) -> Result<Vec<u8>> {
    let mut message = vec![0; 10];
    from.read_exact(&mut message)?;
    let length = number(&message[2..6]) as usize;
    message.resize(length, 0);
    from.read_exact(&mut message[10..])?;
    Ok(message)
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

const GET_CAPABILITY: u32 = 0x17a;
const NV_READ: u32 = 0x14e;
const NV_BUFFER_MAX: u32 = 0x12c;

impl Faults {
    /// A response without the TPM. Makes the command smaller, if the response is to be partial.
    fn response(&self, command: &mut [u8]) -> Option<Vec<u8>> {
        let code = match (number(&command[6..10]), self.reported) {
            (GET_CAPABILITY, Limit::Error(code)) if number(&command[14..18]) == NV_BUFFER_MAX => code,
            (NV_READ, _) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                let at = command.len() - 4;
                let wanted = u16::from_be_bytes([command[at], command[at + 1]]);
                match self.refusal {
                    _ if wanted <= self.most => return None,
                    Some(code) => code,
                    None => {
                        command[at..at + 2].copy_from_slice(&self.most.to_be_bytes());
                        return None;
                    }
                }
            }
            _ => return None,
        };
        Some([&[0x80, 0x01, 0, 0, 0, 10], code.to_be_bytes().as_slice()].concat())
    }

    fn change(&self, command: &[u8], mut response: Vec<u8>) -> Vec<u8> {
        if let (GET_CAPABILITY, Limit::Is(limit)) = (number(&command[6..10]), self.reported)
            && number(&command[14..18]) == NV_BUFFER_MAX
        {
            let at = response.len() - 4; // one property, and its value is the last of it
            response[at..].copy_from_slice(&limit.to_be_bytes());
        }
        response
    }
}
