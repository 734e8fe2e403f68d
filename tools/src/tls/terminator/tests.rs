//! Real handshakes over socket pairs, with a client of rustls; the test is the shard.

use super::*;
use crate::tls::tests::{Authority, Folder, Identity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream as Socket;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

const LIMIT: Duration = Duration::from_secs(30);
const PLACES: usize = 4;

struct Scene {
    authority: Authority,
    terminator: Terminator,
}

/// What the shard holds of a connection.
struct Held {
    end: Socket,
    session: Option<TlsSession>,
    names: Receiver<Vec<String>>,
}

type Client = StreamOwned<ClientConnection, Socket>;

impl Scene {
    fn new(client_certificates: bool) -> Self {
        let authority = Authority::new();
        let folder = Folder::new(&authority.certify("server", &["localhost"]), &authority.pem);
        let server = folder.load(client_certificates, true).unwrap();
        Self { authority, terminator: Terminator::start(server, PLACES).unwrap() }
    }

    /// A client's socket, and the shard's side; `received` came with STARTTLS.
    fn take_over(&self, received: &[u8]) -> (Socket, Held) {
        let (client, socket) = Socket::pair().unwrap();
        let (end, plaintext) = Socket::pair().unwrap();
        for socket in [&client, &end] {
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.set_write_timeout(Some(LIMIT)).unwrap();
        }
        let (sender, names) = channel();
        let session = self.terminator.take_over(TlsConnection {
            socket: socket.into(),
            received: received.to_vec(),
            plaintext: plaintext.into(),
            address: "a test".into(),
            established: Box::new(move |names| drop(sender.send(names))),
        });
        (client, Held { end, session: Some(session), names })
    }

    fn session(&self, identity: Option<&Identity>) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
    }

    /// An established connection.
    fn connect(&self) -> (Client, Held) {
        let (socket, held) = self.take_over(&[]);
        let mut client = StreamOwned::new(self.session(None), socket);
        client.flush().unwrap();
        assert_eq!(held.names.recv_timeout(LIMIT).unwrap(), [""; 0]);
        (client, held)
    }

    /// Nothing is left of any connection.
    #[track_caller]
    fn wait_idle(&self) {
        let began = Instant::now();
        while self.terminator.places.available_permits() < PLACES {
            assert!(began.elapsed() < LIMIT, "a connection does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_exactly(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[track_caller]
fn assert_closed(from: &mut impl Read) {
    let mut byte = [0];
    let read = from.read(&mut byte);
    assert!(
        matches!(&read, Ok(0)) || read.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset),
        "{read:?}"
    );
}

#[test]
fn bytes_pass_both_ways_and_the_first_may_have_come_with_starttls() {
    let scene = Scene::new(false);
    let mut session = scene.session(None);
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    let (socket, mut held) = scene.take_over(&hello);
    let mut client = StreamOwned::new(session, socket);
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n >> 3) as u8).collect();
    let sent = data.clone();
    let echo = std::thread::spawn(move || {
        let bytes = read_exactly(&mut held.end, sent.len());
        assert!(bytes == sent);
        held.end.write_all(&bytes).unwrap();
        held
    });
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    assert!(read_exactly(&mut client, data.len()) == data);
    drop(client);
    let mut held = echo.join().unwrap();
    assert_closed(&mut held.end);
    scene.wait_idle();
}

#[test]
fn names_come_before_the_first_byte() {
    let scene = Scene::new(true);
    let vm1 = scene.authority.certify("vm1", &["vm1.example"]);
    let (socket, mut held) = scene.take_over(&[]);
    let mut client = StreamOwned::new(scene.session(Some(&vm1)), socket);
    client.write_all(b"x").unwrap();
    assert_eq!(read_exactly(&mut held.end, 1), b"x");
    assert_eq!(held.names.try_recv().unwrap(), ["vm1.example", "vm1"]);
}

#[test]
fn a_certificate_of_somebody_else_ends_the_connection() {
    let scene = Scene::new(true);
    let stranger = Authority::new().certify("vm1", &["vm1.example"]);
    let (socket, mut held) = scene.take_over(&[]);
    let mut client = StreamOwned::new(scene.session(Some(&stranger)), socket);
    let _ = client.write_all(b"x");
    assert_closed(&mut held.end);
    assert!(held.names.try_recv().is_err(), "nobody was let in");
    // The alert is lost where what the client had sent on top meets a socket that is closed already.
    let refused = client.read(&mut [0]).unwrap_err();
    let is_told = refused.to_string().contains("fatal alert");
    let is_closed = matches!(refused.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    assert!(is_told || is_closed, "{refused}");
    scene.wait_idle();
}

#[test]
fn plaintext_in_place_of_a_handshake_ends_the_connection() {
    let scene = Scene::new(false);
    let (_client, mut held) = scene.take_over(b"IHAVEOPT\0\0\0\x07\0\0\0\0");
    assert_closed(&mut held.end);
    assert!(held.names.try_recv().is_err());
    scene.wait_idle();
}

#[test]
fn a_handshake_ends_with_the_shards_hold() {
    let scene = Scene::new(false);
    let (mut client, mut held) = scene.take_over(&[]);
    held.session = None;
    assert_closed(&mut client);
    assert_closed(&mut held.end);
    scene.wait_idle();
}

#[test]
fn a_client_that_goes_without_a_word_is_gone() {
    let scene = Scene::new(false);
    let (client, mut held) = scene.connect();
    // No close_notify.
    drop(client.sock);
    assert_closed(&mut held.end);
    scene.wait_idle();
}

#[test]
fn the_shards_last_bytes_arrive_and_then_the_end() {
    let scene = Scene::new(false);
    let (mut client, mut held) = scene.connect();
    let last = vec![7; 150_000];
    held.end.write_all(&last).unwrap();
    held.end.shutdown(std::net::Shutdown::Both).unwrap();
    held.session = None;
    drop(held);
    assert!(read_exactly(&mut client, last.len()) == last);
    // Without close_notify this is an error.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    scene.wait_idle();
}

#[test]
fn who_does_not_read_stops_nobody_else_and_goes_in_the_end() {
    let scene = Scene::new(false);
    let (stuck, mut held) = scene.connect();
    held.end.set_nonblocking(true).unwrap();
    let mut taken = 0;
    let began = Instant::now();
    // Buffers of two sockets and of the terminator; then nothing more is taken.
    let mut last_taken = Instant::now();
    while last_taken.elapsed() < Duration::from_millis(300) {
        assert!(
            began.elapsed() < LIMIT && taken < 8 << 20,
            "{taken} bytes wait for a client that does not read"
        );
        match held.end.write(&[0; 64 << 10]) {
            Ok(count) => (taken, last_taken) = (taken + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        std::thread::yield_now();
    }
    let (mut client, mut other) = scene.connect();
    client.write_all(b"ping").unwrap();
    assert_eq!(read_exactly(&mut other.end, 4), b"ping");
    other.end.write_all(b"pong").unwrap();
    assert_eq!(read_exactly(&mut client, 4), b"pong");
    // The shard gives up; the client still does not read.
    held.end.shutdown(std::net::Shutdown::Both).unwrap();
    held.session = None;
    drop((other, client));
    scene.wait_idle();
    drop(stuck);
}

#[test]
fn a_shard_that_does_not_read_stops_the_client() {
    let scene = Scene::new(false);
    let (mut client, held) = scene.connect();
    client.sock.set_nonblocking(true).unwrap();
    let (mut given, mut last_given) = (0, Instant::now());
    while last_given.elapsed() < Duration::from_millis(300) {
        assert!(given < 8 << 20, "{given} bytes wait for a shard that does not read");
        match client.write(&[0; 16 << 10]) {
            Ok(count) if count > 0 => (given, last_given) = (given + count, Instant::now()),
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        let _ = client.flush();
        std::thread::yield_now();
    }
    drop(held);
    scene.wait_idle();
}

#[test]
fn there_are_no_more_connections_than_places() {
    let scene = Scene::new(false);
    let held: Vec<_> = (0..PLACES).map(|_| scene.connect()).collect();
    let (mut client, mut refused) = scene.take_over(&[]);
    assert_closed(&mut client);
    assert_closed(&mut refused.end);
    drop(held);
    scene.terminator.finish();
    scene.wait_idle();
}
