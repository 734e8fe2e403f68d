//! What is wrong is refused with a reason, and nobody else is disturbed: configurations, command lines,
//! peers, clients.

use lockstep_e2e::{Cluster, Ledger, Load, Node, Plan, RESOURCE, Rng, binary, run, seed, temp_dir};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 128 * MIB;
/// Longer than the limits of a daemon on handshakes.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);

fn plan() -> Plan {
    Plan { size_bytes: SIZE_BYTES, max_hot_bytes: 32 * MIB, ..Plan::default() }
}

/// A pair under load; [`undisturbed`] says whether it stayed so.
fn busy_pair(name: &str) -> (Cluster, Load) {
    let cluster = Cluster::primary(&plan());
    let load = Ledger::new(SIZE_BYTES, 4, seed(name)).start(cluster.alpha.nbd(), 4);
    load.wait_acked(200);
    (cluster, load)
}

fn undisturbed(cluster: &Cluster, load: Load) {
    load.wait_acked(200);
    assert_eq!(load.interruptions(), 0, "clients noticed");
    assert_eq!(cluster.alpha.status()["protected"], true, "the pair is not mirrored any more");
    assert_eq!(cluster.resynced_bytes(), 0, "the link was lost meanwhile");
    let mut ledger = load.stop();
    cluster.assert_replicas_equal();
    ledger.assert_kept(cluster.beta.disk());
}

#[test]
fn configuration_errors_name_file_line_and_key() {
    let cluster = Cluster::new(&plan());
    let file = cluster.alpha.config();
    let good = std::fs::read_to_string(&file).expect("read the config");
    cluster.alpha.lockstep(&["config", "check"]).ok();
    let line_of = |key: &str| good.lines().position(|line| line.starts_with(key)).expect("a key") + 1;
    let cases = [
        ("size = ", "sise = ", vec!["sise", "size"]),
        ("max-hot = \"", "max-hot = \"many", vec!["max-hot", "MiB"]),
        ("timeout = \"", "timeout = \"soon", vec!["timeout", "ms"]),
        ("address = \"127.0.0.1:", "address = \"127.0.0.1-", vec!["address", "HOST:PORT"]),
        ("nbd = [\"unix:/", "nbd = [\"unix:", vec!["nbd", "unix:/"]),
        ("nbd = [\"unix:/", "nbd = [\"0.0.0.0:10809\", \"unix:/", vec!["nbd", "tls = \"off\""]),
        ("disk.alpha = ", "disk.gamma = ", vec!["gamma", "alpha"]),
        ("cluster = \"", "cluster = \"a b", vec!["cluster"]),
        ("secret-file = \"/", "secret-file = \"", vec!["secret-file", "absolute"]),
        ("name = \"r0\"", "name = 5", vec!["name"]),
    ];
    for (from, to, words) in cases {
        std::fs::write(&file, good.replacen(from, to, 1)).expect("write a bad config");
        let place = format!("lockstep.toml:{}:", line_of(from));
        for verb in [&["config", "check"][..], &["daemon"]] {
            let ran = cluster.alpha.lockstep(verb);
            let said = format!("{place} in {ran}");
            assert!(ran.stderr.contains(&place), "{said}");
            ran.refused(10, &words);
        }
    }
    std::fs::write(&file, "cluster = \"open").expect("write a bad config");
    cluster.alpha.lockstep(&["daemon"]).refused(10, &["lockstep.toml:1"]);
    std::fs::remove_file(&file).expect("remove the config");
    cluster.alpha.lockstep(&["daemon"]).refused(10, &["lockstep.toml", "no such file"]);
}

