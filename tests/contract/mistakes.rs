//! A mistake in one of the files holds up neither the certificate nor the keys in the others.

use std::{fs, net::SocketAddr, time::Duration};

use crate::{
    ask::{Ask, get, within},
    metrics::scrape,
    support::{
        program::{Folder, Program, address},
        tls::{BOTH, Pair},
    },
};

const ANONYMOUS: &str = "[anonymous]\nmetrics = true\n";
const LEAKED: &str = "a-key-of-more-than-32-bytes-that-has-leaked";
const ITS_HASH: &str = "eae64848c1f8f2d5ba938d2fe73bf883f9a25a7d00642237aac0cbe39cddb2b7";

/// A server with these two listeners, plain and TLS, whose settings are all in files.
struct Running {
    folder: Folder,
    program: Program,
    tls: SocketAddr,
    settings: String,
}

impl Running {
    async fn start(tables: &str, pair: &Pair) -> Self {
        let folder = Folder::new();
        let settings =
            format!("tls-cert = {:?}\ntls-key = {:?}\n", folder.path("certificate"), folder.path("key"));
        let path = folder.path("rejoin.toml");
        fs::write(&path, format!("{settings}{tables}")).expect("a file");
        fs::write(folder.path("certificate"), &pair.certificate).expect("a file");
        fs::write(folder.path("key"), &pair.key).expect("a file");
        let listen = ["--listen", "http://127.0.0.1:0", "--listen", "127.0.0.1:0"];
        let mut program = Program::start(&[&["--config", &path][..], &listen].concat()).await;
        let tls = address(&program.urls(2).await[1], "https");
        Self { folder, program, tls, settings }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path(name), text).expect("a file");
    }

    /// Waits until the metric says if the files are rejected.
    async fn until_rejected(&self, is_rejected: bool) {
        within("the metric", async {
            while scrape(&self.program.server).await["rejoin_config_rejected"] != f64::from(is_rejected) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    async fn until_shown(&self, pair: &Pair) {
        let client = pair.client(BOTH, &[]);
        within("the certificate", async {
            while client.connect(self.tls).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

/// A mistake stayed in the file of settings, weeks later the certificate was renewed, and the server let the old one expire.
#[tokio::test]
async fn a_renewed_certificate_is_taken_while_the_settings_are_rejected() {
    let (old, new, newer) = (Pair::for_days(30), Pair::for_days(60), Pair::for_days(90));
    let mut running = Running::start(ANONYMOUS, &old).await;
    running.until_rejected(false).await;
    running.write("rejoin.toml", &format!("{}heartbeat = \"1 parsec\"\n{ANONYMOUS}", running.settings));
    running.program.until_logged("configuration rejected; the previous one stays in force").await;
    running.until_rejected(true).await;
    running.until_shown(&old).await;

    running.write("certificate", &new.certificate);
    running.write("key", &new.key);
    running.until_shown(&new).await;
    running.until_rejected(true).await;
    // Also if the settings cannot be read at all, or name no certificate and would open the server.
    fs::remove_file(running.folder.path("rejoin.toml")).expect("a file");
    running.program.until_logged("rejoin.toml: cannot read the file").await;
    running.write("certificate", &newer.certificate);
    running.write("key", &newer.key);
    running.until_shown(&newer).await;
    running.write("rejoin.toml", "");
    running.program.until_logged("would open this server").await;
    running.write("certificate", &new.certificate);
    running.write("key", &new.key);
    running.until_shown(&new).await;

    running.write("rejoin.toml", &format!("{}{ANONYMOUS}", running.settings));
    running.until_rejected(false).await;
    running.until_shown(&new).await;
}

/// A key did not fit its certificate, the operator deleted a leaked `[[key]]`, and it stayed valid.
#[tokio::test]
async fn a_deleted_key_is_refused_while_the_certificate_is_rejected() {
    let (old, new) = (Pair::for_days(30), Pair::for_days(60));
    let key = format!("[[key]]\nname = \"leaked\"\nsha256 = \"{ITS_HASH}\"\nsubscribe = [\"a\"]\n");
    let mut running = Running::start(&format!("{ANONYMOUS}{key}"), &old).await;
    let ask =
        async || get(&running.program.server, "/topics/a?wait=0").bearer_auth(LEAKED).answer().await.status;
    assert_eq!(ask().await, 200);
    running.write("key", &new.key);
    running.until_rejected(true).await;
    running.write("rejoin.toml", &format!("{}{ANONYMOUS}", running.settings));
    within("the key is refused", async {
        while ask().await != 401 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    running.program.until_logged("the key does not fit the first certificate of --tls-cert").await;
    running.program.until_logged("certificate rejected; the previous one stays in force").await;
    running.until_rejected(true).await;
    running.until_shown(&old).await;

    running.write("certificate", &new.certificate);
    running.until_shown(&new).await;
    running.until_rejected(false).await;
}
