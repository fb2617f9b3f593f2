//! Tests of the published files.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::generations::generation;
use super::*;
use crate::hint::Hint as _;
use crate::keys::software::Software;
use crate::keys::{Key, KeyError, KeyFile, ProviderKind, PublicKey};
use miaf_spiffe::TrustDomain;
use miaf_spiffe::svid::{Chain, X509Svid};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn bundle(sequence: u64) -> Bundle {
    let served = format!(r#"{{"keys":[],"spiffe_sequence":{sequence}}}"#);
    Bundle::from_stored(served.as_bytes(), &TrustDomain::parse("factory.example").unwrap()).unwrap()
}

fn polled(bundle: &Bundle) -> BundleToPublish<'_> {
    BundleToPublish { bundle, refresh_interval: Duration::from_secs(300) }
}

fn identity() -> SvidAndKey {
    identity_with(Arc::new(Tss2))
}

fn identity_with(key: Arc<dyn Key>) -> SvidAndKey {
    named("/margo/device/123e4567-e89b-42d3-a456-426614174000", key)
}

fn named(path: &str, key: Arc<dyn Key>) -> SvidAndKey {
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let id = format!("spiffe://factory.example{path}");
    params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
    let chain = Chain::from_pem(&[params.self_signed(&pair).unwrap().pem()]).unwrap();
    SvidAndKey { svid: X509Svid::from_stored(chain).unwrap(), key, credential: None }
}

/// A key in the TPM, as the publisher uses it.
#[derive(Debug)]
struct Tss2;

impl Key for Tss2 {
    fn public_key(&self) -> &PublicKey {
        unreachable!()
    }
    fn sign_digest(&self, _: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        unreachable!()
    }
    fn protection(&self) -> Protection {
        Protection::Hardware
    }
    fn provider(&self) -> ProviderKind {
        ProviderKind::Tpm
    }
    fn to_pem(&self) -> Result<String, KeyError> {
        unreachable!()
    }
    fn to_key_file(&self) -> Result<KeyFile, KeyError> {
        Ok(KeyFile::Tss2("-----BEGIN TSS2 PRIVATE KEY-----\n".into()))
    }
}

fn software(dir: &Path) -> Arc<dyn Key> {
    Arc::new(Software::new(None, dir.join("kek")).create_key().unwrap())
}

fn publisher(dir: &Path) -> Publisher {
    publisher_with(dir, None)
}

fn publisher_with(dir: &Path, software_key_dir: Option<&Path>) -> Publisher {
    Publisher::new(&config(dir, software_key_dir), &files_of("device"))
}

fn files_of(name: &str) -> IdentityFiles {
    let name = IdentityName::parse(name).unwrap();
    IdentityFiles { name, group: None, key_group: None, publish_intermediates: false }
}

