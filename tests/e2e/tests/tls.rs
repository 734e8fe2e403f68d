//! TLS with clients that others wrote, the modes of the specification by hand, and who may open what.

use lockstep_e2e::{
    Authority, Cluster, OptionReply, Plan, Port, Process, RESOURCE, RawHandshake, Rng, SECOND, Tool,
    assert_equal, binary, option_bytes, temp_dir, tool, wait_until,
};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(30);
const STARTTLS: u32 = 5;
const ACK: u32 = 1;
const SERVER: u32 = 2;
const ERR_TLS_REQD: u32 = 0x8000_0005;
const ERR_UNKNOWN: u32 = 0x8000_0006;

/// One file behind `lockstep nbd` with a certificate, on TCP and on a unix socket.
struct Plain {
    dir: tempfile::TempDir,
    port: Port,
    process: Process,
    authority: Authority,
}

impl Plain {
    fn start(client_certificates: bool) -> Plain {
        let (dir, port, authority) = (temp_dir(false), Port::reserve(), Authority::new("a test"));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let disk = std::fs::File::create(path("disk.img")).expect("a file");
        disk.set_len(24 * MIB).expect("its size");
        authority.write_server(dir.path());
        authority.write(&dir.path().join("clients.pem"));
        let tcp = format!("127.0.0.1:{}", port.number());
        let mut words = vec!["nbd".to_string(), path("disk.img")];
        for (option, value) in [
            ("--tcp", tcp),
            ("--unix", path("nbd.sock")),
            ("--tls-cert", path("server-cert.pem")),
            ("--tls-key", path("server-key.pem")),
            ("--pid-file", path("pid")),
        ] {
            words.extend([option.to_string(), value]);
        }
        if client_certificates {
            words.extend(["--tls-client-ca".to_string(), path("clients.pem")]);
        }
        let process = Process::start(&binary(), &words, &dir.path().join("log"), None);
        let plain = Plain { dir, port, process, authority };
        wait_until("the pid file", LIMIT, || plain.path("pid").exists());
        plain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tcp_uri(&self, client: &Path) -> String {
        format!("nbds://localhost:{}/?tls-certificates={}", self.port.number(), client.display())
    }

    fn unix_uri(&self, client: &Path) -> String {
        let socket = self.path("nbd.sock");
        let (socket, client) = (socket.display(), client.display());
        format!("nbds+unix:///?socket={socket}&tls-certificates={client}&tls-hostname=localhost")
    }

    /// QEMU's tool, with these versions of TLS; an empty text: as it likes.
    fn qemu_io(&self, client: &Path, versions: &str, command: &str) -> lockstep_e2e::Ran {
        qemu("qemu-io", client, versions, self.port.number(), "disk.img").args(["-c", command]).run()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Descriptors that the server has open.
    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.pid());
        std::fs::read_dir(folder).expect("descriptors of the server").count()
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.number()))
    }
}

fn qemu(program: &str, client: &Path, versions: &str, port: u16, export: &str) -> Tool {
    let priority = if versions.is_empty() { String::new() } else { format!(",priority=NORMAL:{versions}") };
    let credentials = format!("tls-creds-x509,id=tls,dir={},endpoint=client{priority}", client.display());
    let image = format!("driver=nbd,host=localhost,port={port},export={export},tls-creds=tls");
    tool(program).args(["--object", &credentials, "--image-opts", &image])
}

fn sample(file: &Path) {
    let mut rng = Rng::new(9);
    let mut bytes = vec![0; 24 * MIB as usize];
    bytes[MIB as usize..].fill_with(|| rng.draw() as u8);
    std::fs::write(file, bytes).expect("write a sample");
}

