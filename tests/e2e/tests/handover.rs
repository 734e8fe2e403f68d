//! A service manager keeps the listening sockets while the daemon is restarted: clients wait, and are served.

use lockstep_e2e::{Cluster, Plan, Process, RESOURCE, qemu_uri, tool, wait_until};
use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Connects once; a node that is not promoted yet refuses the export, and leaves the connection.
const WAITER: &str = r#"
import nbd, sys, time
h = nbd.NBD()
h.set_opt_mode(True)
h.set_export_name("r0")
h.connect_unix(sys.argv[1])
while True:
    try:
        h.opt_go()
        break
    except nbd.Error as error:
        assert h.aio_is_negotiating(), error
        time.sleep(0.25)
assert h.pread(512, 0) is not None
h.shutdown()
"#;

/// How many connections wait for the daemon of alpha.
fn waiting(socket: &Path) -> usize {
    let ran = tool("ss").args(["-xlH", "src"]).arg(socket).run();
    ran.ok().split_whitespace().nth(2).and_then(|backlog| backlog.parse().ok()).unwrap_or(0)
}

#[test]
fn clients_wait_in_the_socket_while_the_daemon_is_restarted() {
    let plan = Plan { size_bytes: 32 * MIB, buffer_mib: 64, ..Plan::default() };
    let mut cluster = Cluster::new(&plan);
    let socket = cluster.alpha.nbd().to_path_buf();
    let listener = UnixListener::bind(&socket).expect("a listening socket");
    cluster.alpha.inherit(listener.into());
    cluster.begin();
    // A guest's disk, with I/O all the time.
    let control = cluster.dir().join("bench.log");
    let image = format!("driver=nbd,path={},export={RESOURCE},reconnect-delay=50", socket.display());
    let words = ["bench", "-w", "-c", "40000", "-d", "4", "-s", "4096", "-t", "none", "--image-opts", &image];
    let words: Vec<String> = words.iter().map(|&word| word.to_string()).collect();
    let mut guest = Process::start(Path::new("qemu-img"), &words, &control, None);
    cluster.alpha.wait_status("a guest", |status| status["clients"].as_array().is_some_and(|c| c.len() == 1));
    // While the daemon leaves, which takes as long as its peer does not answer, nobody is taken from the socket.
    cluster.beta.pause();
    cluster.alpha.terminate();
    wait_until("the end of the guest's connection", LIMIT, || cluster.alpha.log().contains("closing client"));
    let mut probe = UnixStream::connect(&socket).expect("the socket takes connections");
    probe.set_read_timeout(Some(Duration::from_millis(300))).expect("a time limit");
    let heard = probe.read(&mut [0]).expect_err("neither a greeting nor an end");
    assert_eq!(heard.kind(), ErrorKind::WouldBlock);
    cluster.beta.resume();
    cluster.alpha.wait_stopped();
    assert!(socket.exists(), "the name is whoever opened it's");
    // One that comes now is not refused: its connection waits, and is the next daemon's.
    let script = [WAITER.to_string(), socket.display().to_string()];
    let words: Vec<String> = ["-c".to_string()].into_iter().chain(script).collect();
    let said = cluster.dir().join("waiter.log");
    let mut waiter = Process::start(Path::new("/usr/bin/python3"), &words, &said, None);
    wait_until("three clients in the socket's backlog", LIMIT, || waiting(&socket) == 3);
    cluster.alpha.start();
    cluster.alpha.promote().ok();
    assert!(waiter.wait_end(LIMIT).success(), "{}", std::fs::read_to_string(&said).unwrap_or_default());
    let status = guest.wait_end(LIMIT);
    assert!(status.success(), "{}", std::fs::read_to_string(&control).unwrap_or_default());
    cluster.assert_replicas_equal();
    tool("nbdinfo").args(["--size", &qemu_uri(&socket, RESOURCE)]).run().ok();
}

#[test]
fn a_socket_that_nobody_configured_is_refused() {
    let mut cluster = Cluster::new(&Plan::default());
    let listener = UnixListener::bind(cluster.dir().join("other.sock")).expect("a listening socket");
    cluster.alpha.inherit(listener.into());
    cluster.alpha.launch();
    wait_until("the end of the daemon", LIMIT, || cluster.alpha.has_ended());
    let log = cluster.alpha.log();
    assert!(log.contains("other.sock") && log.contains("no nbd listener"), "{log}");
}
