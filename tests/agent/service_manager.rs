//! The agent under a service manager: notifications, passed sockets, the watchdog, and no work
//! without need.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::agent::{Device, PATIENCE};
use crate::support::strace::wait_until_stopped;
use crate::world::{self, World};

const UNCONFIGURED: &str = "state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n";
const STATUS: &str = "GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// The service manager's end of the notification socket.
struct Manager(UnixDatagram);

impl Manager {
    fn of(device: &mut Device) -> Self {
        let path = device.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        device.environment("NOTIFY_SOCKET", path.to_str().unwrap());
        Self(socket)
    }

    /// Ten times, for a limit of 200 ms: one is due every 100 ms.
    fn watchdog_is_fed(&self) {
        self.forget();
        let begin = Instant::now();
        for meal in 0..10 {
            self.until("WATCHDOG=1");
            assert!(begin.elapsed() < PATIENCE, "meal {meal} came late");
        }
        assert!(begin.elapsed() > Duration::from_millis(500), "not more often than it has to be");
    }

    /// Skips the notifications so far, and returns their number.
    fn forget(&self) -> usize {
        self.0.set_nonblocking(true).unwrap();
        let sent = std::iter::from_fn(|| self.0.recv(&mut [0; 4096]).ok()).count();
        self.0.set_nonblocking(false).unwrap();
        sent
    }

    /// The notifications up to one that begins with `last`, which is included.
    fn until(&self, last: &str) -> Vec<String> {
        let mut sent: Vec<String> = Vec::new();
        let mut buffer = [0; 4096];
        while !sent.iter().any(|line| line.starts_with(last)) {
            let length = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("no {last} but {sent:?}: {e}"));
            sent.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        sent
    }
}

#[test]
fn service_manager_is_notified_of_the_state() {
    let mut world = World::new();
    let manager = Manager::of(&mut world.device);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.stop().success());
    let sent = manager.until("STOPPING=1");
    assert_eq!(sent.first().map(String::as_str), Some("READY=1"));
    assert!(sent.iter().any(|line| line.starts_with("STATUS=active: spiffe://factory.example/")), "{sent:?}");
    assert!(!sent.contains(&"WATCHDOG=1".to_owned()), "the watchdog is off");
}

#[test]
fn status_of_the_service_counts_several_identities() {
    let mut world = World::new();
    let manager = Manager::of(&mut world.device);
    world.configure(
        "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\n\
         [[identity]]\nname = \"line-1\"\nenroll = \"manual\"\n",
    );
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.stop().success());
    let sent = manager.until("STOPPING=1");
    let expected = "STATUS=2 identities: 1 waiting-for-operator (line-1), 1 active";
    assert!(sent.iter().any(|line| line == expected), "{sent:?}");
}

#[test]
fn watchdog_is_fed_while_the_agent_waits() {
    // It waits for a configuration.
    let mut device = Device::new(UNCONFIGURED);
    let manager = Manager::of(&mut device);
    device.environment("WATCHDOG_USEC", "200000");
    device.start();
    manager.watchdog_is_fed();

    // It waits for the next action.
    let mut world = World::enrolled();
    world.device.kill();
    let manager = Manager::of(&mut world.device);
    world.device.environment("WATCHDOG_USEC", "200000");
    world.device.start();
    world.device.wait_for("active");
    manager.watchdog_is_fed();

    // It waits for an MIS that never responds.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = World::new();
    let url = format!("https://127.0.0.1:{}", silent.local_addr().unwrap().port());
    world.device.configure(&world::config(&world.mis, &world.tpm, "").replace(&world.mis.url(), &url));
    let manager = Manager::of(&mut world.device);
    world.device.environment("WATCHDOG_USEC", "200000");
    world.device.start();
    let _connection = silent.accept().unwrap();
    manager.watchdog_is_fed();
    assert!(world.device.status()["lastError"].is_null(), "it still waits for the response");
}

#[test]
fn watchdog_is_not_fed_when_the_agent_hangs() {
    let mut device = Device::new(UNCONFIGURED);
    let manager = Manager::of(&mut device);
    device.environment("WATCHDOG_USEC", "200000");
    device.start();
    manager.watchdog_is_fed();
    device.signal("STOP");
    wait_until_stopped(device.pid());
    manager.forget(); // what was sent before has arrived
    thread::sleep(Duration::from_secs(1));
    assert_eq!(manager.forget(), 0);
}

#[test]
fn each_role_has_its_own_socket() {
    let mut world = World::enrolled();
    for (name, mode) in [("agent", 0o660), ("sign", 0o660), ("admin", 0o600)] {
        let path = format!("run/{name}.sock");
        assert_eq!(fs::metadata(world.device.path(&path)).unwrap().mode() & 0o777, mode, "{name}");
        let (status, body) = world.device.request_at(&path, STATUS).unwrap();
        assert!(status == 200 && body.contains("spiffe://"), "{name}: {body}");
    }
    assert!(world.device.stop().success());
    assert_eq!(fs::read_dir(world.device.path("run")).unwrap().count(), 0, "none is left behind");
}

#[test]
fn passed_sockets_are_served_and_outlive_the_agent() {
    let mut world = World::new();
    world.device.pass_socket("agent", "run/agent.sock");
    world.device.pass_socket("admin", "elsewhere/commands.sock");
    world.device.start();
    let id = world.device.wait_for("active")["spiffeId"].clone();
    let (status, body) = world.device.request_at("elsewhere/commands.sock", STATUS).unwrap();
    assert!(status == 200 && body.contains(id.as_str().unwrap()), "{body}");
    assert!(!world.device.path("run/admin.sock").exists(), "it was passed: no other is bound");
    assert!(!world.device.path("run/sign.sock").exists(), "it was not passed: its role is not granted");

    // A peer that connects while the agent is away waits, and is served by the next one.
    assert!(world.device.stop().success());
    assert!(world.device.path("run/agent.sock").exists());
    let mut caller = UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
    caller.write_all(STATUS.as_bytes()).unwrap();
    world.device.start();
    let mut response = String::new();
    caller.read_to_string(&mut response).unwrap();
    assert!(response.contains(id.as_str().unwrap()), "{response}");
}