const PYTHON: &str = r#"
import nbd, sys
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_certificates(sys.argv[1])
h.set_tls_verify_peer(True)
h.connect_tcp("localhost", sys.argv[2])
assert h.get_tls_negotiated() and h.get_structured_replies_negotiated()
h.pwrite(b"inside" * 100000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(600000, 12345) == b"inside" * 100000
h.zero(60000, 12345)
assert h.pread(60006, 12345) == bytes(60000) + b"inside"
h.flush()
h.shutdown()
"#;

#[test]
fn foreign_clients_work_inside_of_tls() {
    let served = Plain::start(false);
    let client = served.authority.client(served.dir.path(), "client");
    let (image, back) = (served.path("sample.img"), served.path("back.img"));
    sample(&image);
    let copy = || tool("nbdcopy").args(["--connections=4", "--requests=16"]);
    copy().arg("--flush").arg(&image).arg(served.tcp_uri(&client)).run().ok();
    assert_equal(&image, &served.path("disk.img"));
    copy().arg(served.unix_uri(&client)).arg(&back).run().ok();
    assert_equal(&image, &back);
    let text = tool("nbdinfo").arg(served.tcp_uri(&client)).run().ok();
    assert!(text.contains("with TLS") && text.contains("disk.img"), "{text}");
    let listed =
        tool("nbd-client").args(["-l", "localhost", &served.port.number().to_string(), "-x"]).run().ok();
    assert!(listed.contains("disk.img"), "{listed}");
    served.qemu_io(&client, "", "read -P 0 0 1M").ok();
    let port = served.port.number().to_string();
    tool("python3").args(["-c", PYTHON]).arg(&client).arg(&port).run().ok();
    // An authority that the client does not know.
    let stranger = Authority::new("somebody else").client(served.dir.path(), "stranger");
    assert_ne!(tool("nbdinfo").arg(served.tcp_uri(&stranger)).run().code, 0);
    assert_ne!(served.qemu_io(&stranger, "", "read 0 512").code, 0);
    wait_until("a reason in the log", LIMIT, || served.log().contains("TLS with client 127.0.0.1:"));
}

#[test]
fn both_versions_of_tls_and_none_before() {
    let served = Plain::start(false);
    let client = served.authority.client(served.dir.path(), "client");
    for only in ["-VERS-ALL:+VERS-TLS1.2", "-VERS-ALL:+VERS-TLS1.3"] {
        served.qemu_io(&client, only, "write -P 3 1M 5M").ok();
        served.qemu_io(&client, only, "read -P 3 1M 5M").ok();
    }
    assert_ne!(served.qemu_io(&client, "-VERS-ALL:+VERS-TLS1.1", "read 0 512").code, 0);
}

#[test]
fn client_certificates_are_asked_for_and_checked() {
    let served = Plain::start(true);
    let dir = served.dir.path();
    let client = |name: &str| served.authority.client(dir, name);
    let (good, none, expired, foreign) =
        (client("good"), client("none"), client("expired"), client("foreign"));
    served.authority.certify_client(&good, "vm1", &["vm1.example"], false);
    served.authority.certify_client(&expired, "vm1", &["vm1.example"], true);
    // Signed by somebody of the same name, whom the server does not know.
    Authority::new("a test").certify_client(&foreign, "vm1", &["vm1.example"], false);
    tool("nbdinfo").arg(served.tcp_uri(&good)).run().ok();
    served.qemu_io(&good, "", "read -P 0 0 1M").ok();
    for client in [&none, &expired, &foreign] {
        for uri in [served.tcp_uri(client), served.unix_uri(client)] {
            assert_ne!(tool("nbdinfo").args(["--size", &uri]).run().code, 0, "{uri}");
        }
    }
    wait_until("six reasons in the log", LIMIT, || {
        served.log().lines().filter(|line| line.contains("TLS with client")).count() >= 6
    });
    let log = served.log();
    assert!(log.contains("over TLS, as vm1.example, vm1"), "{log}");
    for reason in
        ["no certificates", "expired", "TLS with client 127.0.0.1:", "TLS with client unix, process "]
    {
        assert!(log.contains(reason), "lacks {reason:?}: {log}");
    }
    // On loopback TLS is offered and not required.
    let plain = format!("nbd://localhost:{}/", served.port.number());
    tool("nbdinfo").args(["--size", &plain]).run().ok();
}

#[test]
fn plaintext_behind_starttls_is_never_answered() {
    let served = Plain::start(false);
    let mut segment = option_bytes(STARTTLS, &[]);
    segment.extend(option_bytes(3, &[]));
    segment.extend(option_bytes(1, b"disk.img"));
    let mut client = RawHandshake::open("127.0.0.1", served.address());
    client.send(&segment);
    let reply = client.reply().expect("the answer to STARTTLS");
    assert_eq!(reply, OptionReply { option: STARTTLS, kind: ACK, data: Vec::new() });
    // At most an alert of TLS (a record of type 21), then the end.
    let rest = client.rest();
    assert!(rest.is_empty() || rest[0] == 21, "{rest:?}");
    assert!(!rest.windows(8).any(|bytes| bytes == 0x0003_e889_0455_65a9_u64.to_be_bytes()), "{rest:?}");
    wait_until("a reason in the log", LIMIT, || served.log().contains("TLS with client 127.0.0.1:"));
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let served = Plain::start(false);
    let client = served.authority.client(served.dir.path(), "client");
    served.qemu_io(&client, "", "read 0 512").ok();
    let mut idle = 0;
    wait_until("a server at rest", LIMIT, || {
        let before = std::mem::replace(&mut idle, served.descriptors());
        before == idle
    });
    for moment in 0..30 {
        let mut client = RawHandshake::open("127.0.0.1", served.address());
        client.send(&option_bytes(STARTTLS, &[]));
        if moment % 3 > 0 {
            client.reply().expect("the answer to STARTTLS");
        }
        if moment % 3 == 1 {
            // The beginning of a record.
            client.send(&[22, 3, 1, 2, 0, 1]);
        }
    }
    // In the middle of much data, by their own end.
    for _ in 0..3 {
        let script = "import nbd,sys,os\nh=nbd.NBD()\nh.set_uri_allow_local_file(True)\nh.connect_uri(sys.argv[1])\n\
            b=nbd.Buffer.from_bytearray(bytearray(1<<20))\nfor i in range(16): h.aio_pwrite(b,i<<20)\n\
            for i in range(50): h.poll(0)\nos._exit(0)\n";
        tool("python3").args(["-c", script, &served.tcp_uri(&client)]).run().ok();
    }
    wait_until("every descriptor closed", LIMIT, || served.descriptors() <= idle);
    tool("nbdinfo").args(["--size", &served.tcp_uri(&client)]).run().ok();
}

/// Alpha alone, its copy the source, with these lines in the configuration, and clients' folders of its authority.
struct Daemon {
    cluster: Cluster,
    authority: Authority,
    port: Port,
}

impl Daemon {
    /// `node` goes into alpha's table, `lists` into the resources': the first one's, the second one's.
    fn start(tls: &str, node: &str, lists: [&str; 2]) -> Daemon {
        let plan = Plan { resources: 2, size_bytes: 16 * MIB, buffer_mib: 64, ..Plan::default() };
        let (mut cluster, authority, port) = (Cluster::new(&plan), Authority::new("a test"), Port::reserve());
        authority.write_server(cluster.dir());
        let ca = authority.write(&cluster.dir().join("clients.pem"));
        let dir = cluster.dir().display().to_string();
        let certificate = format!(
            "[tls]\ncert-file = \"{dir}/server-cert.pem\"\nkey-file = \"{dir}/server-key.pem\"\n{}",
            tls.replace("CLIENTS", &ca.display().to_string())
        );
        let text = std::fs::read_to_string(cluster.alpha.config()).expect("the configuration");
        let socket = format!("nbd = [\"unix:{dir}/alpha/nbd.sock\"]");
        let both = format!("nbd = [\"unix:{dir}/alpha/nbd.sock\", \"127.0.0.1:{}\"]\n{node}", port.number());
        let mut text = text.replacen("[node.alpha]", &format!("{certificate}[node.alpha]"), 1);
        assert!(text.contains(&socket), "{text}");
        text = text.replacen(&socket, &both, 1);
        for (name, list) in [RESOURCE, SECOND].iter().zip(lists) {
            let head = format!("name = \"{name}\"\n");
            text = text.replacen(&head, &format!("{head}{list}"), 1);
        }
        std::fs::write(cluster.alpha.config(), text).expect("write the configuration");
        for resource in [RESOURCE, SECOND] {
            cluster.alpha.lockstep(&["create-md", resource, "--source"]).ok();
        }
        cluster.alpha.start();
        for resource in [RESOURCE, SECOND] {
            cluster.alpha.lockstep(&["promote", resource, "--peer-is-down"]).ok();
        }
        Daemon { cluster, authority, port }
    }

    fn raw_from(&self, address: &str) -> RawHandshake {
        RawHandshake::open(address, SocketAddr::from(([127, 0, 0, 1], self.port.number())))
    }

    fn uri(&self, client: &Path, export: &str) -> String {
        format!("nbds://localhost:{}/{export}?tls-certificates={}", self.port.number(), client.display())
    }

    #[track_caller]
    fn wait_said(&self, words: &[&str]) {
        let said = |line: &str| words.iter().all(|word| line.contains(word));
        wait_until(&format!("{words:?} in the log"), LIMIT, || self.cluster.alpha.log().lines().any(said));
    }
}

fn info(export: &str) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend([0, 0]);
    data
}

