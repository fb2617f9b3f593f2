//! The connection to the TPM as configured: the `tcti` setting.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Group;
use tss_esapi::tcti_ldr::{DeviceConfig, TabrmdConfig, TctiNameConf};

use super::error::{TpmError, UnreachableCause};
use crate::hint::Reason;
use crate::keys::KeyError;
use crate::platform::access::{self, Node, Process};
use miaf_spiffe::text::Excerpt;

/// A transport to the TPM (TCTI). Parsed strictly: a setting that the TSS libraries would silently
/// replace by their default is refused here.
///
/// - `device:/dev/tpmrm0`: the TPM, through the kernel's resource manager;
/// - `swtpm:host=127.0.0.1,port=2321`: a software TPM, for development;
/// - `tabrmd:bus_type=system`: the TPM, through tpm2-abrmd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcti(Transport);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Transport {
    Device(PathBuf),
    Swtpm(SocketAddr),
    Tabrmd,
}

/// The TPM, through the kernel's resource manager.
impl Default for Tcti {
    fn default() -> Self {
        Self(Transport::Device("/dev/tpmrm0".into()))
    }
}

impl FromStr for Tcti {
    type Err = KeyError;

    fn from_str(given: &str) -> Result<Self, KeyError> {
        let transport = match given.split_once(':') {
            Some(("device", path)) => device(path),
            Some(("swtpm", settings)) => swtpm(settings),
            Some(("tabrmd", "bus_type=system")) => Ok(Transport::Tabrmd),
            Some(("tabrmd", _)) => Err("tpm2-abrmd is reached on the system bus"),
            Some(("mssim", _)) => Err("the mssim protocol is not supported"),
            Some(_) => Err("unknown kind of connection"),
            None => Err("no kind of connection before a colon"),
        };
        transport
            .map(Self)
            .map_err(|why| TpmError::BadTcti { given: Excerpt::of(given, SHOWN).into_string(), why }.into())
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Transport::Device(path) => write!(f, "device:{}", path.display()),
            Transport::Swtpm(address) => write!(f, "swtpm:host={},port={}", address.ip(), address.port()),
            Transport::Tabrmd => f.write_str("tabrmd:bus_type=system"),
        }
    }
}

fn device(path: &str) -> Result<Transport, &'static str> {
    if !Path::new(path).is_absolute() {
        return Err("the device's path must be absolute");
    }
    if path.contains('\0') {
        return Err("a path has no NUL in it");
    }
    Ok(Transport::Device(path.into()))
}

fn swtpm(settings: &str) -> Result<Transport, &'static str> {
    if cfg!(not(feature = "swtpm")) {
        return Err("this build has no support for software TPMs");
    }
    let (mut host, mut port) = (None, None);
    for setting in settings.split(',') {
        match setting.split_once('=') {
            Some(("host", value)) if host.is_none() => host = Some(value),
            Some(("port", value)) if port.is_none() => port = Some(value),
            Some(("path", _)) => return Err("swtpm is reached by host and port, not by path"),
            _ => return Err("host and port must be given, each once"),
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
        Some(port) => Ok(Transport::Swtpm(SocketAddr::new(host, port))),
    }
}

impl Tcti {
    /// The same for the TSS libraries.
    pub(super) fn to_tss(&self) -> tss_esapi::Result<TctiNameConf> {
        match &self.0 {
            Transport::Device(path) => {
                DeviceConfig::from_str(&path.to_string_lossy()).map(TctiNameConf::Device)
            }
            Transport::Swtpm(address) => swtpm_to_tss(address),
            Transport::Tabrmd => Ok(TctiNameConf::Tabrmd(TabrmdConfig::default())),
        }
    }

    /// The cause of a failed connection, from the operating system: the TSS libraries report every
    /// cause as "input/output error". Blocks for 2 s at most.
    pub(super) fn diagnose(&self) -> Option<UnreachableCause> {
        match &self.0 {
            Transport::Device(path) => {
                let error = OpenOptions::new().read(true).write(true).open(path).err()?;
                Some(device_cause(path, &error))
            }
            Transport::Swtpm(address) => TcpStream::connect_timeout(address, PROBE).err().as_ref().map(cause),
            Transport::Tabrmd => Some(UnreachableCause::NoResourceManager),
        }
    }

    /// The library of the TSS for this transport.
    pub(super) fn library(&self) -> &'static str {
        match self.0 {
            Transport::Device(_) => "libtss2-tcti-device",
            Transport::Swtpm(_) => "libtss2-tcti-swtpm",
            Transport::Tabrmd => "libtss2-tcti-tabrmd",
        }
    }
}

