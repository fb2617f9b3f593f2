//! Programs that are clients, with OpenSSL in them.

use crate::device::{Device, READER, SIGNER, leaf_in};
use crate::page;
use crate::peer::Peer;

/// Checks that these commands reach the peer as the device, before and after a rotation.
fn reach_the_peer(commands: &str) {
    let device = Device::renewing();
    let peer = Peer::start(&device);
    let first = device.leaf();
    let mut last = String::new();
    let mut reach = || {
        let before = device.leaf();
        let output = device.run(SIGNER, &peer.here(commands));
        let answer = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{answer}\n{errors}");
        assert!(answer.contains("Protocol  : TLSv1.3"), "{answer}");
        assert!(answer.contains("Verify return code: 0 (ok)"), "{answer}");
        assert!(answer.contains(&format!("URI:{}", device.spiffe_id())), "{answer}");
        last = leaf_in(&answer).expect("the peer shows the client's certificate");
        assert!([before, device.leaf()].contains(&last), "this is neither the identity before nor after");
    };
    device.until_it_rotates(&mut reach);
    reach();
    assert_ne!(last, first, "the new identity is not used");
    device.is_content();
}

#[test]
#[ignore = "needs root: programs are run as another user"]
fn openssl() {
    reach_the_peer(&page::block("sh openssl"));
}

#[test]
#[ignore = "needs root: programs are run as another user"]
fn curl() {
    reach_the_peer(&page::block("sh curl"));
}

#[test]
#[ignore = "needs root: programs are run as another user"]
fn python() {
    reach_the_peer(&python_program("python wfm"));
}

/// The program as a shell command.
fn python_program(block: &str) -> String {
    format!("exec /usr/bin/python3 - <<'PROGRAM'\n{}PROGRAM\n", page::block(block))
}

#[test]
#[ignore = "needs root: programs are run as another user"]
fn each_group_counts() {
    let device = Device::renewing();
    let peer = Peer::start(&device);
    let commands = peer.here(&page::block("sh curl"));
    for missing in SIGNER {
        let others: Vec<&str> = SIGNER.iter().copied().filter(|group| group != missing).collect();
        let output = device.run(&others, &commands);
        assert!(!output.status.success(), "without the group {missing} it works, too");
    }
    assert!(device.run(SIGNER, &commands).status.success());
    // To read, one is enough.
    let output = device.run(READER, "cat /var/lib/miaf-agent/svid/device/current/svid.pem");
    assert_eq!(leaf_in(&String::from_utf8(output.stdout).unwrap()).unwrap(), device.leaf());
}