fn config(dir: &Path, software_key_dir: Option<&Path>) -> config::FilesConfig {
    config::FilesConfig {
        dir: dir.join("svid"),
        is_own: true,
        group: None,
        key_group: None,
        software_key_dir: software_key_dir.map(Path::to_owned),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Path and content of every file and link below a directory, itself not followed.
fn everything_in(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for name in names(dir) {
        let path = dir.join(name);
        let is = fs::symlink_metadata(&path).unwrap();
        if is.is_dir() {
            all.push((path.clone(), Vec::new()));
            all.extend(everything_in(&path));
        } else if is.is_symlink() {
            all.push((path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
        } else {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn same_content_is_published_once_also_across_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let identity = identity();
    let mut first = publisher(root.path());
    assert_eq!(first.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap(), Some(1));
    assert_eq!(first.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap(), Some(1));
    let mut after_restart = publisher(root.path());
    assert_eq!(after_restart.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap(), Some(1));
    assert_eq!(after_restart.publish(Some(&identity), Some(polled(&bundle(2))), NOW).unwrap(), Some(2));
}

#[test]
fn generation_is_whole_or_absent() {
    let root = tempfile::tempdir().unwrap();
    let mut publisher = publisher(root.path());
    assert_eq!(publisher.publish(None, Some(polled(&bundle(1))), NOW).unwrap(), None);
    assert_eq!(publisher.publish(Some(&identity()), None, NOW).unwrap(), None);
    assert!(!root.path().join("svid").exists());
}

#[test]
fn previous_generation_stays_and_older_ones_go() {
    let root = tempfile::tempdir().unwrap();
    let mut publisher = publisher(root.path());
    let identity = identity();
    for sequence in 1..=4 {
        publisher.publish(Some(&identity), Some(polled(&bundle(sequence))), NOW).unwrap();
    }
    assert_eq!(names(&root.path().join("svid")), ["device"]);
    let dir = root.path().join("svid/device");
    assert_eq!(names(&dir), ["3", "4", "current"]);
    assert_eq!(fs::read_link(dir.join("current")).unwrap(), Path::new("4"));
    assert_eq!((mode(&root.path().join("svid")), mode(&dir)), (0o750, 0o750));
}

#[test]
fn torn_generations_are_replaced_or_removed() {
    let root = tempfile::tempdir().unwrap();
    let identity = identity();
    publisher(root.path()).publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap();
    let dir = root.path().join("svid/device");
    fs::create_dir(dir.join(".2.new")).unwrap();
    symlink("9", dir.join(".current.new")).unwrap();
    fs::write(dir.join("1/bundle.pem"), "torn").unwrap();
    assert_eq!(
        publisher(root.path()).publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap(),
        Some(2)
    );
    assert_eq!(names(&dir), ["1", "2", "current"]);
}

#[test]
fn software_key_is_published_on_tmpfs_or_not_at_all() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let keys = memory.path().join("keys");
    let identity = identity_with(software(disk.path()));
    let current = |dir: &Path| names(&dir.join("device/current"));
    let public = ["bundle.json", "bundle.pem", "identity.json", "svid.pem"];

    publisher(disk.path()).publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap();
    assert_eq!(current(&disk.path().join("svid")), public);

    let mut with_keys = publisher_with(disk.path(), Some(&keys));
    with_keys.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap();
    assert_eq!(current(&disk.path().join("svid")), public);
    assert_eq!(
        current(&keys),
        ["bundle.json", "bundle.pem", "identity.json", "key.pem", "svid-with-key.pem", "svid.pem"]
    );
    let key = keys.join("device/current/key.pem");
    assert!(fs::read_to_string(&key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!((mode(&key), mode(&keys), mode(&keys.join("device"))), (0o640, 0o750, 0o750));

    let exposed = memory.path().join("exposed");
    fs::create_dir_all(exposed.join("device")).unwrap();
    let publish_in_exposed = || {
        publisher_with(disk.path(), Some(&exposed)).publish(Some(&identity), Some(polled(&bundle(1))), NOW)
    };
    // Others may write in the configured directory, and in the identity's.
    for (parent, own) in [(0o777, 0o755), (0o775, 0o755), (0o755, 0o777), (0o755, 0o770)] {
        fs::set_permissions(&exposed, fs::Permissions::from_mode(parent)).unwrap();
        fs::set_permissions(exposed.join("device"), fs::Permissions::from_mode(own)).unwrap();
        let refused = publish_in_exposed().unwrap_err();
        assert!(matches!(refused, PublishError::Exposed { .. }), "{refused}");
        assert_eq!(names(&exposed), ["device"]);
        assert!(names(&exposed.join("device")).is_empty());
    }
    fs::set_permissions(exposed.join("device"), fs::Permissions::from_mode(0o755)).unwrap();
    publish_in_exposed().unwrap();

    let elsewhere = disk.path().join("keys");
    let mut on_disk = publisher_with(disk.path(), Some(&elsewhere));
    let refused = on_disk.publish(Some(&identity), Some(polled(&bundle(2))), NOW).unwrap_err();
    assert!(matches!(refused, PublishError::Persistent { .. }), "{refused}");
    assert!(names(&elsewhere).is_empty());
    assert_eq!(current(&disk.path().join("svid")), public);
}

#[test]
fn software_key_is_not_published_by_a_symbolic_link() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let (keys, target) = (memory.path().join("keys"), memory.path().join("target"));
    fs::create_dir(&target).unwrap();
    symlink(&target, &keys).unwrap();
    let identity = identity_with(software(disk.path()));
    let mut publisher = publisher_with(disk.path(), Some(&keys));
    let refused = publisher.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap_err();
    assert!(matches!(refused, PublishError::Link { .. }), "{refused}");
    assert!(names(&target).is_empty());
    // Changed to a link after the first publication, which was as it should be.
    fs::remove_file(&keys).unwrap();
    publisher.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap();
    fs::rename(&keys, memory.path().join("moved")).unwrap();
    symlink(&target, &keys).unwrap();
    let refused = publisher.publish(Some(&identity), Some(polled(&bundle(2))), NOW).unwrap_err();
    assert!(matches!(refused, PublishError::Link { .. }), "{refused}");
    assert!(matches!(publisher.withdraw_secrets().unwrap_err(), PublishError::Link { .. }));
    assert!(names(&target).is_empty());
}

#[test]
fn link_in_place_of_the_identitys_key_directory_is_refused() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let (keys, target) = (memory.path().join("keys"), memory.path().join("target"));
    fs::create_dir(&keys).unwrap();
    // What looks like something that was published, also by this agent.
    publisher_with(disk.path(), Some(&target))
        .publish(Some(&identity_with(software(disk.path()))), Some(polled(&bundle(1))), NOW)
        .unwrap();
    let before = everything_in(&target);
    let identity = identity_with(software(disk.path()));
    let mut publisher = publisher_with(disk.path(), Some(&keys));
    let link = keys.join("device");
    for to in [target.join("device"), PathBuf::from("../target/device"), PathBuf::from("nowhere")] {
        symlink(&to, &link).unwrap();
        let refused = publisher.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap_err();
        assert!(matches!(&refused, PublishError::Link { dir } if *dir == link), "{refused}");
        assert!(matches!(publisher.withdraw_secrets().unwrap_err(), PublishError::Link { .. }));
        assert!(matches!(publisher.withdraw().unwrap_err(), PublishError::Link { .. }));
        assert_eq!((everything_in(&target), names(&keys)), (before.clone(), vec!["device".to_owned()]));
        fs::remove_file(&link).unwrap();
    }
    // Changed to a link after the first publication, which was as it should be.
    publisher.publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap();
    fs::rename(&link, memory.path().join("moved")).unwrap();
    symlink(target.join("device"), &link).unwrap();
    let refused = publisher.publish(Some(&identity), Some(polled(&bundle(2))), NOW).unwrap_err();
    assert!(matches!(refused, PublishError::Link { .. }), "{refused}");
    assert_eq!(everything_in(&target), before);
}

#[test]
fn link_in_place_of_the_identitys_directory_is_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let (link, target) = (root.path().join("svid/device"), root.path().join("target"));
    let mut publisher = publisher(root.path());
    publisher.publish(Some(&identity()), Some(polled(&bundle(1))), NOW).unwrap();
    fs::rename(&link, &target).unwrap();
    symlink(&target, &link).unwrap();
    let before = everything_in(&target);
    let refused = publisher.publish(Some(&identity()), Some(polled(&bundle(2))), NOW).unwrap_err();
    assert!(refused.to_string().contains("svid/device: it is a symbolic link"), "{refused}");
    // The files that other programs read are still there, so it must not say that they are not.
    let refused = publisher.withdraw().unwrap_err();
    assert!(refused.to_string().contains("svid/device: it is a symbolic link"), "{refused}");
    assert_eq!(everything_in(&target), before);
    // The configured directory itself may be a link, which is the operator's.
    fs::remove_file(&link).unwrap();
    fs::rename(root.path().join("svid"), root.path().join("elsewhere")).unwrap();
    symlink("elsewhere", root.path().join("svid")).unwrap();
    assert_eq!(publisher.publish(Some(&identity()), Some(polled(&bundle(2))), NOW).unwrap(), Some(1));
    assert!(root.path().join("elsewhere/device/current/svid.pem").exists());
}

#[test]
fn error_names_the_directory_that_is_to_be_corrected() {
    let root = tempfile::tempdir().unwrap();
    let files = publisher(root.path()).files;
    let (dir, own) = (root.path().join("svid"), root.path().join("svid/device"));
    fs::create_dir_all(&own).unwrap();
    let failed = |errno: Errno| files.failed(&own, errno.into()).with_hint().to_string();
    let denied = failed(Errno::EACCES);
    assert!(denied.contains(&format!("under {}: ", own.display())), "{denied}");
    // The identities that are configured later are to be published, too.
    let read_only = failed(Errno::EROFS);
    assert!(read_only.contains(&format!("ReadWritePaths={} ", dir.display())), "{read_only}");
}

#[test]
fn generation_has_the_name_that_the_agent_writes() {
    assert_eq!(generation("7"), Some(7));
    for name in ["", "007", "+7", "-7", "7 ", "18446744073709551616", "current"] {
        assert_eq!(generation(name), None, "{name:?}");
    }
    let root = tempfile::tempdir().unwrap();
    let mut publisher = publisher(root.path());
    fs::create_dir_all(root.path().join(format!("svid/device/{}", u64::MAX))).unwrap();
    let refused = publisher.publish(Some(&identity()), Some(polled(&bundle(1))), NOW).unwrap_err();
    assert!(refused.to_string().contains("no higher number"), "{refused}");
}

#[test]
fn error_has_one_hint_apart_from_its_message() {
    let dir = || PathBuf::from("/run/keys/device");
    let denied = io::Error::from_raw_os_error(Errno::EACCES as i32);
    for error in [
        PublishError::Files { dir: dir(), is_own: true, source: denied },
        PublishError::Key { dir: dir(), why: KeyError::Internal("x".into()) },
        PublishError::Persistent { dir: dir() },
        PublishError::Link { dir: dir() },
        PublishError::Exposed { dir: dir() },
    ] {
        crate::hint::assert_apart(&error);
    }
}

#[test]
fn other_identities_are_untouched() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let config = config(disk.path(), Some(memory.path()));
    let of = |name: &str| (Publisher::new(&config, &files_of(name)), identity_with(software(disk.path())));
    let ((mut device, first), (mut line, second)) = (of("device"), of("line-2"));
    let dirs = [disk.path().join("svid"), memory.path().to_owned()];
    let content = |name: &str| dirs.clone().map(|dir| everything_in(&dir.join(name)));
    assert_eq!(device.publish(Some(&first), Some(polled(&bundle(1))), NOW).unwrap(), Some(1));
    let of_device = content("device");
    // Each counts its own generations.
    for sequence in 1..=3 {
        let generation = line.publish(Some(&second), Some(polled(&bundle(sequence))), NOW).unwrap();
        assert_eq!(generation, Some(sequence));
    }
    assert_eq!(content("device"), of_device);
    let of_line = content("line-2");
    assert_eq!(device.publish(Some(&first), Some(polled(&bundle(2))), NOW).unwrap(), Some(2));
    assert_eq!(content("line-2"), of_line);
    // A secret that is withdrawn, or replaced by a key in the TPM, and a retired identity.
    device.withdraw_secrets().unwrap();
    device.publish(Some(&identity()), Some(polled(&bundle(2))), NOW).unwrap();
    device.withdraw().unwrap();
    assert_eq!(content("line-2"), of_line);
    assert_eq!(names(&disk.path().join("svid/device")), ["4"]);
    assert!(names(&memory.path().join("device")).is_empty());
    // Nor does it matter what the directory of one of them has become.
    fs::remove_dir_all(memory.path().join("device")).unwrap();
    symlink("line-2", memory.path().join("device")).unwrap();
    device.publish(Some(&first), Some(polled(&bundle(3))), NOW).unwrap_err();
    device.withdraw().unwrap_err();
    assert_eq!(content("line-2"), of_line);
    assert_eq!(line.publish(Some(&second), Some(polled(&bundle(4))), NOW).unwrap(), Some(4));
}

#[test]
#[ignore = "needs root: gives directories to groups, and one to another user"]
fn both_directories_belong_to_the_configured_group() {
    use std::os::unix::fs::MetadataExt as _;
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let keys = memory.path().join("keys");
    let identity = identity_with(software(disk.path()));
    let dirs = || [disk.path().join("svid"), keys.clone()].map(|dir| [dir.join("device"), dir]);
    // Groups that every Debian has. Another one in the configuration applies to both, too.
    for (group, gid) in [("users", 100), ("games", 60)] {
        let config = config::FilesConfig { group: Some(group.into()), ..config(disk.path(), Some(&keys)) };
        Publisher::new(&config, &files_of("device"))
            .publish(Some(&identity), Some(polled(&bundle(1))), NOW)
            .unwrap();
        for dir in dirs().concat() {
            assert_eq!((fs::metadata(&dir).unwrap().gid(), mode(&dir)), (gid, 0o750), "{dir:?}");
        }
    }
    // Another user could replace what is in its directory.
    let mut publisher = publisher_with(disk.path(), Some(&keys));
    let before = everything_in(&keys);
    nix::unistd::chown(&keys.join("device"), Some(4_000_001.into()), None).unwrap();
    let refused = publisher.publish(Some(&identity), Some(polled(&bundle(2))), NOW).unwrap_err();
    assert!(matches!(&refused, PublishError::Exposed { dir } if *dir == keys.join("device")), "{refused}");
    // Nor is a key in it taken for withdrawn.
    for refused in [publisher.withdraw_secrets(), publisher.withdraw()] {
        assert!(matches!(refused, Err(PublishError::Exposed { .. })), "{refused:?}");
    }
    assert_eq!(everything_in(&keys), before);
    fs::remove_file(keys.join("device/current")).unwrap();
    publisher.withdraw_secrets().unwrap();
}

#[test]
#[ignore = "needs root: mounts"]
fn software_key_is_not_published_on_a_mounted_disk() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let place = memory.path().join("device");
    fs::create_dir(&place).unwrap();
    let persistent = disk.path().join("persistent");
    fs::create_dir(&persistent).unwrap();
    let run = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
    run(std::process::Command::new("mount").arg("--bind").args([&persistent, &place]));
    let published = publisher_with(disk.path(), Some(memory.path())).publish(
        Some(&identity_with(software(disk.path()))),
        Some(polled(&bundle(1))),
        NOW,
    );
    run(std::process::Command::new("umount").arg(&place));
    let refused = published.unwrap_err();
    assert!(matches!(&refused, PublishError::Persistent { dir } if *dir == place), "{refused}");
    assert!(names(&persistent).is_empty());
}

#[test]
fn key_file_that_is_a_link_or_a_pipe_is_replaced() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let identity = identity_with(software(disk.path()));
    let publish = || {
        publisher_with(disk.path(), Some(memory.path()))
            .publish(Some(&identity), Some(polled(&bundle(1))), NOW)
            .unwrap();
        fs::read_link(memory.path().join("device/current")).unwrap().to_str().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!((publish(), publish()), (1, 1));
    let spoilers: [fn(&Path, &Path); 4] = [
        |key, other| symlink(other, key).unwrap(),
        |key, other| fs::hard_link(other, key).unwrap(),
        |key, _| nix::unistd::mkfifo(key, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        |key, _| fs::create_dir(key).unwrap(),
    ];
    for (number, spoil) in (2..).zip(spoilers) {
        let (key, other) = (memory.path().join("device/current/key.pem"), memory.path().join("other"));
        let _ = fs::remove_file(&other);
        fs::rename(&key, &other).unwrap(); // the same content, mode and owner
        spoil(&key, &other);
        assert_eq!(publish(), number);
        let published = fs::symlink_metadata(&key).unwrap();
        assert!(published.is_file() && std::os::unix::fs::MetadataExt::nlink(&published) == 1);
    }
}

#[test]
fn software_key_is_withdrawn_when_the_key_is_in_the_tpm() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let mut publisher = publisher_with(disk.path(), Some(memory.path()));
    publisher.publish(Some(&identity_with(software(disk.path()))), Some(polled(&bundle(1))), NOW).unwrap();
    assert!(memory.path().join("device/current/key.pem").exists());
    // A power cut in the middle of an earlier attempt, and of the publication before it.
    fs::remove_file(memory.path().join("device/current")).unwrap();
    fs::create_dir(memory.path().join("device/.2.new")).unwrap();
    publisher.publish(Some(&identity()), Some(polled(&bundle(1))), NOW).unwrap();
    assert_eq!(names(memory.path()), ["device"]);
    assert!(names(&memory.path().join("device")).is_empty());
    assert!(disk.path().join("svid/device/current/key.pem").exists());
}

#[test]
fn withdrawn_generation_number_is_not_reused() {
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let mut publisher = publisher_with(disk.path(), Some(memory.path()));
    publisher.withdraw().unwrap();
    assert!(!disk.path().join("svid").exists(), "there was nothing to withdraw");
    let identity = identity_with(software(disk.path()));
    for sequence in 1..=2 {
        publisher.publish(Some(&identity), Some(polled(&bundle(sequence))), NOW).unwrap();
    }
    publisher.withdraw().unwrap();
    let dir = disk.path().join("svid/device");
    assert_eq!(names(&dir), ["3"]);
    assert!(names(&dir.join("3")).is_empty() && names(&memory.path().join("device")).is_empty());
    // The same content is another publication.
    assert_eq!(publisher.publish(Some(&identity), Some(polled(&bundle(2))), NOW).unwrap(), Some(4));
    assert_eq!(names(&dir), ["4", "current"]);
    assert!(memory.path().join("device/current/key.pem").exists());
}

const CLIENT: &str = "/margo/wfm/wfm-1/client/line-2";

/// A WFM Client's identity from a hierarchy of CAs below a root: leaf, then each issuer but the
/// root, and the root. `unrelated` is appended to the chain.
fn client_below(issuers: usize, unrelated: bool) -> (SvidAndKey, rcgen::Certificate) {
    let root_key = rcgen::KeyPair::generate().unwrap();
    let ca = |name: &str| {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params
    };
    let root = ca("root").self_signed(&root_key).unwrap();
    let (mut issuer, mut issuer_key, mut chain) = (ca("root"), root_key, Vec::new());
    for number in 0..issuers {
        let (params, key) = (ca(&format!("issuer {number}")), rcgen::KeyPair::generate().unwrap());
        let signer = rcgen::Issuer::from_params(&issuer, &issuer_key);
        chain.insert(0, params.signed_by(&key, &signer).unwrap().pem());
        (issuer, issuer_key) = (params, key);
    }
    let mut params = rcgen::CertificateParams::default();
    let id = format!("spiffe://factory.example{CLIENT}");
    params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &rcgen::Issuer::from_params(&issuer, &issuer_key)).unwrap();
    chain.insert(0, leaf.pem());
    if unrelated {
        let key = rcgen::KeyPair::generate().unwrap();
        chain.push(ca("unrelated").self_signed(&key).unwrap().pem());
    }
    let svid = X509Svid::from_stored(Chain::from_pem(&chain).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    (SvidAndKey { svid, key: software(dir.path()), credential: None }, root)
}

fn bundle_of(anchors: &[&rcgen::Certificate]) -> Bundle {
    use base64::Engine as _;
    let keys: Vec<_> = anchors
        .iter()
        .map(|anchor| {
            let x5c = base64::engine::general_purpose::STANDARD.encode(anchor.der());
            serde_json::json!({ "kty": "EC", "use": "x509-svid", "x5c": [x5c] })
        })
        .collect();
    let served = serde_json::json!({ "keys": keys }).to_string();
    Bundle::from_stored(served.as_bytes(), &TrustDomain::parse("factory.example").unwrap()).unwrap()
}

fn bundle_json(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("current/bundle.json")).unwrap()).unwrap()
}