/// Alpha dials with what it is told, beta accepts with the default, whatever this host's own is.
#[test]
fn both_ends_of_the_link_have_their_congestion_control() {
    let mut cluster = Cluster::new(&Plan { direct: true, ..plan() });
    let file = cluster.alpha.config();
    let good = std::fs::read_to_string(&file).expect("read the config");
    let with = |name: &str| {
        std::fs::write(&file, format!("congestion-control = \"{name}\"\n{good}")).expect("write the config");
    };
    with("hurry");
    let ran = cluster.alpha.lockstep(&["daemon"]);
    ran.refused(10, &["hurry", "net.ipv4.tcp_available_congestion_control"]);
    with("reno");
    cluster.begin();
    let port = cluster.beta_port();
    let end = |side: &str| {
        let filter = format!("{side} = :{port}");
        run(Command::new("ss").args(["-Htin", "state", "established", &filter])).ok()
    };
    assert!(end("dport").contains(" reno "), "alpha's end: {}", end("dport"));
    assert!(end("sport").contains(" cubic "), "beta's end: {}", end("sport"));
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let cluster = Cluster::new(&plan());
    let secret = cluster.dir().join("secret");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&secret, mode).expect("mode of the secret");
    cluster.alpha.lockstep(&["daemon"]).refused(10, &["chmod 0600"]);
}

/// Runs a program in a sandbox whose filter answers io_uring_setup with an error, as containers do.
const WITHOUT_IO_URING: &str = r#"
import ctypes, errno, os, struct, sys

LOAD_NUMBER, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
IO_URING_SETUP, ALLOW, FAIL = 425, 0x7FFF0000, 0x00050000 | getattr(errno, sys.argv[1])
rules = [(LOAD_NUMBER, 0, 0, 0), (IF_EQUAL, 0, 1, IO_URING_SETUP), (RETURN, 0, 0, FAIL), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
assert prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn a_machine_that_refuses_io_uring_is_told_what_is_missing() {
    let cluster = Cluster::new(&plan());
    let config = cluster.alpha.config().display().to_string();
    for error in ["EPERM", "ENOSYS", "EACCES"] {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", WITHOUT_IO_URING, error]).arg(binary());
        command.args(["--config", &config, "--node", "alpha", "--socket"]).arg(cluster.alpha.control());
        run(command.arg("daemon")).refused(4, &["io_uring", "kernel.io_uring_disabled", "seccomp"]);
    }
}

#[test]
fn wrong_command_lines_are_refused() {
    let mut cluster = Cluster::new(&plan());
    cluster.alpha.lockstep(&["status"]).refused(3, &[]);
    cluster.alpha.lockstep(&["promote", RESOURCE]).refused(4, &[]);
    let wrong: [&[&str]; 6] = [
        &[],
        &["promot", RESOURCE],
        &["promote"],
        &["promote", RESOURCE, "--force"],
        &["resolve", RESOURCE],
        &["wait", RESOURCE, "--for", "godot"],
    ];
    for arguments in wrong {
        let ran = cluster.alpha.lockstep(arguments);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "messages go to stderr: {ran}");
        ran.refused(2, &[]);
    }
    cluster.alpha.lockstep(&["create-md", "r9"]).refused(10, &["r9"]);
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    let again = cluster.alpha.lockstep(&["create-md", RESOURCE]);
    assert_ne!(again.code, 0, "metadata exists: {again}");
    assert!(again.stderr.contains("--overwrite"), "{again}");
    cluster.alpha.start();
    let unknown = cluster.alpha.lockstep(&["promote", "r9"]);
    assert_ne!(unknown.code, 0, "{unknown}");
    assert!(unknown.stderr.contains(RESOURCE), "the known ones are named: {unknown}");
    cluster.alpha.lockstep(&["wait", RESOURCE, "--for", "connected", "-t", "300ms"]).refused(20, &[]);
    let wrong_node = run(Command::new(binary()).args([
        "--config",
        cluster.alpha.config().to_str().expect("UTF-8"),
        "--node",
        "gamma",
        "daemon",
    ]));
    wrong_node.refused(10, &["gamma", "alpha, beta"]);
    let nowhere = temp_dir(false).path().join("nobody.sock");
    let ran = run(Command::new(binary()).arg("--socket").arg(nowhere).arg("status"));
    ran.refused(3, &[]);
}

/// Until the server has closed a connection; what it says first is of no interest.
#[track_caller]
fn wait_closed(mut stream: impl Read, what: &str) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("{what} is still open after {HANDSHAKE_LIMIT:?}")
            }
            Err(_) => return,
        }
    }
}

fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("dial the replication port");
    stream.set_read_timeout(Some(HANDSHAKE_LIMIT)).expect("read time-out");
    stream
}

