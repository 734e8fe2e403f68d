//! Every wrong configuration is refused with its line; every right one gives what it says.

use super::*;
use lockstep_engine::TlsPolicy;

const GOOD: &str = r#"cluster = "c1"
secret-file = "/etc/lockstep/secret"
[node.beta]
address = "10.0.0.2:7800"
[node.alpha]
address = "10.0.0.1:7800"
nbd = ["unix:/run/lockstep/nbd.sock", "127.0.0.1:10809"]
[[resource]]
name = "r0"
disk = "/dev/vdb"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/x/lockstep.toml"), text)
}

#[test]
fn minimal_file_has_the_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node_names(), "alpha, beta");
    assert_eq!(
        (config.node_id("alpha"), config.node_id("beta"), config.node_id("gamma")),
        (Some(0), Some(1), None)
    );
    let places = |node: usize| {
        let listeners = config.nodes[node].nbd.listeners.iter();
        listeners.map(|listener| (listener.place.clone(), listener.tls)).collect::<Vec<_>>()
    };
    assert_eq!(places(0).len(), 2);
    assert_eq!(places(1), [(NbdPlace::Unix(PathBuf::from(DEFAULT_NBD_SOCKET)), TlsPolicy::Off)]);
    assert_eq!((config.nodes[1].nbd.socket_mode, &config.nodes[1].nbd.socket_group), (0o660, &None));
    assert_eq!((&config.tls, &config.resources[0].access), (&None, &Access::default()));
    let r0 = config.resource("r0").unwrap();
    assert_eq!((r0.disk_path(0), r0.disk_path(1)), (Path::new("/dev/vdb"), Path::new("/dev/vdb")));
    assert_eq!(r0.meta_path(1, Path::new("/s")), Path::new("/s/r0.0.meta"));
    assert_eq!(r0.timing.timeout, Duration::from_secs(6));
    assert_eq!(r0.max_hot_regions, MAX_HOT_DEFAULT_REGIONS);
    assert_eq!(r0.buffer_memory_bytes, Limits::BUFFER_BYTES);
}

#[test]
fn all_keys() {
    let text = GOOD.replace("disk = \"/dev/vdb\"\n", "disk.alpha = \"/dev/a\"\ndisk.beta = \"/b.img\"\n")
        + r#"size = "64MiB"
meta = { alpha = "/m/a", beta = "/m/b" }
max-hot = "64MiB"
timeout = "2s"
heartbeat = "500ms"
io-timeout = "10s"
epoch = "200ms"
buffer-memory = "64MiB"
[[resource]]
name = "r1"
disk = "/dev/vdc"
max-hot = 100
"#;
    let text = format!("hold-greeting = \"3s\"\n{text}");
    let text = text.replace("[node.beta]\n", "[node.beta]\ntls = \"off\"\nnbd = [\"0.0.0.0:10809\"]\n");
    let config = parse(&text).unwrap();
    let r0 = config.resource("r0").unwrap();
    assert_eq!((r0.disk_path(0), r0.disk_path(1)), (Path::new("/dev/a"), Path::new("/b.img")));
    assert_eq!(r0.meta_path(1, Path::new("/s")), Path::new("/m/b"));
    assert_eq!((r0.size_bytes, r0.max_hot_regions), (Some(64 << 20), 16));
    assert_eq!(r0.timing.epoch, Duration::from_millis(200));
    assert_eq!(config.resource("r1").unwrap().max_hot_regions, 100);
    assert_eq!((config.hold_greeting, r0.buffer_memory_bytes), (Duration::from_secs(3), 64 << 20));
    let listener = &config.nodes[1].nbd.listeners[0];
    assert_eq!(listener.place, NbdPlace::Tcp(HostPort { host: "0.0.0.0".into(), port: 10809 }));
    assert_eq!(listener.tls, TlsPolicy::Off);
}

const TLS: &str = r#"[tls]
cert-file = "/t/cert.pem"
key-file = "/t/key.pem"
client-ca-file = "/t/clients.pem"
"#;

#[test]
fn what_listeners_do_about_tls() {
    let policies = |tls: &str, node: &str| {
        let nbd = "nbd = [\"unix:/n\", \"127.0.0.1:10809\", \"[::1]:10809\", \"10.0.0.2:10809\"]";
        let text = GOOD.replace("[node.beta]\n", &format!("{tls}[node.beta]\n{nbd}\n{node}"));
        let nbd = parse(&text).unwrap().nodes.remove(1).nbd;
        nbd.listeners.iter().map(|listener| listener.tls).collect::<Vec<_>>()
    };
    let (off, optional, required) = (TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required);
    assert_eq!(policies("", "tls = \"off\"\n"), [off; 4]);
    assert_eq!(policies(TLS, ""), [optional, optional, optional, required]);
    assert_eq!(policies(TLS, "tls = \"off\"\n"), [optional, off, off, off]);
    assert_eq!(policies(TLS, "tls = \"optional\"\n"), [optional; 4]);
    assert_eq!(policies(TLS, "tls = \"required\"\n"), [optional, required, required, required]);
}