fn device_cause(path: &Path, error: &io::Error) -> UnreachableCause {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => missing(path, Path::new("/sys/class")),
        // The mode of the device does not matter then: it is the unit's list of devices.
        Some(Errno::EPERM) => UnreachableCause::Hidden(path.to_owned()),
        Some(Errno::EACCES) => denied(path),
        _ => cause(error),
    }
}

/// Why there is no such device file. `classes` is `/sys/class`, which the sandbox of the service
/// shows.
fn missing(path: &Path, classes: &Path) -> UnreachableCause {
    let name = path.strip_prefix("/dev").unwrap_or(Path::new(""));
    let known =
        |class: &str, name: &Path| name.components().count() == 1 && classes.join(class).join(name).exists();
    if known("tpmrm", name) || known("tpm", name) {
        return UnreachableCause::Hidden(path.to_owned());
    }
    let others = std::fs::read_dir(classes.join("tpmrm")).into_iter().flatten().flatten();
    if let Some(other) = others.map(|entry| entry.file_name()).min() {
        return UnreachableCause::OtherDevice(Path::new("/dev").join(other));
    }
    match std::fs::read_to_string(classes.join("tpm/tpm0/tpm_version_major")) {
        Ok(version) if version.trim() == "1" => UnreachableCause::Version1,
        _ => UnreachableCause::Missing,
    }
}

/// Why a device that is there may not be opened.
fn denied(path: &Path) -> UnreachableCause {
    let process = Process::current();
    match std::fs::metadata(path) {
        Ok(metadata) => {
            let tss = Group::from_name("tss").ok().flatten();
            let user = access::user_argument(process.uid);
            let is_member = tss.as_ref().is_some_and(|tss| tss.mem.contains(&user));
            let tss = tss.map(|tss| tss.gid.as_raw());
            denied_by(path, Node::from(&metadata), &process, tss, is_member)
        }
        Err(error) => UnreachableCause::Other(access::unreadable(path, &error)),
    }
}

/// `tss` is the number of that group; `is_member` says whether the system's list has the user in
/// it, which takes effect when a process starts.
fn denied_by(
    path: &Path,
    node: Node,
    process: &Process,
    tss: Option<u32>,
    is_member: bool,
) -> UnreachableCause {
    let (owner, group) = (access::user_argument(node.uid), access::group_argument(node.gid));
    let (user, mode, file) = (access::user_argument(process.uid), node.mode, access::shell_word(path));
    let is = format!(
        "permission denied: it belongs to {owner}:{group} with the mode {mode:04o}, and the agent runs as {user}"
    );
    let is_open_to_group = node.mode & 0o060 == 0o060;
    let denied = |why: String, hint: String| {
        UnreachableCause::PermissionDenied(Reason::from(why).with_hint_text(hint))
    };
    if process.may(node, 0o6) {
        return denied(
            format!("{is}, who may use it by its mode: something else forbids it"),
            format!("Allow it in the unit (DeviceAllow={file} rw), in SELinux or AppArmor"),
        );
    }
    if tss == Some(node.gid) && is_open_to_group {
        return if is_member {
            denied(
                format!("{is}, who was added to the group tss after the agent started"),
                "Restart the agent: systemctl restart miaf-agent".into(),
            )
        } else {
            denied(
                format!("{is}, who is not in the group tss"),
                format!("Run usermod -aG tss {user}, and restart the agent"),
            )
        };
    }
    let (why, first) = match tss {
        None => ("there is no group tss, which it should belong to", "groupadd --system tss && "),
        Some(tss) if tss == node.gid => ("its group may not use it", ""),
        Some(_) => ("it should belong to the group tss", ""),
    };
    denied(
        format!("{is}; {why}"),
        format!(
            "Open it with: {first}chgrp tss {file} && chmod 0660 {file}. So that it stays so, add a rule in \
             /etc/udev/rules.d: {UDEV_RULE}"
        ),
    )
}

const UDEV_RULE: &str = r#"SUBSYSTEM=="tpmrm", KERNEL=="tpmrm[0-9]*", GROUP="tss", MODE="0660""#;

fn cause(error: &io::Error) -> UnreachableCause {
    match error.kind() {
        io::ErrorKind::NotFound => UnreachableCause::Missing,
        io::ErrorKind::ResourceBusy => UnreachableCause::InUse,
        io::ErrorKind::ConnectionRefused => UnreachableCause::Refused,
        _ => UnreachableCause::Other(Excerpt::of(error, SHOWN).into_string().into()),
    }
}