#[test]
fn wfm_of_a_client_is_authorized_beside_the_generations() {
    let root = tempfile::tempdir().unwrap();
    let (dir, file) = (root.path().join("svid/device"), root.path().join("svid/device/authorized.json"));
    let client = |path: &str| named(path, Arc::new(Tss2));
    let mut publisher = publisher(root.path());
    publisher.publish(Some(&client(CLIENT)), Some(polled(&bundle(1))), NOW).unwrap();
    assert_eq!(fs::read(&file).unwrap(), br#"["spiffe://factory.example/margo/wfm/wfm-1"]"#);
    assert_eq!(
        (mode(&file), names(&dir)),
        (0o640, ["1", "authorized.json", "current"].map(Into::into).into())
    );
    // The same one is the same file for a program that watches it, also after a restart.
    let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file).unwrap());
    let before = inode();
    publisher.publish(Some(&client(CLIENT)), Some(polled(&bundle(2))), NOW).unwrap();
    self::publisher(root.path()).publish(Some(&client(CLIENT)), Some(polled(&bundle(3))), NOW).unwrap();
    assert_eq!(inode(), before);
    // Another WFM replaces it, by a rename.
    publisher.publish(Some(&client("/margo/wfm/wfm-2/client/x")), Some(polled(&bundle(3))), NOW).unwrap();
    assert_eq!(fs::read(&file).unwrap(), br#"["spiffe://factory.example/margo/wfm/wfm-2"]"#);
    assert_ne!(inode(), before);
    assert!(names(&dir).iter().all(|name| !name.starts_with('.')), "{:?}", names(&dir));
    // Whoever is no WFM Client (any more) has none.
    publisher.publish(Some(&identity()), Some(polled(&bundle(3))), NOW).unwrap();
    assert!(!file.exists());
    publisher.publish(Some(&client(CLIENT)), Some(polled(&bundle(3))), NOW).unwrap();
    assert!(file.exists());
    publisher.withdraw().unwrap();
    assert!(!file.exists());
}

