//! Initial trust: the MIS is authenticated by what was provisioned, or not spoken to (miaf-v0 T).

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;
use std::{io, thread};

use development_mis::{Endpoint, ServerFault};

use crate::support::agent::Device;
use crate::world::{self, World};

#[test]
fn no_connection_is_made_without_initial_trust() {
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    let ca_line = config.lines().find(|line| line.starts_with("ca_file")).unwrap();
    world.device.configure(&config.replace(ca_line, ""));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["detail"].as_str().unwrap().contains("no trust anchor is configured"));
    let (_, contacts) = world.after(Duration::from_secs(1));
    assert!(
        contacts.is_empty() && world.mis.journal().is_empty() && world.mis.refused_handshakes().is_empty()
    );
}

/// The configuration with these lines in the place of `ca_file`.
fn trusting(world: &World, lines: &str) -> String {
    let config = world::config(&world.mis, &world.tpm, "");
    let ca_line = config.lines().find(|line| line.starts_with("ca_file")).unwrap().to_owned();
    config.replace(&ca_line, lines)
}

fn ca_line(path: &Path) -> String {
    format!("ca_file = \"{}\"", path.display())
}

/// The command that the error for a bad pin in the configuration gives, run as it stands.
fn pin(world: &World, certificate: &Path) -> String {
    let certificate = certificate.display();
    let command = format!(
        "openssl x509 -in {certificate} -pubkey -noout | openssl pkey -pubin -outform der | \
         openssl dgst -sha256 -binary | base64"
    );
    world.tpm.run("sh", &["-c", &command]).trim().to_owned()
}

fn pins(pins: &[&str]) -> String {
    format!("spki_sha256 = {pins:?}")
}

/// The server presents its CA too, as many do.
fn presenting_its_ca() -> World {
    World::with(|settings| {
        let files = vec![settings.directory.join("tls-ca.pem")];
        settings.server_fault = Some(ServerFault::Appended(files));
    })
}

#[test]
fn pinned_server_is_trusted_whatever_its_ca() {
    let mut world = World::new();
    world.device.configure(&trusting(&world, &pins(&[&pin(&world, &world.mis.server_cert())])));
    world.device.start();
    world.device.wait_for("active");
}

#[test]
fn pinned_ca_authenticates_servers_that_present_it() {
    let mut world = presenting_its_ca();
    world.device.configure(&trusting(&world, &pins(&[&pin(&world, &world.mis.ca_file())])));
    world.device.start();
    world.device.wait_for("active");
}

#[test]
fn anchors_and_pins_must_both_hold() {
    let (other, mut world) = (World::new(), World::new());
    let (right, wrong) = (pin(&world, &world.mis.ca_file()), pin(&world, &other.mis.ca_file()));
    let (ours, theirs) = (ca_line(&world.mis.ca_file()), ca_line(&other.mis.ca_file()));
    world.device.configure(&trusting(&world, &format!("{ours}\n{}", pins(&[&wrong]))));
    world.device.start();
    let status = world.device.wait_for_error("is pinned in spki_sha256");
    let presented = status["lastError"]["detail"].as_str().unwrap();
    assert!(
        presented.contains(&pin(&world, &world.mis.server_cert())) && presented.contains(&right),
        "{presented}"
    );

    world.device.configure(&trusting(&world, &format!("{theirs}\n{}", pins(&[&right]))));
    world.device.kill();
    world.device.start();
    world.device.wait_for_error("unknown issuer");
    assert!(world.mis.journal().is_empty());

    world.device.configure(&trusting(&world, &format!("{ours}\n{}", pins(&[&right]))));
    world.device.signal("HUP");
    world.device.wait_for("active");
}

#[test]
fn pinned_certificate_off_the_path_proves_nothing() {
    let other = World::new();
    for certificate in [other.mis.ca_file(), other.mis.server_cert()] {
        let mut world = World::with(|settings| {
            settings.server_fault = Some(ServerFault::Appended(vec![certificate.clone()]));
        });
        let pinned = pins(&[&pin(&world, &certificate)]);
        world.device.configure(&trusting(&world, &pinned));
        world.device.start();
        world.device.wait_for_error("is not trusted");
        world.device.kill();
        world.device.configure(&trusting(&world, &format!("{}\n{pinned}", ca_line(&world.mis.ca_file()))));
        world.device.start();
        world.device.wait_for_error("is pinned in spki_sha256");
        assert!(world.mis.journal().is_empty());
    }
}