/// Characters of a setting or of an error of the system that a message repeats.
const SHOWN: usize = 128;

const PROBE: Duration = Duration::from_secs(2);

/// tss-esapi constructs this with its own parser only, which brings in a regular expression engine.
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
    use crate::hint::Hint as _;

    #[test]
    fn tcti_is_displayed_as_it_was_parsed() {
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
    fn tcti_of_another_form_is_refused_with_what_is_accepted() {
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
            assert!(matches!(error, KeyError::Tpm(TpmError::BadTcti { .. })), "{given}: {error:?}");
            assert!(error.hint().unwrap().contains("device:/dev/tpmrm0, swtpm:host="), "{error}");
        }
    }

    #[test]
    fn device_that_cannot_be_opened_is_diagnosed() {
        let missing = "device:/nonexistent/tpmrm0".parse::<Tcti>().unwrap();
        assert_eq!(missing.diagnose(), Some(UnreachableCause::Missing));
        assert_eq!("device:/dev/null".parse::<Tcti>().unwrap().diagnose(), None);

        let refused = |code| device_cause(Path::new("/dev/null"), &io::Error::from_raw_os_error(code));
        assert!(matches!(refused(13), UnreachableCause::PermissionDenied(_)));
        assert_eq!(refused(16), UnreachableCause::InUse);
        let by_the_unit = refused(1);
        let by_the_unit = by_the_unit.hint().unwrap();
        assert!(by_the_unit.contains("DeviceAllow=/dev/null rw"), "{by_the_unit}");
    }

    #[test]
    fn missing_device_is_searched_in_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let classes = directory.path();
        let why = |path: &str| missing(Path::new(path), classes);
        assert_eq!(why("/dev/tpmrm0"), UnreachableCause::Missing);
        std::fs::create_dir_all(classes.join("tpm/tpm0")).unwrap();
        std::fs::write(classes.join("tpm/tpm0/tpm_version_major"), "1\n").unwrap();
        assert_eq!(why("/dev/tpmrm0"), UnreachableCause::Version1);
        std::fs::create_dir_all(classes.join("tpmrm/tpmrm1")).unwrap();
        assert_eq!(why("/dev/tpmrm0"), UnreachableCause::OtherDevice("/dev/tpmrm1".into()));
        assert_eq!(why("/srv/../tpmrm1"), UnreachableCause::OtherDevice("/dev/tpmrm1".into()));
        assert_eq!(why("/dev/tpm0"), UnreachableCause::Hidden("/dev/tpm0".into()));
        let hidden = why("/dev/tpmrm1");
        assert_eq!(hidden, UnreachableCause::Hidden("/dev/tpmrm1".into()));
        let text = hidden.hint().unwrap();
        for expected in ["systemctl edit miaf-agent", "BindPaths=-/dev/tpmrm1", "DeviceAllow=/dev/tpmrm1 rw"]
        {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!text.contains("firmware"), "{text}");
    }

    #[test]
    fn denied_device_is_diagnosed_by_owner_mode_and_group() {
        let path = Path::new("/dev/tpmrm0");
        let (tss, other) = (4_000_010, 4_000_011);
        let agent = Process { uid: 4_000_001, gid: 4_000_002, groups: vec![tss] };
        let outsider = Process { groups: Vec::new(), ..agent.clone() };
        let both = |cause: UnreachableCause| format!("{cause}. {}", cause.hint().unwrap());
        let node = |gid, mode| Node { uid: 4_000_000, gid, mode };
        for (node, process, listed, expected) in [
            (
                node(other, 0o660),
                &agent,
                true,
                "should belong to the group tss. Open it with: chgrp tss /dev/tpmrm0",
            ),
            (node(tss, 0o600), &agent, true, "its group may not use it. Open it with: chgrp tss /dev/tpmrm0"),
            (node(tss, 0o660), &outsider, false, "usermod -aG tss 4000001"),
            (node(tss, 0o660), &outsider, true, "Restart the agent"),
            (node(tss, 0o660), &agent, true, "something else forbids it"),
            (node(other, 0o666), &outsider, false, "something else forbids it"),
        ] {
            let text = both(denied_by(path, node, process, Some(tss), listed));
            assert!(text.contains(expected) && text.contains("4000000:40000"), "{text}");
            assert_eq!(text.contains("usermod"), expected.contains("usermod"), "{text}");
        }
        let no_group = both(denied_by(path, node(other, 0o600), &agent, None, false));
        assert!(no_group.contains("groupadd --system tss"), "{no_group}");
    }
}
