//! How to reach the TPM: the `tcti` setting.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use tss_esapi::tcti_ldr::{DeviceConfig, TabrmdConfig, TctiNameConf};

use crate::keys::{KeyError, UnreachableCause};

/// A way to reach the TPM. Parsed strictly: a setting that the TSS libraries would quietly take for their default is
/// refused here.
///
/// - `device:/dev/tpmrm0`: the chip, through the kernel's resource manager;
/// - `swtpm:host=127.0.0.1,port=2321`: a software TPM, for development;
/// - `tabrmd:bus_type=system`: the chip, through tpm2-abrmd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcti(Way);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Device(PathBuf),
    Swtpm(SocketAddr),
    Tabrmd,
}

/// The chip, through the kernel's resource manager.
impl Default for Tcti {
    fn default() -> Self {
        Self(Way::Device("/dev/tpmrm0".into()))
    }
}

impl FromStr for Tcti {
    type Err = KeyError;

    fn from_str(given: &str) -> Result<Self, KeyError> {
        let way = match given.split_once(':') {
            Some(("device", path)) => device(path),
            Some(("swtpm", settings)) => swtpm(settings),
            Some(("tabrmd", "bus_type=system")) => Ok(Way::Tabrmd),
            Some(("tabrmd", _)) => Err("tpm2-abrmd is reached on the system bus"),
            Some(("mssim", _)) => Err("the mssim protocol is not supported"),
            Some(_) => Err("unknown kind of connection"),
            None => Err("no kind of connection before a colon"),
        };
        way.map(Self).map_err(|why| KeyError::BadTcti { given: given.to_owned(), why })
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Way::Device(path) => write!(f, "device:{}", path.display()),
            Way::Swtpm(address) => write!(f, "swtpm:host={},port={}", address.ip(), address.port()),
            Way::Tabrmd => f.write_str("tabrmd:bus_type=system"),
        }
    }
}

fn device(path: &str) -> Result<Way, &'static str> {
    if !Path::new(path).is_absolute() {
        return Err("the device's path must be absolute");
    }
    if path.contains('\0') {
        return Err("a path has no NUL in it");
    }
    Ok(Way::Device(path.into()))
}

fn swtpm(settings: &str) -> Result<Way, &'static str> {
    if cfg!(not(feature = "swtpm")) {
        return Err("this build has no support for software TPMs");
    }
    let (mut host, mut port) = (None, None);
    for setting in settings.split(',') {
        match setting.split_once('=') {
            Some(("host", value)) if host.is_none() => host = Some(value),
            Some(("port", value)) if port.is_none() => port = Some(value),
            Some(("path", _)) => return Err("swtpm is reached by host and port, not by path"),
            _ => return Err("say host and port, each once"),
        }
    }
    let host: IpAddr = match host {
        Some("localhost") => "127.0.0.1",
        Some(host) => host,
        None => return Err("no host"),
    }
    .parse()
    .map_err(|_| "the host must be an IP address or localhost")?;
    match port.and_then(|port| port.parse().ok()) {
        Some(0) | None => Err("the port must be a number from 1 to 65535"),
        Some(port) => Ok(Way::Swtpm(SocketAddr::new(host, port))),
    }
}

impl Tcti {
    /// The same for the TSS libraries.
    pub(super) fn to_tss(&self) -> tss_esapi::Result<TctiNameConf> {
        match &self.0 {
            Way::Device(path) => DeviceConfig::from_str(&path.to_string_lossy()).map(TctiNameConf::Device),
            Way::Swtpm(address) => swtpm_to_tss(address),
            Way::Tabrmd => Ok(TctiNameConf::Tabrmd(TabrmdConfig::default())),
        }
    }

    /// Why a connection that has failed did fail. The TSS libraries say "input/output error" to everything, so the
    /// system is asked.
    pub(super) fn diagnose(&self) -> Option<UnreachableCause> {
        let error = match &self.0 {
            Way::Device(path) => OpenOptions::new().read(true).write(true).open(path).err()?,
            Way::Swtpm(address) => TcpStream::connect_timeout(address, PROBE).err()?,
            Way::Tabrmd => return Some(UnreachableCause::Other(NO_TABRMD.into())),
        };
        Some(cause(&error))
    }