#[test]
fn validity_of_a_pinned_server_is_checked() {
    let mut world = World::with(|settings| settings.server_fault = Some(ServerFault::Expired));
    let pinned = pins(&[&pin(&world, &world.mis.server_cert())]);
    world.device.configure(&trusting(&world, &pinned));
    world.device.start();
    world.device.wait_for_error("its key is pinned, but its certificate has expired");
    assert!(world.mis.journal().is_empty());
}

/// With a pin, an address needs no name in the certificate (N8).
#[test]
fn pinned_server_at_an_address_needs_no_name_and_is_warned_of() {
    let mut world = World::with(|settings| settings.hosts = vec!["mis.example".into()]);
    let pinned = pins(&[&pin(&world, &world.mis.server_cert())]);
    let trusting =
        |lines: &str| trusting(&world, lines).replace("https://mis.example:", "https://127.0.0.1:");
    world.device.configure(&trusting(&ca_line(&world.mis.ca_file())));
    let pinned = trusting(&pinned);
    world.device.start();
    world.device.wait_for_error("is not for the name in the URL");
    world.device.configure(&pinned);
    world.device.wait_for_error("bundles are allowed from"); // it has read the document there
    let log = world.device.log();
    assert_eq!(log.matches("does not have this IP address").count(), 1, "once: {log}");
}

#[test]
fn system_roots_are_used_only_where_configured() {
    let other = World::new();
    let mut world = World::new();
    world.device.environment("SSL_CERT_FILE", world.mis.ca_file().to_str().unwrap());
    world.device.configure(&trusting(&world, &ca_line(&other.mis.ca_file())));
    world.device.start();
    world.device.wait_for_error("a CA in ca_file (unknown issuer)");
    world
        .device
        .configure(&trusting(&world, &format!("{}\nsystem_roots = true", ca_line(&other.mis.ca_file()))));
    world.device.signal("HUP");
    world.device.wait_for("active");
}

#[test]
fn empty_system_roots_are_reported() {
    let mut world = World::new();
    let empty = world.device.path("empty.pem");
    std::fs::write(&empty, "").unwrap();
    world.device.environment("SSL_CERT_FILE", empty.to_str().unwrap());
    world.device.configure(&trusting(&world, "system_roots = true"));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["hint"].as_str().unwrap().contains("Correct SSL_CERT_FILE"), "{status:#}");
    std::fs::copy(world.mis.ca_file(), &empty).unwrap();
    world.device.wait_for("active");
}

/// An origin of its own, which is the server of the MIS all the same: the document that is served
/// there leads to another.
struct Elsewhere {
    mis: String,
    url: String,
}

impl Elsewhere {
    fn of(world: &World) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let port = world.mis.port();
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let Ok(mis) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [(&caller, &mis), (&mis, &caller)]
                    .map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
                {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Self { mis: world.mis.url(), url }
    }

    /// The configuration with the discovery document at that URL, and the bundle allowed where it
    /// is.
    fn asked(&self, config: &str) -> String {
        let allowed = format!("[mis]\nbundle_origins = [{:?}]\n", self.mis);
        config.replace(&self.mis, &self.url).replace("[mis]\n", &allowed)
    }
}

#[test]
fn discovery_under_system_roots_must_not_leave_its_origin() {
    let mut world = World::new();
    world.device.environment("SSL_CERT_FILE", world.mis.ca_file().to_str().unwrap());
    let elsewhere = Elsewhere::of(&world);
    world.device.configure(&elsewhere.asked(&trusting(&world, "system_roots = true")));
    world.device.start();
    let status = world.device.wait_for_error("system_roots");
    let why = status["lastError"]["detail"].as_str().unwrap();
    for origin in [world.mis.url(), elsewhere.url] {
        assert!(why.contains(&origin), "{why}");
    }
    assert!(world.seen(Endpoint::Bundle).is_empty() && world.seen(Endpoint::Enrollment).is_empty(), "D7");

    // One that stays where it is is fine.
    world.device.configure(&trusting(&world, "system_roots = true"));
    world.device.signal("HUP");
    world.device.wait_for("active");
}

#[test]
fn discovery_under_a_ca_or_pin_may_lead_to_another_origin() {
    let other = World::new();
    let anchored = |world: &World| format!("{}\nsystem_roots = true", ca_line(&world.mis.ca_file()));
    let pinned =
        |world: &World| format!("{}\nsystem_roots = true", pins(&[&pin(world, &world.mis.ca_file())]));
    let lines: [&dyn Fn(&World) -> String; 2] = [&anchored, &pinned];
    for lines in lines {
        let mut world = World::new();
        world.device.environment("SSL_CERT_FILE", world.mis.ca_file().to_str().unwrap());
        world.device.configure(&Elsewhere::of(&world).asked(&trusting(&world, &lines(&world))));
        world.device.start();
        world.device.wait_for("active");
    }
    // But not another provisioned CA.
    let mut world = World::new();
    world.device.environment("SSL_CERT_FILE", world.mis.ca_file().to_str().unwrap());
    world.device.configure(&Elsewhere::of(&world).asked(&trusting(&world, &anchored(&other))));
    world.device.start();
    world.device.wait_for_error("authenticated by the operating system's store only");
}

