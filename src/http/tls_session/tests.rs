//! A client and a server of TLS, without a network.

use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, RootCertStore,
    crypto::{
        aws_lc_rs::{self, cipher_suite::TLS13_AES_256_GCM_SHA384},
        cipher::{OutboundChunks, OutboundPlainMessage},
    },
    pki_types::{CertificateDer, pem::PemObject},
    version,
};

use super::*;
use crate::config::Certificate;

const CHAIN: &str = include_str!("../../../tests/support/tls/certificate.pem");
const KEY: &str = include_str!("../../../tests/support/tls/key.pem");

/// The session of a client and of a server, without a network. The bytes of the client arrive in pieces.
struct Pair {
    client: ClientConnection,
    server: Session,
    piece: usize,
}

impl Pair {
    fn new(tls12: bool, piece: usize) -> Self {
        let versions = [if tls12 { &version::TLS12 } else { &version::TLS13 }];
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate = Certificate::from_pem(CHAIN, KEY).expect("a pair");
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                (**certificate.key()).clone(),
            )));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CHAIN.as_bytes()).expect("a certificate")).expect("a root");
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        let name = "localhost".try_into().expect("a name");
        Self {
            client: ClientConnection::new(Arc::new(client), name).expect("a client"),
            server: Session::new(Arc::new(server)).expect("a server"),
            piece,
        }
    }

    /// Gives each side what the other has sent, until there is no more.
    fn exchange(&mut self) -> Result<(), Error> {
        loop {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            while self.client.wants_write() {
                self.client.write_tls(&mut up).expect("memory takes it");
            }
            for mut piece in up.chunks(self.piece) {
                while !piece.is_empty() {
                    self.server.read(&mut piece).expect("memory gives it");
                    self.server.process()?;
                }
            }
            assert!(self.server.send(&mut down).expect("memory takes it"));
            if up.is_empty() && down.is_empty() {
                return Ok(());
            }
            let mut down = &down[..];
            while !down.is_empty() {
                self.client.read_tls(&mut down).expect("memory gives it");
                self.client.process_new_packets().expect("it is valid");
            }
        }
    }

    fn sent(&mut self, text: &[u8]) -> Vec<u8> {
        self.client.writer().write_all(text).expect("memory takes it");
        self.exchange().expect("no error");
        let received = self.server.received().to_vec();
        self.server.take(received.len());
        received
    }

    /// The bytes that the client reads of a write that the socket takes in parts.
    fn answered(&mut self, text: &[u8]) -> Vec<u8> {
        let (mut read, mut done) = (Vec::new(), 0);
        while done < text.len() {
            done += self.server.write(&text[done..], &mut Full).expect("it is open");
            assert!(self.server.has_waiting());
            self.exchange().expect("no error");
            let mut part = vec![0; text.len()];
            let length = self.client.reader().read(&mut part).expect("it is there");
            read.extend_from_slice(&part[..length]);
        }
        read
    }

    fn memory(&self) -> usize {
        memory(&self.server)
    }
}

fn memory(session: &Session) -> usize {
    let Session { encrypted, received, waiting, .. } = session;
    encrypted.capacity() + received.capacity() + waiting.capacity()
}

/// Each idle connection over TLS kept 4 KiB for the bytes that it might read.
#[test]
fn a_session_at_rest_has_no_memory_for_bytes_however_they_came() {
    for (tls12, piece) in [(false, 1), (false, 7), (false, 1 << 20), (true, 1), (true, 1 << 20)] {
        let mut pair = Pair::new(tls12, piece);
        pair.exchange().expect("a handshake");
        assert!(!pair.server.is_handshaking());
        assert_eq!(pair.memory(), 0);
        let long = vec![b'x'; 50_000];
        assert!(pair.sent(&long) == long && pair.answered(&long) == long);
        assert_eq!(pair.memory(), 0);
    }
}

