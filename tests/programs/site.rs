//! A device whose directory is that of its configuration. The blocks of a document are run there as
//! they stand.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use miaf_agent::config::Config;

use crate::page;
use crate::support::agent::{AGENT, Device};
use crate::support::swtpm::Swtpm;

pub(crate) struct Site {
    pub(crate) device: Device,
    page: &'static str,
    _tpm: Swtpm,
}

impl Site {
    /// A device that does not run yet, for the blocks of this page.
    pub(crate) fn new(page: &'static str) -> Self {
        let tpm = Swtpm::start();
        let device = Device::new(&format!(
            "state_dir = \"{{dir}}/state\"\n[key]\ntcti = \"{}\"\n[socket]\npath = \"{{dir}}/run/agent.sock\"\n\
             [retry]\nbase = \"100ms\"\ncap = \"500ms\"\n[bundle]\nrefresh = \"1s\"\n",
            tpm.tcti()
        ));
        fs::create_dir(device.path("config.d")).unwrap();
        fs::create_dir(device.path("bin")).unwrap();
        let site = Self { device, page, _tpm: tpm };
        let config = site.device.path("config.toml");
        site.program("miaf-agent", &format!("exec {AGENT} --config {} \"$@\"", config.display()));
        site
    }

    /// Starts the agent. `systemctl reload` sends the signal, then runs these commands.
    pub(crate) fn start(&mut self, after_reload: &str) {
        self.device.start();
        self.program("systemctl", &format!("kill -s HUP {}\n{after_reload}", self.device.pid()));
    }

    /// Puts a program with these commands before those of the system.
    pub(crate) fn program(&self, name: &str, commands: &str) {
        let file = self.device.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{commands}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Content of a block of the page.
    pub(crate) fn block(&self, label: &str) -> String {
        page::block_of(self.page, label)
    }

    /// Runs a block of the page.
    pub(crate) fn follow(&self, label: &str) {
        self.run(&self.block(&format!("sh {label}")));
    }

    /// Runs commands in the directory of the configuration.
    pub(crate) fn run(&self, commands: &str) {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.device.path("bin").display());
        let run = Command::new("sh")
            .args(["-ec", commands])
            .current_dir(self.device.dir())
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{commands}\n{said}\n{}", self.device.log());
    }

    /// Puts a block of the page into a drop-in of its name.
    pub(crate) fn configure(&self, name: &str) {
        self.configure_with(name, |text| text);
    }

    /// The same, with a change of what cannot be as in the page.
    pub(crate) fn configure_with(&self, name: &str, change: impl FnOnce(String) -> String) {
        let text = change(self.block(&format!("toml {name}")));
        let config_d = self.device.path("config.d");
        let file = config_d.join(format!(".{name}"));
        fs::write(&file, text).unwrap();
        fs::rename(file, config_d.join(format!("{name}.toml"))).unwrap();
    }

    /// Waits until the status of an identity has each line of a block of the page, or begins one so.
    pub(crate) fn shows(&self, identity: &str, label: &str) {
        let expected = self.block(&format!("text {label}"));
        self.device.wait_until(&expected, |device| {
            let output = device.run(&["status", "--identity", identity]);
            let status = String::from_utf8(output.stdout).unwrap();
            expected.lines().all(|line| status.lines().any(|shown| shown.starts_with(line)))
        });
    }
}

/// Checks that each TOML block of a page is a configuration.
pub(crate) fn assert_toml_of(page: &str) {
    let blocks: Vec<&str> =
        page.split("```toml ").skip(1).map(|from| from.split("\n```").next().unwrap()).collect();
    assert!(blocks.len() >= 6, "{blocks:?}");
    for block in blocks {
        let (label, text) = block.split_once('\n').unwrap();
        if let Err(e) = Config::parse(text, Path::new("config.toml"), None) {
            panic!("{label}: {e}");
        }
    }
}
