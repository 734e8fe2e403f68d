//! Client, writers and ledger against a small server over a byte vector that crashes when it is told to.

use super::*;
use lockstep_nbd::{
    BlockSizes, Command, ExportDirectory, ExportInfo, Limits, Lookup, Negotiation, Parsed, RequestParser,
    Step, reply,
};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

const BLOCKS: usize = 256;

struct Disk {
    bytes: Mutex<Vec<u8>>,
    /// Writes that are still carried out; the one after that is not answered, nor any other.
    writes_left: AtomicU64,
}

struct Directory;

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<String> {
        vec!["r0".into()]
    }

    fn find(&self, _: &str) -> Lookup {
        Lookup::Found(ExportInfo {
            name: "r0".into(),
            description: String::new(),
            size_bytes: (BLOCKS * BLOCK_BYTES) as u64,
            read_only: false,
            block: BlockSizes::default(),
            rotational: false,
            multi_conn: true,
            fast_zero: false,
            contexts: Vec::new(),
        })
    }
}

/// Serves one connection until it ends or the disk has done its writes.
fn serve(mut stream: UnixStream, disk: &Disk) -> io::Result<()> {
    let mut handshake = Negotiation::new(Limits::default());
    let mut parser: Option<RequestParser> = None;
    let mut input = Vec::new();
    stream.write_all(&Negotiation::greeting())?;
    loop {
        let mut chunk = [0; 4096];
        let length_bytes = stream.read(&mut chunk)?;
        if length_bytes == 0 {
            return Ok(());
        }
        input.extend_from_slice(&chunk[..length_bytes]);
        while parser.is_none() {
            let consumed = handshake.receive(&input).map_err(io::Error::other)?;
            input.drain(..consumed);
            let mut output = Vec::new();
            let step = handshake.poll(&Directory, &mut output);
            stream.write_all(&output)?;
            match step {
                Step::Transmission(agreed) => parser = Some(RequestParser::new(&agreed)),
                Step::NeedMore if consumed > 0 => {}
                _ => break,
            }
        }
        let Some(parser) = &parser else { continue };
        while let Parsed::Request { consumed, request } = parser.next(&input)
            && input.len() >= consumed + request.payload_bytes() as usize
        {
            let payload: Vec<u8> =
                input.drain(..consumed + request.payload_bytes() as usize).skip(consumed).collect();
            let mut bytes = disk.bytes.lock().unwrap();
            let (at, end) = (request.offset as usize, (request.offset + request.length) as usize);
            let mut answer = reply::simple_reply(request.cookie, None).to_vec();
            match request.command {
                Command::Write if disk.writes_left.load(Ordering::SeqCst) == 0 => return Ok(()),
                Command::Write => {
                    disk.writes_left.fetch_sub(1, Ordering::SeqCst);
                    bytes[at..end].copy_from_slice(&payload);
                }
                Command::Read => answer.extend_from_slice(&bytes[at..end]),
                Command::Disconnect => return Ok(()),
                _ => {}
            }
            stream.write_all(&answer)?;
        }
    }
}

struct Server {
    dir: tempfile::TempDir,
    disk: Arc<Disk>,
}

impl Server {
    fn start(writes_left: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk { bytes: vec![0; BLOCKS * BLOCK_BYTES].into(), writes_left: writes_left.into() };
        let disk = Arc::new(disk);
        let listener = UnixListener::bind(dir.path().join("nbd.sock")).unwrap();
        let shared = Arc::clone(&disk);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let disk = Arc::clone(&shared);
                thread::spawn(move || serve(stream.unwrap(), &disk));
            }
        });
        Server { dir, disk }
    }

    fn load(&self, ledger: &mut Ledger, seed: u64) -> Tally {
        run(
            ledger,
            &Load {
                socket: &self.dir.path().join("nbd.sock"),
                export: "r0",
                writers: 4,
                depth: 4,
                blocks_per_write: 4,
                part_percent: 100,
                seed,
                writes_max: 100,
                stop: &AtomicBool::new(false),
                acknowledged: &AtomicU64::new(0),
            },
        )
    }

    fn check(&self, ledger: &mut Ledger) -> super::super::ledger::Check {
        let mut client = Client::connect(&self.dir.path().join("nbd.sock"), "r0").unwrap();
        client.flush().unwrap();
        ledger.check(|offset, buffer| client.read(offset, buffer)).unwrap()
    }
}

#[test]
fn every_write_is_found_and_a_forgotten_one_is_missed() {
    let server = Server::start(u64::MAX);
    let mut ledger = Ledger::new(BLOCKS);
    let tally = server.load(&mut ledger, 1);
    assert_eq!((tally.writes, tally.block_writes, tally.in_flight), (400, 1600, 0));
    assert_eq!((tally.broken.len(), tally.latencies_us.len()), (0, 400));
    let check = server.check(&mut ledger);
    assert!(check.passed() && check.blocks > 200 && check.in_flight == 0, "{check:?}");

    // The disk goes back to what it was before the second load.
    let before = server.disk.bytes.lock().unwrap().clone();
    server.load(&mut ledger, 2);
    *server.disk.bytes.lock().unwrap() = before;
    let check = server.check(&mut ledger);
    assert_eq!(check.lost, 1600, "{check:?}");
}

#[test]
fn a_server_that_dies_leaves_only_what_was_in_flight_open() {
    // Less than one writer wants, so that none of them is through when it dies.
    let server = Server::start(90);
    let mut ledger = Ledger::new(BLOCKS);
    let tally = server.load(&mut ledger, 3);
    assert_eq!(tally.broken.len(), 4, "{:?}", tally.broken);
    assert!(tally.writes <= 90 && tally.in_flight > 0, "{tally:?}");
    let check = server.check(&mut ledger);
    assert!(check.passed(), "{check:?}");
    assert!(check.in_flight >= 4 && check.in_flight_found <= check.in_flight, "{check:?}");
    assert_eq!(server.check(&mut ledger).in_flight, 0, "a check settles what was open");
}