/// Names that a list of exports has.
fn listed(replies: &[OptionReply]) -> Vec<String> {
    let servers = replies.iter().filter(|reply| reply.kind == SERVER);
    servers.map(|reply| String::from_utf8_lossy(&reply.data[4..]).into_owned()).collect()
}

#[test]
fn a_listener_that_requires_tls_says_so_to_everything() {
    let daemon =
        Daemon::start("", "tls = \"required\"\nnbd-mode = \"0620\"\nnbd-group = \"daemon\"\n", ["", ""]);
    let mut client = daemon.raw_from("127.0.0.1");
    for (option, data) in
        [(3, vec![]), (6, info(RESOURCE)), (7, info("none")), (8, vec![]), (10, vec![1]), (99, vec![])]
    {
        let replies = client.ask(option, &data);
        assert_eq!((replies.len(), replies[0].kind), (1, ERR_TLS_REQD), "option {option}: {replies:?}");
    }
    assert_eq!(client.ask(2, &[])[0].kind, ACK);
    assert!(client.rest().is_empty());
    let mut client = daemon.raw_from("127.0.0.1");
    client.send(&option_bytes(1, RESOURCE.as_bytes()));
    assert!(client.rest().is_empty(), "EXPORT_NAME has no answer but the end");
    let port = daemon.port.number();
    let plain = tool("nbdinfo").arg(format!("nbd://localhost:{port}/{RESOURCE}")).run();
    assert_ne!(plain.code, 0, "{plain}");
    // A client that uses TLS if it can needs to be told nothing.
    let folder = daemon.authority.client(daemon.cluster.dir(), "client");
    tool("nbdinfo").arg(daemon.uri(&folder, RESOURCE)).run().ok();
    let uri = daemon.cluster.alpha.lockstep(&["status", RESOURCE, "--json"]).ok();
    assert!(uri.contains(&format!("nbds://127.0.0.1:{port}/{RESOURCE}")), "{uri}");
    // The unix socket, of the mode and group that were asked for, serves without it.
    let facts = std::fs::metadata(daemon.cluster.alpha.nbd()).expect("a socket");
    let group = std::fs::read_to_string("/etc/group").expect("groups");
    let id = group.lines().find_map(|line| line.strip_prefix("daemon:x:")?.split(':').next()?.parse().ok());
    assert_eq!((facts.permissions().mode() & 0o7777, Some(facts.gid())), (0o620, id));
    daemon.cluster.alpha.connect().expect("a client without TLS");
}