#[test]
fn authorized_file_that_is_not_the_agents_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("svid/device/authorized.json");
    let other = root.path().join("other");
    let client = named(CLIENT, Arc::new(Tss2));
    let publish = || publisher(root.path()).publish(Some(&client), Some(polled(&bundle(1))), NOW);
    publish().unwrap();
    let good = fs::read(&file).unwrap();
    let spoilers: [fn(&Path, &Path); 6] = [
        |file, other| symlink(other, file).unwrap(),
        |file, other| fs::hard_link(other, file).unwrap(),
        |file, _| nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        |file, _| fs::create_dir_all(file.join("nested")).unwrap(),
        |file, _| fs::write(file, "[]").unwrap(),
        |file, other| {
            fs::write(other.with_file_name("svid/device/.authorized.json.new"), "torn").unwrap();
            fs::write(file, "[").unwrap();
        },
    ];
    for spoil in spoilers {
        let _ = fs::remove_file(&other);
        fs::rename(&file, &other).unwrap(); // the same content, mode and owner
        spoil(&file, &other);
        assert_eq!(publish().unwrap(), Some(1), "it is in no generation");
        assert_eq!((fs::read(&file).unwrap(), fs::read(&other).unwrap()), (good.clone(), good.clone()));
        let is = fs::symlink_metadata(&file).unwrap();
        assert!(is.is_file() && std::os::unix::fs::MetadataExt::nlink(&is) == 1);
    }
}

