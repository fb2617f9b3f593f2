//! tpm2-abrmd before a software TPM, on a system bus of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Running, wait_until};
use crate::support::directory::{directory, open_to_all};
use crate::support::swtpm::Swtpm;

/// Its TCTI, for the agent and for the TSS's tools alike.
pub(crate) const TCTI: &str = "tabrmd:bus_type=system";
/// The variable with the address of the system bus.
pub(crate) const BUS: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// Policy of the bus: as on Debian's, nothing but what a service's own policy allows. That is
/// Debian's, too.
const POLICY: &str = r#"
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <include>/etc/dbus-1/system.d/tpm2-abrmd.conf</include>
"#;

pub(crate) struct Abrmd {
    tpm: String,
    address: String,
    broker: Option<Running>,
    _bus: Running,
    directory: TempDir,
}

impl Abrmd {
    /// Starts both, and waits until the TPM responds through them.
    pub(crate) fn start(tpm: &Swtpm) -> Self {
        let directory = directory();
        open_to_all(directory.path(), 0o711); // for everyone on the bus
        let file = |name: &str| directory.path().join(name);

        let socket = file("bus");
        let address = format!("unix:path={}", socket.display());
        let config = format!("<busconfig>\n  <listen>{address}</listen>{POLICY}</busconfig>\n");
        fs::write(file("bus.conf"), config).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.arg("--config-file").arg(file("bus.conf")).args(["--nofork", "--nopidfile", "--nosyslog"]);
        let mut bus = Running::start(&mut command, &file("bus.log"));
        wait_until("the bus", || {
            assert!(!bus.has_ended(), "dbus-daemon does not start");
            // It is there before every user may connect to it (chmod(2) after bind(2)).
            fs::metadata(&socket).is_ok_and(|found| found.permissions().mode() & 0o002 != 0)
        });

        let mut abrmd = Self { tpm: tpm.tcti(), address, broker: None, _bus: bus, directory };
        abrmd.start_again();
        abrmd
    }

    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=tss", "--regid=tss", "--clear-groups", "tpm2-abrmd", "--tcti", &self.tpm]);
        let log = self.directory.path().join("abrmd.log");
        let broker = self.broker.insert(Running::start(command.env(BUS, &self.address), &log));
        wait_until("tpm2-abrmd", || {
            assert!(!broker.has_ended(), "tpm2-abrmd does not start");
            let mut command = Command::new("tpm2_getcap");
            command.args(["--tcti", TCTI, "properties-fixed"]).env(BUS, &self.address);
            command.output().unwrap().status.success()
        });
    }

    pub(crate) fn stop(&mut self) {
        self.broker = None;
    }

    /// Address of the bus.
    pub(crate) fn bus(&self) -> &str {
        &self.address
    }
}