/// The first message of a peer that speaks versions 9 to 9 only.
fn hello_of_another_version() -> Vec<u8> {
    let mut body = b"LOCKSTEP".to_vec();
    body.extend([9, 0, 9, 0]);
    body.extend([0; 8 + 16 + 16 + 32]);
    body.extend([0, 1]);
    for name in ["e2e", RESOURCE, "alpha", "beta"] {
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
    }
    let mut message = vec![1];
    message.extend((body.len() as u16).to_le_bytes());
    message.extend(body);
    message
}

#[test]
fn a_garbage_peer_is_shown_the_door() {
    let (cluster, load) = busy_pair("garbage peer");
    let mut rng = Rng::new(5);
    for length in [1, 3, 40, 1000, 70_000] {
        let garbage: Vec<u8> = (0..length).map(|_| rng.draw() as u8).collect();
        let mut stream = dial(cluster.beta_port());
        // The daemon may have closed the connection before all of it was sent.
        drop(stream.write_all(&garbage));
        wait_closed(stream, "the connection of a garbage peer");
    }
    let mut stream = dial(cluster.beta_port());
    stream.write_all(&hello_of_another_version()).expect("send a hello");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the reason");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("version"), "no reason was given: {answer:?}");
    undisturbed(&cluster, load);
}

#[test]
fn a_peer_of_another_cluster_or_secret_is_refused() {
    let (cluster, load) = busy_pair("foreign peer");
    let beta_port = Some(cluster.beta_port());
    let foreign = [
        (Plan { cluster: "other", beta_port, ..plan() }, "cluster"),
        (Plan { secret: "another secret of that cluster", beta_port, ..plan() }, "secret"),
    ];
    for (plan, word) in foreign {
        let mut intruder = Cluster::new(&plan);
        intruder.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
        intruder.alpha.start();
        intruder.alpha.wait_status("a reason", |status| {
            status["peers"][0]["link_error"].as_str().is_some_and(|reason| reason.contains(word))
        });
        assert_ne!(intruder.alpha.peer()["connection"], "Connected");
    }
    undisturbed(&cluster, load);
}

#[test]
fn a_garbage_client_is_shown_the_door() {
    let (cluster, load) = busy_pair("garbage client");
    let mut rng = Rng::new(6);
    let garbage: Vec<u8> = (0..5000).map(|_| rng.draw() as u8).collect();
    let option = |length: u32| {
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        bytes.extend(b"IHAVEOPT");
        bytes.extend(7_u32.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    for bytes in [garbage, vec![0; 5000], option(u32::MAX), option(70_000)] {
        let mut stream = UnixStream::connect(cluster.alpha.nbd()).expect("connect");
        stream.set_read_timeout(Some(HANDSHAKE_LIMIT)).expect("read time-out");
        drop(stream.write_all(&bytes));
        wait_closed(stream, "the connection of a garbage client");
    }
    let mut client = cluster.alpha.connect().expect("a client");
    assert_eq!(client.size_bytes(), SIZE_BYTES);
    client.flush().expect("a flush");
    drop(client);
    undisturbed(&cluster, load);
}

/// More than the daemon holds of each kind. They say nothing; the daemon ends them when their time is over.
#[test]
fn two_hundred_half_open_connections_disturb_nobody() {
    const CONNECTIONS: usize = 200;
    let (cluster, load) = busy_pair("half open");
    let clients: Vec<UnixStream> = (0..CONNECTIONS)
        .map(|_| UnixStream::connect(cluster.alpha.nbd()).expect("connect a silent client"))
        .collect();
    let peers: Vec<TcpStream> = (0..CONNECTIONS).map(|_| dial(cluster.beta_port())).collect();
    load.wait_acked(500);
    for stream in clients {
        stream.set_read_timeout(Some(HANDSHAKE_LIMIT)).expect("read time-out");
        wait_closed(stream, "a silent client");
    }
    for stream in peers {
        wait_closed(stream, "a silent peer");
    }
    newcomer(&cluster.alpha);
    undisturbed(&cluster, load);
}

fn newcomer(node: &Node) {
    let mut client = node.connect().expect("a client");
    client.read(0, 4096).expect("a read");
}
