//! Certificates by ACME: the program orders them from Pebble, an authority for tests.

#[path = "acme/pebble.rs"]
mod pebble;
mod support;

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use pebble::{BLOCKED, Place};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::json;
use support::program::{Folder, Program};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const NAMES: [&str; 2] = ["push.example.test", "www.example.test"];
const LONG: Duration = Duration::from_secs(90 * 86_400);
/// More than any of these tests takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that trusts this authority alone.
fn client(root: &CertificateDer<'static>, protocols: &[&[u8]]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // Each connection must be shown a certificate.
    config.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

async fn connect(
    client: &TlsConnector,
    addr: SocketAddr,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    client.connect(ServerName::try_from(name).expect("a name"), TcpStream::connect(addr).await?).await
}

fn certificate(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

/// Starts the program with these names, and with the folder `state` of `folder`.
async fn start(place: &Place, folder: &Folder, names: &[&str]) -> Program {
    start_with(place, folder, names, &[]).await
}

async fn start_with(place: &Place, folder: &Folder, names: &[&str], more: &[&str]) -> Program {
    let trust = format!("export SSL_CERT_FILE='{}'", place.certificate());
    let (directory, state) = (place.directory(), folder.path("state"));
    let mut arguments = vec!["--tls-acme-directory", &directory, "--tls-acme-state", &state];
    arguments.extend(names.iter().flat_map(|name| ["--tls-acme", name]));
    arguments.extend(more);
    Program::under(&trust, &arguments).await
}

/// Reads until this text has come.
async fn until_heard(stream: &mut TlsStream<TcpStream>, text: &str) {
    let mut heard = String::new();
    while !heard.contains(text) {
        let mut bytes = [0; 1024];
        let read = timeout(PATIENCE, stream.read(&mut bytes)).await.expect("it comes in time");
        let count = read.expect("it goes on");
        assert!(count > 0, "it ended: {heard}");
        heard += &String::from_utf8_lossy(&bytes[..count]);
    }
}

#[tokio::test]
async fn a_certificate_is_ordered_once_the_authority_is_there_and_renewed_while_readers_stay() {
    let Some(place) = Place::new() else { return };
    let folder = Folder::new();
    let mut program = start(&place, &folder, &NAMES).await;
    let addr = program.server.addr;
    program.until_logged("no certificate for --tls-acme this time").await;
    let early = client(&place.own(), &[]);
    connect(&early, addr, NAMES[0]).await.expect_err("there is no certificate");
    program.until_logged("there is no certificate of --tls-acme yet").await;

    let pebble = place.start(addr, Duration::from_secs(24)).await;
    program.until_logged("certificate of --tls-acme in force").await;
    let root = pebble.root().await;
    let mut reader = connect(&client(&root, &[]), addr, NAMES[0]).await.expect("a handshake");
    let first = certificate(&reader);
    let ask = b"GET /topics/a?transport=ndjson HTTP/1.1\r\nhost: localhost\r\n\r\n";
    reader.write_all(ask).await.expect("sent");
    until_heard(&mut reader, "200 OK").await;
    let other = connect(&client(&root, &[b"h2"]), addr, NAMES[1]).await.expect("a handshake");
    assert_eq!(certificate(&other), first, "one certificate has all names");
    connect(&client(&root, &[]), addr, "else.example.test").await.expect_err("it has no other name");

    // The proof is for the authority alone, and only while it asks.
    connect(&client(&root, &[b"acme-tls/1"]), addr, NAMES[0]).await.expect_err("no proof is asked for");

    let renewed = async {
        loop {
            let stream = connect(&client(&root, &[]), addr, NAMES[0]).await.expect("no time without one");
            if certificate(&stream) != first {
                return stream;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let mut publisher = timeout(PATIENCE, renewed).await.expect("a new certificate");
    let publish = b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nstill here";
    publisher.write_all(publish).await.expect("sent");
    until_heard(&mut reader, "still here").await;

    let mode =
        |path: &str| fs::metadata(folder.path(path)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode("state"), 0o700);
    assert_eq!([mode("state/account.json"), mode("state/certificate.json")], [0o600; 2]);
}

#[tokio::test]
async fn a_start_shows_the_stored_certificate_and_orders_one_only_for_other_names() {
    let Some(place) = Place::new() else { return };
    let folder = Folder::new();
    let mut program = start(&place, &folder, &NAMES[..1]).await;
    let pebble = place.start(program.server.addr, LONG).await;
    program.until_logged("certificate of --tls-acme in force").await;
    let root = pebble.root().await;
    program.terminate().await;

    // The authority is not needed for a start.
    drop(pebble);
    let mut program = start(&place, &folder, &NAMES[..1]).await;
    program.until_logged("certificate of --tls-acme in force").await;
    connect(&client(&root, &[]), program.server.addr, NAMES[0]).await.expect("a handshake");
    let ended = program.terminate().await;
    assert!(!ended.log.contains("ordering a certificate"), "{}", ended.log);

    // This one has forgotten the account, and has another root.
    let mut program = start(&place, &folder, &NAMES).await;
    connect(&client(&root, &[]), program.server.addr, NAMES[0]).await.expect("the one before, meanwhile");
    let pebble = place.start(program.server.addr, LONG).await;
    let root = pebble.root().await;
    let ordered = async {
        while connect(&client(&root, &[]), program.server.addr, NAMES[1]).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, ordered).await.expect("a certificate with the other name");
    program.until_logged("ordering a certificate").await;
}

#[tokio::test]
async fn the_reason_of_the_authority_is_in_the_log() {
    let Some(place) = Place::new() else { return };
    let (folder, nobody) = (Folder::new(), SocketAddr::from(([127, 0, 0, 1], support::redis::free_port())));
    let _pebble = place.start(nobody, LONG).await;
    let mut program = start(&place, &folder, &NAMES[..1]).await;
    program.until_logged("push.example.test: ").await;
    program.until_logged("Failed to connect to 127.0.0.1").await;
    let folder = Folder::new();
    let mut program = start(&place, &folder, &[BLOCKED]).await;
    program.until_logged("urn:ietf:params:acme:error:rejectedIdentifier").await;
}

#[tokio::test]
async fn an_authority_that_wants_an_account_made_elsewhere_is_given_its_key() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let Some(place) = Place::new() else { return };
    let (folder, keys) = (Folder::new(), json!({"kid-1": KEY}));
    let mut program = start(&place, &folder, &NAMES[..1]).await;
    let pebble = place.start_with_keys(program.server.addr, LONG, keys.clone()).await;
    program.until_logged("urn:ietf:params:acme:error:externalAccountRequired").await;
    program.terminate().await;
    drop(pebble);

    let eab = folder.path("eab");
    fs::write(&eab, format!("kid-1 {KEY}\n")).expect("a file");
    let mut program = start_with(&place, &folder, &NAMES[..1], &["--tls-acme-eab", &eab]).await;
    let pebble = place.start_with_keys(program.server.addr, LONG, keys).await;
    program.until_logged("certificate of --tls-acme in force").await;
    connect(&client(&pebble.root().await, &[]), program.server.addr, NAMES[0]).await.expect("a handshake");
    // Another one is used only by a new start.
    fs::write(&eab, format!("kid-2 {KEY}\n")).expect("a file");
    program.until_logged("this setting has changed; restart the server to apply it").await;
    let ended = program.terminate().await;
    assert!(!ended.log.contains(KEY), "{}", ended.log);
}

/// Its account is made, so the operator deleted the file; from then on each change of the settings was rejected.
#[tokio::test]
async fn without_the_file_of_an_account_made_elsewhere_a_running_server_takes_other_changes() {
    let folder = Folder::new();
    let (settings, eab, state) = (folder.path("rejoin.toml"), folder.path("eab"), folder.path("state"));
    let key = format!("[[key]]\nname = \"one\"\nsha256 = \"{}\"\nadmin = true\n", "ab".repeat(32));
    fs::write(&settings, key).expect("a file");
    fs::write(&eab, "kid-1 c2VjcmV0\n").expect("a file");
    let nowhere = format!("https://localhost:{}/dir", support::redis::free_port());
    let arguments = ["--config", &settings, "--tls-acme", NAMES[0], "--tls-acme-state", &state];
    let account = ["--tls-acme-directory", &nowhere, "--tls-acme-eab", &eab];
    let mut program = Program::start(&[&arguments[..], &account].concat()).await;
    fs::remove_file(&eab).expect("it is there");
    program.until_logged("this server needs the file no more, and its next start does").await;
    program.until_logged("allowed origins and hosts reloaded").await;
    fs::write(&eab, "kid-2 c2VjcmV0\n").expect("a file");
    program.until_logged("this setting has changed; restart the server to apply it").await;
    let ended = program.terminate().await;
    assert!(!ended.log.contains("rejected"), "{}", ended.log);
}

/// The certificate of the files was shown at once, and replaced by one of the authority at the next renewal.
#[tokio::test]
async fn a_certificate_of_files_replaces_one_of_an_authority_only_at_a_start() {
    let folder = Folder::new();
    let (settings, state) = (folder.path("rejoin.toml"), folder.path("state"));
    let nowhere = format!("https://localhost:{}/dir", support::redis::free_port());
    let key = format!("[[key]]\nname = \"one\"\nsha256 = \"{}\"\nadmin = true\n", "ab".repeat(32));
    let acme = format!(
        "tls-acme = [\"{}\"]\ntls-acme-state = \"{state}\"\ntls-acme-directory = \"{nowhere}\"\n",
        NAMES[0]
    );
    fs::write(&settings, acme + &key).expect("a file");
    let mut program = Program::start(&["--config", &settings]).await;
    let files = "tests/support/tls";
    let files = format!("tls-cert = \"{files}/certificate.pem\"\ntls-key = \"{files}/key.pem\"\n");
    fs::write(&settings, files + &key).expect("a file");
    program.until_logged("--tls-cert was added or removed; restart the server to apply it").await;
    let ended = program.terminate().await;
    assert!(!ended.log.contains("certificate of --tls-cert in force"), "{}", ended.log);
}

#[tokio::test]
async fn replicas_are_warned_that_only_one_of_them_can_answer_an_authority() {
    let (folder, nobody) = (Folder::new(), format!("redis://127.0.0.1:{}", support::redis::free_port()));
    let nowhere = format!("https://localhost:{}/dir", support::redis::free_port());
    let state = folder.path("state");
    let arguments = ["--tls-acme", NAMES[0], "--tls-acme-state", &state, "--tls-acme-directory", &nowhere];
    let mut program = Program::start(&[&arguments[..], &["--log", &nobody]].concat()).await;
    program.until_logged("--tls-acme is for one server, and --log redis:// is for several").await;
}

/// The first one drains for as long as a publish takes to come whole.
#[tokio::test]
async fn a_server_gives_its_folder_to_the_next_one_when_its_drain_begins() {
    let Some(place) = Place::new() else { return };
    let folder = Folder::new();
    let mut first = start_with(&place, &folder, &NAMES[..1], &["--drain-grace", "60s"]).await;
    let pebble = place.start(first.server.addr, LONG).await;
    first.until_logged("certificate of --tls-acme in force").await;
    let client = client(&pebble.root().await, &[]);
    let mut publisher = connect(&client, first.server.addr, NAMES[0]).await.expect("a handshake");
    let head =
        b"POST /topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    publisher.write_all(head).await.expect("sent");
    until_heard(&mut publisher, "100 Continue").await;
    first.send_sigterm();
    let mut second = start(&place, &folder, &NAMES[..1]).await;
    second.until_logged("certificate of --tls-acme in force").await;
    publisher.write_all(b"hello").await.expect("sent");
    until_heard(&mut publisher, "201 Created").await;
    assert_eq!(first.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_ends_the_start_and_a_damaged_file_is_replaced() {
    let Some(place) = Place::new() else { return };
    let folder = Folder::new();
    fs::create_dir(folder.path("state")).expect("a folder");
    fs::write(folder.path("state/certificate.json"), "{").expect("a file");
    fs::write(folder.path("state/account.json"), "{").expect("a file");
    let mut program = start(&place, &folder, &NAMES).await;
    program.until_logged("this file is damaged: it is replaced").await;
    let _pebble = place.start(program.server.addr, LONG).await;
    program.until_logged("certificate of --tls-acme in force").await;

    let state = folder.path("state/account.json/state");
    let (code, told) = refused(&["--tls-acme", NAMES[0], "--tls-acme-state", &state]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(&format!("--tls-acme-state {state}: ")), "{told}");
}

/// The exit code and the words of a program that does not start.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let program = std::process::Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .env_clear()
        .args(["--listen", "127.0.0.1:0"])
        .args(arguments)
        .output()
        .expect("it runs");
    (program.status.code(), String::from_utf8_lossy(&program.stderr).into_owned())
}

#[test]
fn settings_that_cannot_give_a_certificate_are_refused() {
    for (arguments, expected) in [
        (&["--tls-acme", "a.example"][..], "--tls-acme and --tls-acme-state work only together"),
        (&["--tls-acme-state", "/tmp"], "--tls-acme and --tls-acme-state work only together"),
        (
            &["--tls-acme", "a.example", "--tls-acme-state", "/tmp", "--tls-cert", "c", "--tls-key", "k"],
            "--tls-acme and --tls-cert exclude each other",
        ),
        (&["--tls-acme-eab", "Cargo.toml"], "--tls-acme-eab works only with --tls-acme"),
        (
            &["--tls-acme", "a.example", "--tls-acme-state", "/tmp", "--tls-acme-eab", "Cargo.toml"],
            "Cargo.toml: expected the id of a key and the key",
        ),
        (&["--tls-acme", "*.example"], "expected the name of a host"),
        (&["--tls-acme", "192.0.2.1"], "expected the name of a host"),
        (&["--tls-acme-directory", "http://a.example/dir"], "expected a URL that begins with https://"),
    ] {
        let (code, told) = refused(arguments);
        assert!(code == Some(2) && told.contains(expected), "{arguments:?}: {told}");
    }
}