/// The released client refuses a whole bundle for one key without these.
#[test]
fn keys_of_bundle_json_are_readable_to_released_clients() {
    let (root, now) = (tempfile::tempdir().unwrap(), Timestamp::from_secs(1_790_000_000));
    let (client, anchor) = client_below(1, false);
    let files = IdentityFiles { publish_intermediates: true, ..files_of("device") };
    let mut publisher = Publisher::new(&config(root.path(), None), &files);
    publisher.publish(Some(&client), Some(polled(&bundle_of(&[&anchor]))), now).unwrap();
    let bundle = bundle_json(&root.path().join("svid/device"));
    let keys = bundle["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys {
        assert_eq!(
            (&key["kty"], &key["use"], &key["crv"]),
            (&"EC".into(), &"x509-svid".into(), &"P-256".into())
        );
        for coordinate in ["x", "y"] {
            use base64::Engine as _;
            let value = key[coordinate].as_str().unwrap();
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(value).unwrap();
            assert_eq!(bytes.len(), 32, "{key}");
        }
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
    }
    assert!(bundle["keys"].is_array() && bundle.get("trust_domains").is_none(), "a plain bundle");
}

#[test]
fn bundle_json_has_a_refresh_hint() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("svid/device");
    publisher(root.path()).publish(Some(&identity()), Some(polled(&bundle(1))), NOW).unwrap();
    assert_eq!(bundle_json(&dir)["spiffe_refresh_hint"], 300, "the interval of the agent");
    let served = br#"{"keys":[],"spiffe_refresh_hint":17}"#;
    let hinted = Bundle::from_stored(served, &TrustDomain::parse("factory.example").unwrap()).unwrap();
    publisher(root.path()).publish(Some(&identity()), Some(polled(&hinted)), NOW).unwrap();
    assert_eq!(bundle_json(&dir)["spiffe_refresh_hint"], 17, "that of the MIS");
}