#[test]
fn cached_discovery_is_rechecked_under_system_roots() {
    let mut world = World::new();
    world.device.environment("SSL_CERT_FILE", world.mis.ca_file().to_str().unwrap());
    let elsewhere = Elsewhere::of(&world);
    world.device.configure(&elsewhere.asked(&trusting(&world, &ca_line(&world.mis.ca_file()))));
    world.device.start();
    world.device.wait_for("active");
    world.device.kill();
    world.device.configure(&elsewhere.asked(&trusting(&world, "system_roots = true")));
    world.device.start();
    world.device.wait_for_error("authenticated by the operating system's store only");
    let (_, contacts) = world.after(Duration::from_secs(2)); // twice the time in which the bundle is looked at
    assert!(
        contacts.iter().all(|entry| world::is_at(entry, Endpoint::Discovery)),
        "the bundle is at the other origin: {contacts:?}"
    );
    assert_eq!(world.device.get("/readyz").unwrap().0, 200, "what is held stays in use");
}

#[test]
fn response_304_proves_no_more_than_a_200() {
    let (other, mut world) = (World::new(), World::new());
    // A provisioned file that is valid at first, in addition to a public store that always is.
    let file = world.device.path("ca.pem");
    std::fs::copy(world.mis.ca_file(), &file).unwrap();
    world.device.environment("SSL_CERT_FILE", world.mis.ca_file().to_str().unwrap());
    let lines = format!("{}\nsystem_roots = true", ca_line(&file));
    world.device.configure(&Elsewhere::of(&world).asked(&trusting(&world, &lines)));
    world.device.start();
    world.device.wait_for("active");
    world.device.kill();
    std::fs::copy(other.mis.ca_file(), &file).unwrap();
    world.device.start();
    world.device.wait_for_error("authenticated by the operating system's store only");
    let mut answers = world.seen(Endpoint::Discovery).into_iter().filter_map(|entry| entry.status);
    assert_eq!(answers.next_back(), Some(304));
}

#[test]
fn replaced_ca_file_is_used_for_the_next_connection() {
    let (other, mut world) = (World::new(), World::new());
    let file = world.device.path("ca.pem");
    std::fs::copy(world.mis.ca_file(), &file).unwrap();
    world.device.configure(&trusting(&world, &ca_line(&file)));
    world.device.start();
    world.device.wait_for("active");

    // A good one, of another CA: it counts, though it locks this server out.
    std::fs::copy(other.mis.ca_file(), &file).unwrap();
    world.device.wait_for_error("unknown issuer");
    std::fs::copy(world.mis.ca_file(), &file).unwrap();
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
}

#[test]
fn replaced_pins_are_used_after_the_reload() {
    let mut world = World::new();
    let (good, other) = (pin(&world, &world.mis.server_cert()), pin(&world, &world.mis.factory_cert()));
    world.device.configure(&trusting(&world, &pins(&[&good])));
    world.device.start();
    world.device.wait_for("active");
    world.device.configure(&trusting(&world, &pins(&[&other])));
    world.device.signal("HUP");
    world.device.wait_for_error(&good); // the one that the server shows, to compare
    world.device.configure(&trusting(&world, &pins(&[&other, &good])));
    world.device.signal("HUP");
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
}

#[test]
fn bad_ca_file_keeps_the_last_good_trust_and_is_shown() {
    let mut world = World::new();
    let file = world.device.path("ca.pem");
    std::fs::copy(world.mis.ca_file(), &file).unwrap();
    world.device.configure(&trusting(&world, &ca_line(&file)));
    world.device.start();
    world.device.wait_for("active");
    let said = |device: &Device, what: &str| device.log().matches(what).count();
    let (bad, good) = ("The new trust for the MIS cannot be used", "can be used again");

    std::fs::write(&file, "garbage").unwrap();
    let status = world.device.wait_for_error("stays in use");
    assert_eq!(status["lastError"]["code"], "trust-not-replaced", "{status:#}");
    assert_eq!(status["state"], "active");
    let seen = world.seen(Endpoint::Bundle).len();
    world.wait_for_requests(Endpoint::Bundle, seen + 2); // the MIS is still authenticated, by the one before
    assert_eq!(said(&world.device, bad), 1, "once, not at every use");

    // A reload does not lose it, whether of the same configuration or of one that names a missing
    // file.
    world.device.signal("HUP");
    world.device.wait_until("it is read", |device| said(device, "has been read anew") == 1);
    let seen = world.seen(Endpoint::Bundle).len();
    world.wait_for_requests(Endpoint::Bundle, seen + 2);
    world.device.configure(&trusting(&world, &ca_line(&world.device.path("missing.pem"))));
    world.device.signal("HUP");
    world.device.wait_for_error("missing.pem");
    let seen = world.seen(Endpoint::Bundle).len();
    world.wait_for_requests(Endpoint::Bundle, seen + 2);
    assert_eq!((said(&world.device, bad), said(&world.device, good)), (2, 0), "{}", world.device.log());

    std::fs::copy(world.mis.ca_file(), world.device.path("missing.pem")).unwrap();
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
    assert_eq!(said(&world.device, good), 1);
}