#[test]
fn exports_are_hidden_from_whom_they_are_not_for() {
    let lists =
        ["allow = [\"127.0.0.1\"]\n", "allow = [\"127.0.0.0/8\", \"::1\"]\nallow-names = [\"*.example\"]\n"];
    let tls = "client-ca-file = \"CLIENTS\"\nclient-certificates = \"optional\"\n";
    let daemon = Daemon::start(tls, "", lists);
    // By address: r0 is for 127.0.0.1 alone, r1 needs a name.
    let mut near = daemon.raw_from("127.0.0.1");
    assert_eq!(listed(&near.ask(3, &[])), [RESOURCE]);
    assert_eq!(near.ask(6, &info(RESOURCE)).last().map(|reply| reply.kind), Some(ACK));
    assert_eq!(near.ask(6, &info(SECOND))[0].kind, ERR_TLS_REQD);
    let mut far = daemon.raw_from("127.0.0.2");
    assert!(listed(&far.ask(3, &[])).is_empty());
    let (hidden, absent) = (far.ask(7, &info(RESOURCE)), far.ask(7, &info("none")));
    assert_eq!(hidden[0].kind, ERR_UNKNOWN);
    assert_eq!(hidden, absent, "what may not be opened looks like what does not exist");
    daemon.wait_said(&[RESOURCE, "127.0.0.2:", "may not open it", "(allow)"]);
    far.send(&option_bytes(1, RESOURCE.as_bytes()));
    assert!(far.rest().is_empty());
    assert!(daemon.cluster.alpha.connect().is_err(), "nor by the unix socket");
    // By name, inside of TLS.
    let dir = daemon.cluster.dir();
    let [named, other, none] = ["named", "other", "none"].map(|name| daemon.authority.client(dir, name));
    daemon.authority.certify_client(&named, "a machine", &["vm1.example"], false);
    daemon.authority.certify_client(&other, "vm1.example.org", &[], false);
    let list = |client: &Path| {
        let text = tool("nbdinfo").args(["--list", "--json", &daemon.uri(client, "")]).run().ok();
        let list: serde_json::Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
        let exports = list["exports"].as_array().expect("exports").clone();
        let names =
            exports.iter().map(|export| export["export-name"].as_str().unwrap_or_default().to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(list(&named), [RESOURCE, SECOND]);
    assert_eq!(list(&other), [RESOURCE]);
    assert_eq!(list(&none), [RESOURCE]);
    tool("nbdinfo").args(["--size", &daemon.uri(&named, SECOND)]).run().ok();
    for (client, why) in [(&other, "vm1.example.org"), (&none, "no certificate")] {
        assert_ne!(tool("nbdinfo").args(["--size", &daemon.uri(client, SECOND)]).run().code, 0);
        daemon.wait_said(&[SECOND, "may not open it", why]);
    }
}

#[test]
fn files_that_cannot_serve_keep_the_daemon_from_starting() {
    let cluster = Cluster::new(&Plan::default());
    let authority = Authority::new("a test");
    authority.write_server(cluster.dir());
    let dir = cluster.dir().display();
    let text = std::fs::read_to_string(cluster.alpha.config()).expect("the configuration");
    let refused = |tls: &str, node: &str, words: &[&str]| {
        let changed = format!("[tls]\n{tls}[node.alpha]\n{node}");
        std::fs::write(cluster.alpha.config(), text.replacen("[node.alpha]\n", &changed, 1)).expect("write");
        for verb in [&["config", "check"][..], &["daemon"]] {
            cluster.alpha.lockstep(verb).refused(10, words);
        }
    };
    let key = format!("{dir}/server-key.pem");
    let files = format!("cert-file = \"{dir}/server-cert.pem\"\nkey-file = \"{key}\"\n");
    refused(&files.replace("server-cert", "absent"), "", &["cert-file", "absent.pem", "No such file"]);
    refused(&files.replace("server-key", "server-cert"), "", &["key-file", "lets others read it"]);
    refused(&files, "nbd-group = \"nobody-has-it\"\n", &["nbd-group", "nobody-has-it", "groupadd"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("mode of the key");
    refused(&files, "", &["key-file", "chmod 0600", &key]);
}