#[test]
fn issuers_of_the_svid_are_in_bundle_json_if_configured() {
    let (root, now) = (tempfile::tempdir().unwrap(), Timestamp::from_secs(1_790_000_000));
    let dir = root.path().join("svid/device");
    let config = config(root.path(), None);
    let (client, anchor) = client_below(2, true);
    let chain = client.svid.chain().certificates();
    let publish = |publish_intermediates: bool, bundle: &Bundle, at: Timestamp| {
        let files = IdentityFiles { publish_intermediates, ..files_of("device") };
        Publisher::new(&config, &files).publish(Some(&client), Some(polled(bundle)), at).unwrap();
        let keys = bundle_json(&dir)["keys"].as_array().unwrap().clone();
        let elements = keys.iter().map(|key| key["x5c"].as_array().unwrap().clone());
        let elements = elements.map(|x5c| <[serde_json::Value; 1]>::try_from(x5c).expect("one element"));
        elements.map(|[der]| der.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let base64 = |der: &[u8]| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(der)
    };
    let trusted = bundle_of(&[&anchor]);
    assert_eq!(publish(false, &trusted, now), [base64(anchor.der())]);
    // What the chain has besides is no issuer, and the MIS has never vouched for it.
    let expected = [anchor.der().as_ref(), &chain[1], &chain[2]].map(base64);
    assert_eq!(publish(true, &trusted, now), expected);
    assert_eq!(fs::read_to_string(dir.join("current/bundle.pem")).unwrap(), trusted.to_pem());
    // Once the MIS has withdrawn the anchor, they lead to none.
    let (_, other) = client_below(0, false);
    assert_eq!(publish(true, &bundle_of(&[&other]), now), [base64(other.der())]);
    assert!(publish(true, &bundle(7), now).is_empty());
}

#[test]
fn svid_that_released_clients_refuse_is_warned_about_once() {
    let root = tempfile::tempdir().unwrap();
    let (direct, direct_root) = client_below(0, false);
    let (below, below_root) = client_below(1, false);
    let in_tpm = SvidAndKey { key: Arc::new(Tss2), ..below.clone() };
    let now = Timestamp::from_secs(1_790_000_000);
    let warns = |publish_intermediates: bool, identity: &SvidAndKey, anchors: &[&rcgen::Certificate]| {
        let files = IdentityFiles { publish_intermediates, ..files_of("device") };
        let mut publisher = Publisher::new(&config(root.path(), None), &files);
        publisher.publish(Some(identity), Some(polled(&bundle_of(anchors))), now).unwrap();
        publisher.warned.is_some()
    };
    assert!(warns(false, &below, &[&below_root]));
    assert!(!warns(true, &below, &[&below_root]), "its issuer is published");
    assert!(!warns(false, &direct, &[&direct_root]));
    assert!(!warns(false, &in_tpm, &[&below_root]), "no released client can use its key");
    assert!(!warns(false, &below, &[]), "that is another error");
    let device = identity_with(software(root.path()));
    assert!(!warns(false, &device, &[&below_root]), "no released client is a device");
}

#[test]
fn readers_of_another_group_reach_their_directory() {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path(), None);
    let publish = |group: Option<&str>| {
        let files = IdentityFiles { group: group.map(Into::into), ..files_of("device") };
        Publisher::new(&config, &files).publish(Some(&identity()), Some(polled(&bundle(1))), NOW)
    };
    let dir = root.path().join("svid");
    publish(None).unwrap();
    assert_eq!(mode(&dir), 0o750);
    let own = nix::unistd::Group::from_gid(nix::unistd::getegid()).unwrap().unwrap().name;
    publish(Some(&own)).unwrap();
    assert_eq!(mode(&dir), 0o750, "the group is the same");
    let refused = publish(Some("no-such-group-here")).unwrap_err();
    assert!(refused.to_string().contains("no-such-group-here"), "{refused}");
}