#[test]
fn who_may_open_what() {
    let lists = "allow = [\"10.0.0.0/24\", \"fd00::/8\", \"192.168.1.9\", \"unix\"]\n\
        allow-names = [\"vm1.example\", \"*.cluster.example\"]\n";
    let socket = "nbd-mode = \"0600\"\nnbd-group = \"kvm\"\n";
    let text = GOOD
        .replace("[node.beta]\n", &format!("{TLS}client-certificates = \"optional\"\n[node.beta]\n{socket}"));
    let config = parse(&format!("{text}{lists}")).unwrap();
    let nbd = &config.nodes[1].nbd;
    assert_eq!((nbd.socket_mode, nbd.socket_group.as_deref()), (0o600, Some("kvm")));
    let tls = config.tls.as_ref().unwrap();
    assert_eq!(tls.client_ca_file.as_deref(), Some(Path::new("/t/clients.pem")));
    assert!(tls.client_certificates_optional);
    let access = &config.resources[0].access;
    let said = |words: &[&dyn ToString]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let origins: Vec<&dyn ToString> = access.origins.iter().map(|origin| origin as _).collect();
    assert_eq!(said(&origins), ["10.0.0.0/24", "fd00::/8", "192.168.1.9/32", "unix"]);
    let names: Vec<&dyn ToString> = access.names.iter().map(|name| name as _).collect();
    assert_eq!(said(&names), ["vm1.example", "*.cluster.example"]);
}

/// Replace `from` by `to` in the good file: the error must be on that line and say these words.
fn refused(from: &str, to: &str, line: usize, words: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    let error = parse(&text).expect_err(&text);
    assert_eq!(error.line, Some(line), "{error}\n{text}");
    for word in words {
        assert!(error.message.contains(word), "{error}: lacks {word}");
    }
    assert!(error.to_string().starts_with(&format!("/x/lockstep.toml:{line}: ")), "{error}");
}

#[test]
fn unknown_keys_name_line_and_neighbour() {
    refused(
        "disk = ",
        "dsik = ",
        10,
        &["\"dsik\"", "[[resource]]", "did you mean \"disk\"?", "allowed: name, disk"],
    );
    refused("cluster = ", "clusterr = ", 1, &["did you mean \"cluster\"?"]);
    refused("address = \"10.0.0.1", "adress = \"10.0.0.1", 6, &["[node.alpha]", "did you mean \"address\"?"]);
    refused(
        "nbd = ",
        "listen-here = ",
        7,
        &["unknown key", "allowed: address, nbd, nbd-mode, nbd-group, tls"],
    );
    refused("[node.alpha]", "[nodes.alpha]", 5, &["did you mean \"node\"?"]);
    refused("name = \"r0\"", "name = \"r0\"\ntimeuot = \"1s\"", 10, &["did you mean \"timeout\"?"]);
}

#[test]
fn missing_keys() {
    refused("cluster = \"c1\"\n", "", 1, &["cluster"]);
    refused("secret-file = \"/etc/lockstep/secret\"\n", "", 1, &["secret-file"]);
    refused("address = \"10.0.0.2:7800\"\n", "", 3, &["[node.beta]", "address"]);
    refused("name = \"r0\"\n", "", 8, &["name"]);
    refused("disk = \"/dev/vdb\"\n", "", 8, &["disk"]);
    refused("[[resource]]\nname = \"r0\"\ndisk = \"/dev/vdb\"\n", "", 1, &["[[resource]]"]);
}

#[test]
fn wrong_values() {
    refused("\"c1\"", "7", 1, &["cluster", "a string"]);
    refused("\"c1\"", "\"a b\"", 1, &["name of a cluster"]);
    refused("\"/etc/lockstep/secret\"", "\"secret\"", 2, &["absolute path"]);
    refused("\"10.0.0.2:7800\"", "\"10.0.0.2\"", 4, &["HOST:PORT"]);
    refused("\"10.0.0.2:7800\"", "\"fd00::2:7800:\"", 4, &["HOST:PORT"]);
    refused("\"10.0.0.2:7800\"", "\"10.0.0.2:0\"", 4, &["HOST:PORT"]);
    refused("\"10.0.0.2:7800\"", "\"10.0.0.2:77777\"", 4, &["HOST:PORT"]);
    refused("\"r0\"", "\"../r0\"", 9, &["name of a resource"]);
    refused("\"r0\"", "\"\"", 9, &["name of a resource"]);
    refused("\"/dev/vdb\"", "\"vdb\"", 10, &["absolute path"]);
    refused("\"/dev/vdb\"", "[\"/dev/vdb\"]", 10, &["one string per node"]);
    refused("[node.beta]", "[node.\"be ta\"]", 3, &["name of a node"]);
    refused("cluster = \"c1\"", "cluster = \"c1", 1, &[]);
    refused("disk = \"/dev/vdb\"", "disk = \"/dev/vdb\"\ndisk.beta = \"/x\"", 11, &["disk.alpha"]);
    refused("[[resource]]", "[resource]", 8, &["[[resource]]"]);
    refused("[node.beta]\naddress = \"10.0.0.2:7800\"", "[node]\nbeta = 3", 4, &["[node.NAME]"]);
}