#[test]
fn passed_socket_of_an_unknown_name_is_not_served() {
    let mut device = Device::new(UNCONFIGURED);
    device.pass_socket("wfm", "run/wfm.sock");
    device.start();
    assert!(device.log().contains("a socket called \"wfm\" was passed"), "{}", device.log());
}

/// How often a thread of the agent has been woken.
fn wakings(device: &Device) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", device.pid())).unwrap();
    let of_thread = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    statuses.filter_map(of_thread).sum()
}

/// Waits for a period of this length in which the agent is not woken.
fn sleeps_for(device: &Device, time: Duration) {
    let begin = Instant::now();
    loop {
        let before = wakings(device);
        thread::sleep(time);
        if wakings(device) == before {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "it is woken again and again within {time:?}");
    }
}

/// Active, with an SVID for months and a bundle for an hour.
fn with_little_to_do() -> World {
    let mut world = World::with(|settings| {
        settings.policy.svid_lifetime = Duration::from_secs(90 * 86_400);
        settings.policy.refresh_hint = Some(3600);
    });
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("refresh = \"1s\"", "refresh = \"1h\""));
    world.device.start();
    world.device.wait_for("active");
    world
}

#[test]
fn active_agent_is_woken_only_by_what_is_due() {
    let world = with_little_to_do();
    // The threads that enrollment and publication needed go after ten seconds without work.
    sleeps_for(&world.device, Duration::from_secs(15));
}

#[test]
#[ignore = "needs root: the kernel hides the timers of the agent from other users"]
fn next_timer_of_an_active_agent_is_what_is_due() {
    let world = with_little_to_do();
    // The one timer is set when the agent sleeps again after the request for its status.
    sleeps_for(&world.device, Duration::from_secs(1));
    let timers = fs::read_dir(format!("/proc/{}/fdinfo", world.device.pid())).unwrap();
    let timers = timers.filter_map(|timer| fs::read_to_string(timer.ok()?.path()).ok());
    let waits = timers.filter(|timer| timer.contains("clockid: 7\n")).map(|timer| {
        let left = timer.split_once("it_value: (").unwrap().1;
        left.split(',').next().unwrap().parse::<u64>().unwrap()
    });
    let waits: Vec<u64> = waits.collect();
    assert!(matches!(waits[..], [1800..=3600]), "{waits:?}");
}

#[test]
fn unconfigured_agent_is_idle_until_it_is_configured() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    world.device.wait_for("unconfigured");

    sleeps_for(&world.device, Duration::from_secs(5)); // once the new directories have been read

    // By a drop-in, in a new directory, in two writes: one half is not a configuration.
    let dir = world.device.path("config.d");
    fs::create_dir(&dir).unwrap();
    thread::sleep(Duration::from_millis(200));
    let config = world::config(&world.mis, &world.tpm, "");
    let config = config.replace("{dir}", world.device.dir().to_str().unwrap());
    let file = dir.join("10-site.toml");
    {
        let (first, second) = config.split_at(config.find("[mis.trust]").unwrap());
        let mut file = fs::File::create(&file).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(500));
        assert_eq!(world.device.status()["state"], "unconfigured");
        file.write_all(second.as_bytes()).unwrap();
    }
    let begin = Instant::now();
    world.device.wait_for_status("a start", |status| status["state"] != "unconfigured");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    world.device.wait_for("active");
}

#[test]
fn configuration_is_followed_until_there_is_an_identity() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    world.device.wait_for("unconfigured");
    let config = world::config(&world.mis, &world.tpm, "");
    let config = config.replace("{dir}", world.device.dir().to_str().unwrap());
    let dir = world.device.path("config.d");
    fs::create_dir(&dir).unwrap();

    // One part after the other, and with a mistake, which is corrected without a reload.
    let (mis, rest) = config.split_at(config.find("[mis.trust]").unwrap());
    fs::write(dir.join("10-mis.toml"), mis).unwrap();
    world.device.wait_for("blocked");
    fs::write(dir.join("20-rest.toml"), rest.replace("[key]", "[kee]")).unwrap();
    world.device.wait_until("the mistake is named", |device| device.log().contains("unknown field `kee`"));
    fs::write(dir.join("20-rest.toml"), rest).unwrap();
    world.device.wait_for("active");
    // It followed the configuration, and not every change in its directory.
    let read = world.device.log().matches("the configuration has been read anew").count();
    assert_eq!(read, 1, "{}", world.device.log());

    // Now it has an identity. A mistake does not move it to another MIS.
    fs::write(dir.join("10-mis.toml"), "[mis]\norigin = \"https://elsewhere.example\"\n").unwrap();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(world.device.status()["state"], "active");
    assert!(!world.device.log().contains("elsewhere.example"));
}

#[test]
fn open_requests_get_their_response_at_shutdown() {
    let mut world = World::enrolled();
    let mut callers: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(world.device.path("run/agent.sock")).unwrap()).collect();
    world.device.get("/healthz").unwrap(); // those before this one are accepted
    world.device.signal("TERM");
    for caller in &mut callers {
        let _ = caller.write_all(STATUS.as_bytes());
    }
    for caller in &mut callers {
        let mut response = String::new();
        caller.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200"), "{response:?}");
    }
    assert!(world.device.wait_for_exit().success());
}
