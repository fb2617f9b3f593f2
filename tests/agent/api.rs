//! `docs/agent-api.yaml` says what the sockets answer: schemathesis asks the running agent whatever
//! the description allows, and what it does not.

use std::fs;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use development_mis::{EstBaseUri, MintSpec};

use crate::support::agent::Device;
use crate::support::python;
use crate::world::{self, World};

const DESCRIPTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/agent-api.yaml");

/// A way to a socket for programs that know TCP only. Returns the port on the loopback interface.
fn relay(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            if let Ok(agent) = UnixStream::connect(&socket) {
                join(&caller, &agent);
            }
        }
    });
    port
}

fn join(caller: &TcpStream, agent: &UnixStream) {
    let (mut from_caller, mut to_agent) = (caller.try_clone().unwrap(), agent.try_clone().unwrap());
    let (mut from_agent, mut to_caller) = (agent.try_clone().unwrap(), caller.try_clone().unwrap());
    thread::spawn(move || {
        let _ = io::copy(&mut from_caller, &mut to_agent);
        let _ = to_agent.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut from_agent, &mut to_caller);
        let _ = to_caller.shutdown(Shutdown::Both);
    });
}

fn schemathesis(device: &Device, socket: &str, more: &[&str]) {
    let url = format!("http://127.0.0.1:{}", relay(device.path(socket)));
    let run = Command::new(python::program("schemathesis"))
        .args(["--config-file", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/schemathesis.toml")])
        .args(["run", DESCRIPTION, "--url", &url])
        .args(more)
        .current_dir(device.dir()) // it leaves a database of its own where it is run
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn the_agent_answers_as_its_description_says() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.device.start();
    world.device.wait_for("active");
    schemathesis(&world.device, "run/admin.sock", &[]);
    // On the socket for reading the rest is refused, in the words of the description.
    schemathesis(&world.device, "run/agent.sock", &["--max-examples", "5"]);
}

#[test]
fn an_agent_with_several_identities_does_too() {
    let mut world = World::with(|settings| {
        world::long_enough(&mut settings.policy);
        settings.policy.est.base_uri = EstBaseUri::Own;
    });
    world.configure(
        "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n\
         [[identity]]\nname = \"wfm-client\"\nenroll = \"manual\"\n\
         [[identity]]\nname = \"reader\"\nenroll = \"est\"\n",
    );
    world.device.start();
    world.device.wait_for("active");
    let id = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";
    let csr = world.device.run(&["csr", "--identity", "wfm-client", "--spiffe-id", id]);
    let minted = world.mis.mint(&MintSpec::csr(String::from_utf8(csr.stdout).unwrap())).unwrap();
    fs::write(world.device.path("chain.pem"), minted.chain_pem).unwrap();
    let chain = world.device.path("chain.pem");
    let installed = world.device.run(&["install", "--identity", "wfm-client", chain.to_str().unwrap()]);
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    world.device.wait_until("both", |device| device.get("/v1/identities/wfm-client/svid").unwrap().0 == 200);
    schemathesis(&world.device, "run/admin.sock", &["--max-examples", "10"]);
    schemathesis(&world.device, "run/agent.sock", &["--max-examples", "5"]);
}

#[test]
fn an_unconfigured_agent_does_too() {
    let mut device = Device::new("state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n");
    device.start();
    // That it has nothing to answer with yet is described, and no failure of a server.
    schemathesis(
        &device,
        "run/admin.sock",
        &["--max-examples", "5", "--exclude-checks", "not_a_server_error"],
    );
}

/// What schemathesis passes over: the events of `/v1/watch`, each of them, through an enrollment.
#[test]
fn the_events_are_what_the_description_says() {
    let mut world = World::new();
    world.device.start();
    let socket = world.device.path("run/agent.sock");
    let checked = Command::new(python::program("python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/check_events.py"))
        .args([DESCRIPTION.as_ref(), socket.as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        checked.status.success() && said.contains("active"),
        "{said}{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}