#[test]
#[ignore = "needs root: gives directories to groups"]
fn each_identity_has_its_own_groups() {
    use std::os::unix::fs::MetadataExt as _;
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let keys = memory.path().join("keys");
    let config = config::FilesConfig {
        group: Some("users".into()), // 100, as every Debian has it
        key_group: Some("users".into()),
        ..config(disk.path(), Some(&keys))
    };
    let publish = |name: &str, group: Option<&str>, key_group: Option<&str>| {
        let files = IdentityFiles {
            group: group.map(Into::into),
            key_group: key_group.map(Into::into),
            ..files_of(name)
        };
        let identity = named(CLIENT, software(disk.path()));
        Publisher::new(&config, &files).publish(Some(&identity), Some(polled(&bundle(1))), NOW).unwrap();
    };
    let is = |path: PathBuf| (fs::metadata(&path).unwrap().gid(), mode(&path));
    let of_all = || [disk.path().join("svid"), keys.clone()].map(is);
    publish("device", None, None);
    assert_eq!(of_all(), [(100, 0o750); 2]);
    publish("line-2", Some("games"), Some("tty")); // 60 and 5
    publish("device", None, None); // they take nothing from each other
    assert_eq!(of_all(), [(100, 0o751); 2], "members of games are not in the group users");
    for (name, group, key_group) in [("device", 100, 100), ("line-2", 60, 5)] {
        let (dir, key_dir) = (disk.path().join("svid").join(name), keys.join(name));
        assert_eq!((is(dir.clone()), is(key_dir.clone())), ((group, 0o750), (group, 0o750)), "{name}");
        assert_eq!(is(dir.join("authorized.json")), (group, 0o640), "{name}");
        assert_eq!(is(dir.join("current/svid.pem")), (group, 0o640), "{name}");
        assert_eq!(is(key_dir.join("current/key.pem")), (key_group, 0o640), "{name}");
    }
}