#[test]
fn wrong_quantities() {
    let with = |key: &str| format!("disk = \"/dev/vdb\"\n{key}\n");
    for (key, words) in [
        ("size = \"10GB\"", "KiB, MiB"),
        ("size = \"5000\"", "out of range"),
        ("size = 1048577", "multiple of 4 KiB"),
        ("size = true", "a number"),
        ("size = 0x100000", "a number"),
        ("size = -4096", "no size"),
        ("buffer-memory = \"1MiB\"", "64 MiB to 64 GiB"),
        ("max-hot = 0", "4 to 1048576 regions"),
        ("max-hot = \"5MiB\"", "out of range"),
        ("max-hot = \"17MiB\"", "multiple of 4 MiB"),
        ("timeout = 6", "a string"),
        ("timeout = \"6\"", "no duration"),
        ("timeout = \"1ms\"", "out of range"),
        ("heartbeat = \"4s\"", "half of timeout"),
        ("timeout = \"1s\"", "half of timeout"),
        ("io-timeout = \"0s\"", "out of range"),
        ("epoch = \"2min\"", "out of range"),
    ] {
        refused("disk = \"/dev/vdb\"\n", &with(key), 11, &[words, key.split(' ').next().unwrap_or("")]);
    }
    refused("cluster", "hold-greeting = \"6min\"\ncluster", 1, &["hold-greeting", "out of range"]);
}

#[test]
fn two_nodes_exactly() {
    let words = ["exactly two nodes", "refuses more than one peer"];
    refused("[node.alpha]", "[node.gamma]\naddress = \"10.0.0.3:7800\"\n[node.alpha]", 3, &words);
    refused("[node.beta]\naddress = \"10.0.0.2:7800\"\n", "", 3, &["exactly two nodes"]);
}

#[test]
fn per_node_paths() {
    refused("disk = \"/dev/vdb\"", "disk.alpha = \"/a\"", 10, &["disk.beta is missing"]);
    refused(
        "disk = \"/dev/vdb\"",
        "disk.alpha = \"/a\"\ndisk.bata = \"/b\"",
        11,
        &["did you mean \"beta\"?"],
    );
    refused("disk = \"/dev/vdb\"", "disk.alpha = 1", 10, &["a string per node"]);
    refused("disk = \"/dev/vdb\"", "disk = \"/x\"\nmeta.alpha = \"m\"", 11, &["absolute path"]);
    refused(
        "disk = \"/dev/vdb\"",
        "disk = \"/x\"\nmeta = \"/x\"",
        9,
        &["both disk of \"r0\" and metadata of \"r0\""],
    );
}

#[test]
fn resources_do_not_collide() {
    let second = |name: &str, disk: &str| {
        format!("disk = \"/dev/vdb\"\n[[resource]]\nname = \"{name}\"\ndisk = \"{disk}\"\n")
    };
    refused("disk = \"/dev/vdb\"\n", &second("r0", "/dev/vdc"), 12, &["exists already on line 9"]);
    refused("disk = \"/dev/vdb\"\n", &second("r1", "/dev/vdb"), 12, &["disk of \"r0\"", "disk of \"r1\""]);
}

#[test]
fn listeners() {
    refused(
        "\"127.0.0.1:10809\"",
        "\"10.0.0.1:10809\"",
        7,
        &["tls = \"off\" into [node.alpha]", "overwrite"],
    );
    refused("\"127.0.0.1:10809\"", "\"0.0.0.0:10809\"", 7, &["tls = \"off\""]);
    refused("\"127.0.0.1:10809\"", "\"unix:nbd.sock\"", 7, &["unix:/ABSOLUTE/PATH"]);
    refused("\"127.0.0.1:10809\"", "\"10809\"", 7, &["HOST:PORT"]);
    refused("\"127.0.0.1:10809\"", "10809", 7, &["a list of strings"]);
    refused("nbd = [\"unix:/run/lockstep/nbd.sock\", \"127.0.0.1:10809\"]", "nbd = []", 7, &["1 to 16"]);
    refused("nbd = [\"unix:/run/lockstep/nbd.sock\", \"127.0.0.1:10809\"]", "nbd = \"x\"", 7, &["list"]);
    refused("nbd = ", "tls = \"on\"\nnbd = ", 7, &["allowed: \"off\""]);
    for good in ["[::1]:10809", "localhost:10809", "tcp:127.0.0.2:1"] {
        parse(&GOOD.replace("127.0.0.1:10809", good)).unwrap();
    }
}

#[test]
fn absent_file_says_what_to_type() {
    let error = Config::load(Path::new("/nowhere/lockstep.toml")).unwrap_err();
    assert_eq!(error.line, None);
    assert!(error.message.contains("config init"), "{error}");
}