/// A client could leave 64 KiB of such a message, for as long as it read a stream, in 128 KiB of memory.
#[test]
fn a_message_of_the_handshake_that_never_ends_takes_little_after_the_handshake() {
    let mut pair = Pair::new(false, 1 << 20);
    pair.exchange().expect("a handshake");
    let Pair { client, mut server, .. } = pair;
    let (first, secrets) = client.dangerous_extract_secrets().expect("it may give them").tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("the first suite") };
    let suite = TLS13_AES_256_GCM_SHA384.tls13().expect("a suite of TLS 1.3");
    let mut sealed = suite.aead_alg.encrypter(key, iv);
    // An update of the keys, which says that it has 65 535 bytes.
    let mut payload = [&[24, 0, 0xff, 0xff][..], &[0; 1_000]].concat();
    let (mut sequence, mut most) = (first, 0);
    let ended = 'ended: loop {
        let chunk = OutboundChunks::Single(&payload);
        let (typ, version) = (ContentType::Handshake, ProtocolVersion::TLSv1_2);
        let record = sealed.encrypt(OutboundPlainMessage { typ, version, payload: chunk }, sequence);
        let record = record.expect("it is short").encode();
        let mut record = &record[..];
        while !record.is_empty() {
            if let Err(error) = server.read(&mut record) {
                break 'ended error;
            }
            server.process().expect("no error");
            most = most.max(memory(&server));
        }
        (sequence, payload) = (sequence + 1, vec![0; 1_000]);
    };
    assert_eq!(ended.kind(), io::ErrorKind::InvalidData);
    assert!((8 << 10..=32 << 10).contains(&most), "{most}");
}

#[test]
fn bytes_in_several_places_leave_in_one_record() {
    let mut pair = Pair::new(false, 1 << 20);
    pair.exchange().expect("a handshake");
    let mut wire = Vec::new();
    let slices = [&b""[..], b"one ", b"", b"two ", b"three"].map(IoSlice::new);
    assert_eq!(pair.server.write_vectored(&slices, &mut wire).expect("it is open"), 13);
    // Its head, its kind and its tag beside the text.
    assert_eq!(wire.len(), 13 + 5 + 1 + 16);
    let long = [IoSlice::new(b"one"), IoSlice::new(&[0; MAX_WAITING_BYTES])];
    assert_eq!(pair.server.write_vectored(&long, &mut wire).expect("it is open"), MAX_WAITING_BYTES);
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_and_then_nothing_is_written_or_read() {
    // A record that nobody encrypted so, and no record.
    for garbage in [&b"\x17\x03\x03\x00\x14nobody encrypted it!"[..], b"hello hello hello"] {
        let mut pair = Pair::new(false, 1 << 20);
        pair.exchange().expect("a handshake");
        let mut bytes = garbage;
        pair.server.read(&mut bytes).expect("memory gives it");
        let error = pair.server.process().expect_err("garbage");
        let mut alert = Vec::new();
        assert!(pair.server.send(&mut alert).expect("memory takes it"));
        pair.client.read_tls(&mut &alert[..]).expect("memory gives it");
        let heard = pair.client.process_new_packets();
        assert!(matches!(heard, Err(Error::AlertReceived(_))), "{heard:?}");
        assert!(pair.server.write(b"more", &mut alert).is_err());
        pair.server.close();
        pair.server.read(&mut &b"\x17\x03\x03\x00"[..]).expect("memory gives it");
        assert_eq!(pair.server.process(), Err(error));
        assert!(!pair.server.has_waiting());
    }
}

/// rustls holds places in the bytes of a message that has begun, so it must see them again.
#[test]
fn a_write_beside_a_message_that_has_begun_does_no_harm() {
    let mut pair = Pair::new(false, 1 << 20);
    let mut hello = Vec::new();
    pair.client.write_tls(&mut hello).expect("memory takes it");
    // The first record has a part of the message.
    let (first, rest) = hello[5..].split_at(100);
    let record = |part: &[u8]| {
        [&[0x16, 3, 1][..], &u16::try_from(part.len()).expect("short").to_be_bytes(), part].concat()
    };
    let first = record(first);
    pair.server.read(&mut &first[..]).expect("memory gives it");
    pair.server.process().expect("no error");
    assert!(pair.server.write(b"too early", &mut Full).is_err());
    let rest = record(rest);
    let mut rest = &rest[..];
    while !rest.is_empty() {
        pair.server.read(&mut rest).expect("memory gives it");
        pair.server.process().expect("no error");
    }
    pair.exchange().expect("a handshake");
    assert_eq!(pair.sent(b"hello"), b"hello");
}

#[test]
fn both_sides_say_the_end_once() {
    let mut pair = Pair::new(false, 1 << 20);
    pair.exchange().expect("a handshake");
    pair.client.writer().write_all(b"last").expect("memory takes it");
    pair.client.send_close_notify();
    pair.exchange().expect("no error");
    assert!(pair.server.has_ended());
    assert_eq!(pair.server.received(), b"last");
    pair.server.close();
    pair.exchange().expect("no error");
    assert!(matches!(pair.client.reader().read(&mut [0]), Ok(0)), "it was told of the end");
    pair.server.close();
    assert!(!pair.server.has_waiting());
}