#[test]
#[ignore = "needs root: gives directories to groups"]
fn key_is_not_left_to_a_group_that_may_not_read_it() {
    use std::os::unix::fs::MetadataExt as _;
    let (disk, memory) = (dir_on_disk(), tempfile::tempdir_in("/dev/shm").unwrap());
    let keys = memory.path().join("keys");
    let config = config(disk.path(), Some(&keys));
    let identity = named(CLIENT, software(disk.path()));
    let publish = |key_group: Option<&str>, sequence: u64| {
        let files = IdentityFiles {
            group: Some("users".into()), // 100, as every Debian has it
            key_group: key_group.map(Into::into),
            ..files_of("line-1")
        };
        let mut publisher = Publisher::new(&config, &files);
        publisher.publish(Some(&identity), Some(polled(&bundle(sequence))), NOW).unwrap();
    };
    // Files in such a directory inherit its group.
    fs::create_dir(&keys).unwrap();
    std::os::unix::fs::chown(&keys, None, Some(100)).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o2750)).unwrap();
    let dir = keys.join("line-1");
    let readers_of_keys = || {
        let generations = names(&dir).into_iter().filter(|name| generation(name).is_some());
        let files = generations
            .flat_map(|name| ["key.pem", "svid-with-key.pem"].map(|file| dir.join(&name).join(file)));
        files.map(|file| fs::metadata(&file).unwrap().gid()).collect::<Vec<_>>()
    };
    let own = nix::unistd::getegid().as_raw();
    publish(None, 1);
    assert_eq!(readers_of_keys(), [own, own]);
    publish(None, 1);
    assert_eq!(names(&dir), ["1", "current"], "it is the same");
    publish(Some("users"), 1);
    assert_eq!(readers_of_keys(), [100, 100]);
    publish(Some("users"), 2);
    assert_eq!(readers_of_keys(), [100; 4], "the previous generation is for the same readers");
    publish(None, 2);
    assert_eq!(readers_of_keys(), [own, own], "no key is left to those who may not read it any more");
}

/// The usual directory for temporary files may itself be on a tmpfs.
fn dir_on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}
