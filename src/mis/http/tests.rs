//! Against a real TLS peer: the development MIS.

use super::*;
use crate::config::InitialTrust;
use crate::mis::Mis;
use crate::time::Timestamp;
use development_mis::{Endpoint, Fault, Settings};
use tempfile::TempDir;

fn server() -> (development_mis::Mis, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { folder: folder.path().join("mis"), ..Settings::default() };
    (development_mis::Mis::start(settings).unwrap(), folder)
}

fn client(ca_of: &development_mis::Mis) -> Mis {
    let trust = InitialTrust { ca_file: Some(ca_of.ca_file()), ..InitialTrust::default() };
    Mis::new(Trust::new(trust), config::Proxy { through: config::Through::Never, ..config::Proxy::default() })
}

async fn ask(client: &Mis, server: &development_mis::Mis) -> Result<(), MisError> {
    client.discovery(&server.discovery_url().parse().unwrap(), None).await.map(|_| ())
}

#[tokio::test]
async fn time_is_proven_by_the_date_of_any_answer_of_a_trusted_server_and_by_nothing_else() {
    let (server, _folder) = server();
    let client = client(&server);
    assert_eq!(client.proven_time(), None);

    let before = clock::now();
    ask(&client, &server).await.unwrap();
    let proof = client.proven_time().unwrap();
    assert!(proof.at >= before.boot && proof.at <= clock::now().boot, "{proof:?}");
    let apart = proof.wall.until(before.wall).max(before.wall.until(proof.wall));
    assert!(apart < Duration::from_secs(30), "the same machine, the same clock: {proof:?}");

    // Whatever it says, and the latest counts, also if it is an earlier time: the one before it may have been wrong.
    for (status, date, told) in [
        (503, "Sun, 01 Jan 2040 00:00:00 GMT", 2_208_988_800),
        (200, "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        (302, "Sunday, 06-Nov-94 08:49:38 GMT", 784_111_778),
    ] {
        server.fault(Endpoint::Discovery, Fault::answer(status, &[("date", date)], "no discovery document"));
        ask(&client, &server).await.unwrap_err();
        assert_eq!(client.proven_time().unwrap().wall, Timestamp::from_secs(told));
    }

    // What a cache kept was new when it says, and is so much older now.
    let kept = Fault::answer(503, &[("date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("age", "100")], "");
    server.fault(Endpoint::Discovery, kept);
    ask(&client, &server).await.unwrap_err();
    assert_eq!(client.proven_time().unwrap().wall, Timestamp::from_secs(784_111_877));

    // No word of the time, no word of an authenticated server, no word at all.
    let proof = client.proven_time();
    server.fault(Endpoint::Discovery, Fault::answer(503, &[("date", "yesterday")], ""));
    ask(&client, &server).await.unwrap_err();
    assert_eq!(client.proven_time(), proof);
    let (other, _other_folder) = self::server();
    assert!(matches!(ask(&client, &other).await, Err(MisError::ServerNotTrusted { .. })));
    assert_eq!(client.proven_time(), proof);
    server.stop_listening().unwrap();
    assert!(matches!(ask(&client, &server).await, Err(MisError::Unreachable { .. })));
    assert_eq!(client.proven_time(), proof);
}