#[test]
fn trust_of_one_mis_is_not_used_for_another() {
    let (world, other) = (World::enrolled(), World::new());
    let config = world::config(&other.mis, &world.tpm, "");
    let (bad, there) = (ca_line(Path::new("/nonexistent/ca.pem")), ca_line(&other.mis.ca_file()));
    world.device.configure(&config.replace(&there, &bad));
    world.device.signal("HUP");
    world.device.wait_for_status("no trust", |status| {
        status["state"] == "blocked" && status["lastError"].to_string().contains("/nonexistent/ca.pem")
    });
    assert!(other.mis.journal().is_empty() && other.mis.refused_handshakes().is_empty());
}

#[test]
fn bad_ca_file_at_start_blocks_until_corrected() {
    let mut world = World::new();
    let file = world.device.path("ca.pem");
    std::fs::write(&file, "garbage").unwrap();
    world.device.configure(&trusting(&world, &ca_line(&file)));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["detail"].as_str().unwrap().contains("no PEM certificate"), "{status:#}");
    std::fs::copy(world.mis.ca_file(), &file).unwrap();
    world.device.wait_for("active");
}

#[test]
fn untrusted_server_gets_nothing() {
    let other = World::new();
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    let (ours, theirs) = (world.mis.ca_file(), other.mis.ca_file());
    world.device.configure(&config.replace(ours.to_str().unwrap(), theirs.to_str().unwrap()));
    world.device.start();
    world.device.wait_for_error("unknown issuer");
    assert!(world.mis.journal().is_empty());

    // The file is corrected: it counts at the next attempt, without a restart.
    std::fs::copy(&ours, &theirs).unwrap();
    world.device.wait_for("active");
}

#[test]
fn invalid_server_certificate_is_refused_with_its_reason() {
    for (fault, why) in [
        (ServerFault::Expired, "has expired"),
        (ServerFault::NotYetValid, "is not valid yet"),
        (ServerFault::SelfSigned, "unknown issuer"),
    ] {
        let mut world = World::with(|settings| settings.server_fault = Some(fault));
        world.device.start();
        world.device.wait_for_error(why);
        assert!(world.mis.journal().is_empty(), "{why}");
    }
}

#[test]
fn host_of_the_url_must_be_in_the_certificate() {
    let mut world = World::with(|settings| settings.hosts = vec!["mis.example".into()]);
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("https://mis.example:", "https://127.0.0.1:"));
    world.device.start();
    world.device.wait_for_error("is not for the name in the URL");
    assert!(world.mis.journal().is_empty());
}

#[test]
fn ip_address_is_matched_by_an_ip_san_only() {
    let mut world = World::with(|settings| settings.hosts = vec!["127.0.0.1".into()]);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.mis.url().contains("127.0.0.1"));
}

/// The other tests are at an address, since there are machines that cannot even resolve
/// "localhost".
#[test]
#[ignore = "needs root: gives the agent a file of hosts of its own"]
fn host_name_is_resolved_and_matched() {
    const HOST: &str = "mis.factory.example";
    const WITH_HOSTS: &str = "cp -a /etc \"$ETC\" && mount --bind \"$ETC\" /etc \
        && rm -f /etc/hosts /etc/nsswitch.conf && echo \"127.0.0.1 $NAME\" >/etc/hosts \
        && echo 'hosts: files' >/etc/nsswitch.conf && exec \"$0\" \"$@\"";
    let mut world = World::with(|settings| settings.hosts = vec![HOST.into()]);
    let etc = world.device.path("etc");
    world.device.environment("ETC", etc.to_str().unwrap());
    world.device.environment("NAME", HOST);
    world.device.under(&["unshare", "--mount", "sh", "-c", WITH_HOSTS]);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.mis.url().contains(HOST));
}