    /// Which library of the TSS talks this way.
    pub(super) fn library(&self) -> &'static str {
        match self.0 {
            Way::Device(_) => "libtss2-tcti-device",
            Way::Swtpm(_) => "libtss2-tcti-swtpm",
            Way::Tabrmd => "libtss2-tcti-tabrmd",
        }
    }
}

fn cause(error: &io::Error) -> UnreachableCause {
    match error.kind() {
        io::ErrorKind::NotFound => UnreachableCause::Missing,
        io::ErrorKind::PermissionDenied => UnreachableCause::PermissionDenied,
        io::ErrorKind::ResourceBusy => UnreachableCause::InUse,
        io::ErrorKind::ConnectionRefused => UnreachableCause::Refused,
        _ => UnreachableCause::Other(error.to_string()),
    }
}

const PROBE: Duration = Duration::from_secs(2);

const NO_TABRMD: &str = "tpm2-abrmd does not answer on D-Bus; check that it runs (systemctl status tpm2-abrmd) and \
                         that libtss2-tcti-tabrmd is installed";

/// tss-esapi has no way to this but its own parser, and that brings in a regular expression engine.
#[cfg(feature = "swtpm")]
fn swtpm_to_tss(address: &SocketAddr) -> tss_esapi::Result<TctiNameConf> {
    use tss_esapi::tcti_ldr::NetworkTPMConfig;
    NetworkTPMConfig::from_str(&format!("host={},port={}", address.ip(), address.port()))
        .map(TctiNameConf::Swtpm)
}

#[cfg(not(feature = "swtpm"))]
fn swtpm_to_tss(_: &SocketAddr) -> tss_esapi::Result<TctiNameConf> {
    Err(tss_esapi::Error::WrapperError(tss_esapi::WrapperErrorKind::UnsupportedParam))
}

#[cfg(all(test, feature = "swtpm"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_it_should_and_says_it_back() {
        for given in [
            "device:/dev/tpmrm0",
            "device:/dev/tpm0",
            "swtpm:host=127.0.0.1,port=2321",
            "swtpm:host=::1,port=65535",
            "tabrmd:bus_type=system",
        ] {
            assert_eq!(given.parse::<Tcti>().unwrap().to_string(), given);
        }
        let either_order = "swtpm:port=2321,host=localhost".parse::<Tcti>().unwrap();
        assert_eq!(either_order, "swtpm:host=127.0.0.1,port=2321".parse().unwrap());
    }

    #[test]
    fn refuses_the_rest_and_says_what_is_accepted() {
        for given in [
            "",
            "device",
            "device:",
            "device:tpmrm0",
            "device:/dev/tpm\0rm0",
            "/dev/tpmrm0",
            "Device:/dev/tpmrm0",
            "swtpm",
            "swtpm:",
            "swtpm:path=/run/swtpm.sock",
            "swtpm:host=127.0.0.1",
            "swtpm:port=2321",
            "swtpm:host=127.0.0.1,port=0",
            "swtpm:host=127.0.0.1,port=65536",
            "swtpm:host=127.0.0.1,port=2321,",
            "swtpm:host=127.0.0.1,port=2321,port=2322",
            "swtpm:host=127.0.0.1,port=2321,other=1",
            "swtpm:host=tpm.example,port=2321",
            "mssim:host=127.0.0.1,port=2321",
            "tabrmd",
            "tabrmd:",
            "tabrmd:bus_type=session",
            "libtss2-tcti-device.so.0:/dev/tpmrm0",
        ] {
            let error = given.parse::<Tcti>().unwrap_err();
            assert!(matches!(error, KeyError::BadTcti { .. }), "{given}: {error:?}");
            assert!(error.to_string().contains("accepted are device:/dev/tpmrm0"), "{error}");
        }
    }

    #[test]
    fn says_why_a_device_cannot_be_opened() {
        let missing = "device:/nonexistent/tpmrm0".parse::<Tcti>().unwrap();
        assert_eq!(missing.diagnose(), Some(UnreachableCause::Missing));
        assert_eq!("device:/dev/null".parse::<Tcti>().unwrap().diagnose(), None);

        let eacces = cause(&io::Error::from_raw_os_error(13));
        assert_eq!(eacces, UnreachableCause::PermissionDenied);
        assert!(eacces.to_string().contains("group tss"), "{eacces}");
        assert_eq!(cause(&io::Error::from_raw_os_error(16)), UnreachableCause::InUse);
    }
}
