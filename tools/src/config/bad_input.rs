//! Every key of the configuration, wrong in every way: missing, of each wrong type, empty, out of range, with
//! a bad unit, given twice, misspelt, in the wrong table, against another key.
//!
//! Each error must name the line and the key and say what is allowed. A key that the parser knows and this
//! table does not is a failure, so that no key comes without its errors. Beyond the table, a file that is
//! damaged anywhere gives an error with a line that it has, and never a panic.

use super::*;

/// Every key once, one per line.
const FULL: &str = r#"cluster = "c1"
secret-file = "/etc/lockstep/secret"
hold-greeting = "10s"
max-clients = 64
shards = 2
congestion-control = "bbr"
memory-max = "512MiB"
[tls]
cert-file = "/t/cert.pem"
key-file = "/t/key.pem"
client-ca-file = "/t/clients.pem"
client-certificates = "required"
[node.alpha]
address = "10.0.0.1:7800"
nbd = ["unix:/run/lockstep/nbd.sock"]
nbd-mode = "0660"
nbd-group = "kvm"
tls = "off"
[node.beta]
address = "10.0.0.2:7800"
[[resource]]
name = "r0"
disk = "/dev/vdb"
size = "10GiB"
meta = "/m/r0"
max-hot = "64MiB"
buffer-memory = "64MiB"
timeout = "6s"
heartbeat = "1s"
io-timeout = "60s"
disk-timeout = "30s"
epoch = "1s"
allow = ["10.0.0.0/24"]
allow-names = ["vm1.example"]
"#;

/// A value of each type of TOML, with the type's name.
const VALUES: &[(&str, &str)] = &[
    ("string", "\"x\""),
    ("integer", "7"),
    ("float", "1.5"),
    ("boolean", "true"),
    ("datetime", "1979-05-27"),
    ("array", "[1]"),
    ("table", "{ x = 1 }"),
];

/// A key: where it belongs, what it takes, and values of the right type that are wrong, each with a word that
/// must be said beside the key.
struct Key {
    place: &'static str,
    key: &'static str,
    required: bool,
    /// Types that it takes; empty for tables, whose cases are written out below.
    types: &'static [&'static str],
    wrong: &'static [(&'static str, &'static str)],
}

const TOP: &str = "the top of the file";
const TLS: &str = "[tls]";
const NODE: &str = "[node.NAME]";
const RESOURCE: &str = "[[resource]]";

const NO_NAMES: &[(&str, &str)] = &[
    ("\"\"", "1 to 64 letters"),
    ("\" \"", "1 to 64 letters"),
    ("\"a b\"", "1 to 64 letters"),
    ("\"../a\"", "1 to 64 letters"),
    ("\"-a\"", "the first one a letter or a digit"),
    ("\"ä\"", "1 to 64 letters"),
    ("\"a/b\"", "1 to 64 letters"),
    ("\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", "1 to 64 letters"),
];

const NO_PATHS: &[(&str, &str)] = &[
    ("\"\"", "absolute path"),
    ("\"vdb\"", "absolute path"),
    ("\"./vdb\"", "absolute path"),
    ("\"~/vdb\"", "absolute path"),
    ("\"/a\\u0000b\"", "absolute path"),
];

const NO_PATHS_PER_NODE: &[(&str, &str)] = &[
    ("\"\"", "absolute path"),
    ("\"vdb\"", "absolute path"),
    ("\"/a\\u0000b\"", "absolute path"),
    ("{ alpha = \"/a\" }", "beta is missing"),
    ("{ alpha = \"/a\", beta = \"b\" }", "absolute path"),
    ("{ alpha = \"/a\", beta = \"\" }", "absolute path"),
    ("{ alpha = \"/a\", beta = 7 }", "a string per node"),
    ("{ alpha = \"/a\", beta = \"/b\", gamma = \"/c\" }", "alpha, beta"),
    ("{}", "alpha is missing"),
];

/// What no duration may be, whatever its range.
const NO_DURATIONS: &[(&str, &str)] = &[
    ("\"\"", "for example \"500ms\""),
    ("\"6\"", "for example \"500ms\""),
    ("\"s\"", "for example \"500ms\""),
    ("\"6 sec\"", "for example \"500ms\""),
    ("\"6d\"", "for example \"500ms\""),
    ("\"1.5s\"", "for example \"500ms\""),
    ("\"-1s\"", "for example \"500ms\""),
    ("\"99999999999999999999s\"", "for example \"500ms\""),
    ("\"9999999999999999999s\"", "too long"),
    ("\"1ms1s\"", "for example \"500ms\""),
    ("\"100000h\"", "allowed: "),
];

/// What no size may be, whatever its range.
const NO_SIZES: &[(&str, &str)] = &[
    ("\"\"", "KiB, MiB"),
    ("\"GiB\"", "KiB, MiB"),
    ("\"10GB\"", "KiB, MiB"),
    ("\"10gib\"", "KiB, MiB"),
    ("\"1.5GiB\"", "KiB, MiB"),
    ("\"-4MiB\"", "KiB, MiB"),
    ("\"all\"", "KiB, MiB"),
    ("\"16777216TiB\"", "too large"),
    ("\"99999999999999999999\"", "KiB, MiB"),
    ("-4096", "KiB, MiB"),
    ("0x100000", "a number"),
    ("0", "allowed: "),
    ("1", "allowed: "),
];

const KEYS: &[Key] = &[
    Key { place: TOP, key: "cluster", required: true, types: &["string"], wrong: NO_NAMES },
    Key { place: TOP, key: "secret-file", required: true, types: &["string"], wrong: NO_PATHS },
    Key { place: TOP, key: "hold-greeting", required: false, types: &["string"], wrong: NO_DURATIONS },
    Key { place: TOP, key: "node", required: true, types: &[], wrong: &[] },
    Key { place: TOP, key: "tls", required: false, types: &[], wrong: &[] },
    Key { place: TLS, key: "cert-file", required: true, types: &["string"], wrong: NO_PATHS },
    Key { place: TLS, key: "key-file", required: true, types: &["string"], wrong: NO_PATHS },
    Key { place: TLS, key: "client-ca-file", required: false, types: &["string"], wrong: NO_PATHS },
    Key {
        place: TLS,
        key: "client-certificates",
        required: false,
        types: &["string"],
        wrong: &[
            ("\"\"", "allowed: \"optional\""),
            ("\"none\"", "\"required\""),
            ("\"Required\"", "allowed"),
        ],
    },
    Key { place: TOP, key: "resource", required: true, types: &[], wrong: &[] },
    Key {
        place: NODE,
        key: "address",
        required: true,
        types: &["string"],
        wrong: &[
            ("\"\"", "HOST:PORT"),
            ("\"10.0.0.1\"", "HOST:PORT"),
            ("\":7800\"", "HOST:PORT"),
            ("\"10.0.0.1:\"", "HOST:PORT"),
            ("\"10.0.0.1:0\"", "HOST:PORT"),
            ("\"10.0.0.1:65536\"", "HOST:PORT"),
            ("\"10.0.0.1:-1\"", "HOST:PORT"),
            ("\"fd00::1:7800:\"", "HOST:PORT"),
            ("\"[fd00::1:7800\"", "HOST:PORT"),
            ("\"a b:7800\"", "HOST:PORT"),
            ("\"unix:/run/x\"", "HOST:PORT"),
        ],
    },
    Key {
        place: NODE,
        key: "nbd",
        required: false,
        types: &["array"],
        wrong: &[
            ("[]", "1 to 16"),
            ("[\"\"]", "HOST:PORT"),
            ("[\"unix:\"]", "unix:/ABSOLUTE/PATH"),
            ("[\"unix:nbd.sock\"]", "unix:/ABSOLUTE/PATH"),
            ("[\"10809\"]", "HOST:PORT"),
            ("[\"127.0.0.1:0\"]", "HOST:PORT"),
            ("[\"unix:/a\", 7]", "a list of strings"),
            ("[\"unix:/a\", [\"unix:/b\"]]", "a list of strings"),
        ],
    },
    Key {
        place: NODE,
        key: "tls",
        required: false,
        types: &["string"],
        wrong: &[
            ("\"\"", "allowed: \"off\""),
            ("\"on\"", "allowed: \"off\""),
            ("\"OFF\"", "allowed: \"off\""),
        ],
    },
    Key {
        place: NODE,
        key: "nbd-mode",
        required: false,
        types: &["string"],
        wrong: &[
            ("\"\"", "octal"),
            ("\"rw\"", "octal"),
            ("\"0680\"", "octal"),
            ("\"1777\"", "\"0777\""),
            ("\"00660\"", "octal"),
            ("\"+660\"", "octal"),
            ("\"60\"", "octal"),
        ],
    },
    Key {
        place: NODE,
        key: "nbd-group",
        required: false,
        types: &["string"],
        wrong: &[("\"\"", "name of a group"), ("\"a b\"", "name of a group"), ("\"a:b\"", "name of a group")],
    },
    Key {
        place: RESOURCE,
        key: "allow",
        required: false,
        types: &["array"],
        wrong: &[
            ("[]", "without the key everybody is"),
            ("[\"\"]", "no network"),
            ("[\"10.0.0.0/33\"]", "no network"),
            ("[\"10.0.0/8\"]", "no network"),
            ("[\"fd00::/129\"]", "no network"),
            ("[\"UNIX\"]", "no network"),
            ("[\"vm1.example\"]", "no network"),
            ("[\"10.0.0.1:10809\"]", "no network"),
            ("[\"10.0.0.1/24\"]", "\"10.0.0.0/24\""),
            ("[\"fd00::1/8\"]", "\"fd00::/8\""),
            ("[\"unix\", 7]", "a list of strings"),
        ],
    },
    Key {
        place: RESOURCE,
        key: "allow-names",
        required: false,
        types: &["array"],
        wrong: &[
            ("[]", "without the key everybody is"),
            ("[\"\"]", "no name"),
            ("[\"*\"]", "no name"),
            ("[\"*.*.example\"]", "no name"),
            ("[\"vm*.example\"]", "no name"),
            ("[7]", "a list of strings"),
        ],
    },
    Key { place: RESOURCE, key: "name", required: true, types: &["string"], wrong: NO_NAMES },
    Key {
        place: RESOURCE,
        key: "disk",
        required: true,
        types: &["string", "table"],
        wrong: NO_PATHS_PER_NODE,
    },
    Key {
        place: RESOURCE,
        key: "meta",
        required: false,
        types: &["string", "table"],
        wrong: NO_PATHS_PER_NODE,
    },
    Key {
        place: TOP,
        key: "max-clients",
        required: false,
        types: &["string", "integer"],
        wrong: &[("\"\"", "1 to 4096"), ("0", "1 to 4096"), ("-1", "1 to 4096"), ("\"many\"", "1 to 4096")],
    },
    Key {
        place: TOP,
        key: "shards",
        required: false,
        types: &["string", "integer"],
        wrong: &[("\"\"", "1 to 64"), ("0", "1 to 64"), ("-1", "1 to 64"), ("\"all\"", "1 to 64")],
    },
    Key {
        place: TOP,
        key: "congestion-control",
        required: false,
        types: &["string"],
        wrong: &[
            ("\"\"", "for example \"cubic\""),
            ("\"b b r\"", "tcp_available_congestion_control"),
            ("\"sixteen-letters-\"", "is no name"),
        ],
    },
    Key { place: TOP, key: "memory-max", required: false, types: &["string", "integer"], wrong: NO_SIZES },
    Key { place: RESOURCE, key: "size", required: false, types: &["string", "integer"], wrong: NO_SIZES },
    Key { place: RESOURCE, key: "max-hot", required: false, types: &["string", "integer"], wrong: NO_SIZES },
    Key {
        place: RESOURCE,
        key: "buffer-memory",
        required: false,
        types: &["string", "integer"],
        wrong: NO_SIZES,
    },
    Key { place: RESOURCE, key: "timeout", required: false, types: &["string"], wrong: NO_DURATIONS },
    Key { place: RESOURCE, key: "heartbeat", required: false, types: &["string"], wrong: NO_DURATIONS },
    Key { place: RESOURCE, key: "io-timeout", required: false, types: &["string"], wrong: NO_DURATIONS },
    Key { place: RESOURCE, key: "disk-timeout", required: false, types: &["string"], wrong: NO_DURATIONS },
    Key { place: RESOURCE, key: "epoch", required: false, types: &["string"], wrong: NO_DURATIONS },
];

/// What each table of the full file is called where it begins.
const HEADS: &[(&str, &str)] =
    &[(TOP, ""), (TLS, "[tls]\n"), (NODE, "[node.alpha]\n"), (RESOURCE, "[[resource]]\n")];

/// A key that is not required by itself, and the first one in the full file that needs it.
const NEEDED: &[(&str, &str)] = &[("client-ca-file", "client-certificates")];

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/x/lockstep.toml"), text)
}

impl Key {
    /// Its first line in the full file, with the line's number.
    fn line(&self) -> (&'static str, usize) {
        let starts = format!("{} = ", self.key);
        let mut lines = FULL.lines().zip(1..);
        lines.find(|(line, _)| line.starts_with(&starts)).unwrap_or_else(|| panic!("{}", self.key))
    }
}

/// The text is refused at this line, and all of these words are said.
#[track_caller]
fn refused(text: &str, line: usize, words: &[&str]) {
    let error = parse(text).expect_err(text);
    assert_eq!(error.line, Some(line), "{error}\n{text}");
    for word in words {
        assert!(error.message.contains(word), "lacks {word:?}: {error}\n{text}");
    }
    assert!(!error.message.contains('\n'), "one line: {error}");
}

#[test]
fn every_key_of_the_parser_is_in_the_table() {
    let known = PLACES.iter().flat_map(|(place, keys)| keys.iter().map(move |key| (*place, *key)));
    let mut known: Vec<_> = known.collect();
    let mut listed: Vec<_> = KEYS.iter().map(|key| (key.place, key.key)).collect();
    known.sort_unstable();
    listed.sort_unstable();
    assert_eq!(known, listed, "a key needs its row in KEYS and its line in FULL");
    parse(FULL).unwrap();
    let plain = KEYS.iter().filter(|key| !key.types.is_empty());
    assert!(plain.map(Key::line).all(|(line, _)| FULL.contains(line)));
}

#[test]
fn values_of_a_wrong_type() {
    for key in KEYS.iter().filter(|key| !key.types.is_empty()) {
        let (line, number) = key.line();
        for (kind, value) in VALUES.iter().filter(|(kind, _)| !key.types.contains(kind)) {
            let text = FULL.replacen(line, &format!("{} = {value}", key.key), 1);
            let wanted = match key.types {
                ["array"] => "a list of strings",
                [.., "integer"] => "a number",
                _ => "a string",
            };
            let words = [key.key, wanted];
            refused(&text, number, &words);
            assert!(parse(&text).is_err(), "{kind}");
        }
    }
}

#[test]
fn values_that_are_empty_out_of_range_or_without_sense() {
    for key in KEYS {
        for (value, word) in key.wrong {
            let (line, number) = key.line();
            let text = FULL.replacen(line, &format!("{} = {value}", key.key), 1);
            refused(&text, number, &[key.key, word]);
        }
    }
}

#[test]
fn keys_that_are_missing_doubled_misspelt_or_misplaced() {
    for key in KEYS.iter().filter(|key| !key.types.is_empty()) {
        let (line, number) = key.line();
        let without = FULL.replacen(&format!("{line}\n"), "", 1);
        let needed_by = NEEDED.iter().find(|(needed, _)| *needed == key.key);
        match (key.required, parse(&without)) {
            (false, Err(error)) if needed_by.is_some_and(|(_, by)| error.message.starts_with(by)) => {
                assert!(error.message.contains(key.key), "{error}");
            }
            (false, result) => drop(result.unwrap()),
            (true, result) => {
                let error = result.expect_err(key.key);
                assert!(error.message.contains(&format!("needs the key \"{}\"", key.key)), "{error}");
            }
        }
        let twice = FULL.replacen(line, &format!("{line}\n{line}"), 1);
        refused(&twice, number + 1, &["duplicate key", key.key, "give it once"]);
        let first = &key.key[..1];
        let misspelt = FULL.replacen(line, &format!("{first}{line}"), 1);
        refused(&misspelt, number, &[&format!("did you mean \"{}\"", key.key), "allowed: "]);
        let knows = |place: &str| KEYS.iter().any(|known| known.place == place && known.key == key.key);
        for (_, head) in HEADS.iter().filter(|(place, _)| !knows(place)) {
            let (before, after) = FULL.split_at(FULL.find(head).unwrap() + head.len());
            let misplaced = format!("{before}{line}\n{after}");
            let home = format!("into {}", key.place);
            let words = [key.key, "it belongs into ", &home, "allowed: "];
            refused(&misplaced, before.lines().count() + 1, &words);
        }
    }
}

#[test]
fn ranges_end_where_they_say() {
    for (key, low, least, most, high) in [
        ("hold-greeting", None, "0s", "300s", Some("300001ms")),
        ("max-clients", Some("0"), "1", "4096", Some("4097")),
        ("shards", Some("0"), "1", "64", Some("65")),
        ("memory-max", Some("63MiB"), "64MiB", "16TiB", Some("17TiB")),
        ("size", Some("1044480"), "1MiB", "65536TiB", Some("65537TiB")),
        ("max-hot", Some("12MiB"), "16MiB", "4TiB", Some("4398050705408")),
        ("max-hot", Some("3"), "4", "1048576", Some("1048577")),
        ("buffer-memory", Some("63MiB"), "64MiB", "64GiB", Some("65GiB")),
        ("timeout", Some("499ms"), "2s", "600s", Some("600001ms")),
        ("heartbeat", Some("49ms"), "50ms", "3s", Some("3001ms")),
        ("io-timeout", Some("999ms"), "1s", "24h", Some("86400001ms")),
        ("disk-timeout", Some("999ms"), "1s", "600s", Some("600001ms")),
        ("epoch", Some("9ms"), "10ms", "60s", Some("60001ms")),
    ] {
        let row = KEYS.iter().find(|row| row.key == key).unwrap();
        let (line, number) = row.line();
        let with = |value: &str| FULL.replacen(line, &format!("{key} = \"{value}\""), 1);
        for good in [least, most] {
            parse(&with(good)).unwrap_or_else(|error| panic!("{key} = {good}: {error}"));
        }
        for bad in [low, high].into_iter().flatten() {
            refused(&with(bad), number, &[key]);
        }
    }
}

#[test]
fn tables_that_are_no_tables() {
    let nodes = "[node.alpha]\naddress = \"10.0.0.1:7800\"\n";
    for (from, to, line, words) in [
        ("[node.alpha]", "[nodes.alpha]", 13, &["nodes", "did you mean \"node\""][..]),
        ("[node.alpha]", "[node.\"\"]", 13, &["name of a node"]),
        ("[node.alpha]", "[node.\"a b\"]", 13, &["name of a node"]),
        ("[node.alpha]", "[[node.alpha]]", 13, &["node", "[node.NAME]"]),
        ("[node.alpha]", "[node.beta]", 19, &["duplicate key", "beta"]),
        (
            "[node.alpha]",
            "[node.gamma]\naddress = \"10.0.0.3:7800\"\n[node.alpha]",
            13,
            &["exactly two nodes"],
        ),
        ("[[resource]]", "[resource]", 21, &["resource", "[[resource]]"]),
        ("[[resource]]", "[[resources]]", 21, &["did you mean \"resource\""]),
        ("[[resource]]", "[resource.r0]", 21, &["resource", "[[resource]]"]),
        ("[[resource]]", "[[resource]]\n[[resource]]", 21, &["needs the key \"name\""]),
        ("[tls]", "[[tls]]", 8, &["tls", "a table [tls]"]),
        ("[tls]", "[tsl]", 8, &["did you mean \"tls\""]),
        ("[tls]", "[tls]\n[tls.x]", 9, &["tls"]),
        ("cluster", "node = 7\ncluster", 14, &["node"]),
        ("cluster", "resource = []\ncluster", 22, &["resource"]),
        ("cluster", "tls = \"off\"\ncluster", 9, &["tls"]),
    ] {
        refused(&FULL.replacen(from, to, 1), line, words);
    }
    let end = FULL.find("[[resource]]").unwrap();
    refused(&FULL[..end], 1, &["needs the key \"resource\"", "[[resource]]"]);
    for (value, words) in [("[]", "1 to 64"), ("7", "[[resource]]"), ("[7]", "[[resource]]")] {
        refused(&format!("resource = {value}\n{}", &FULL[..end]), 1, &["resource", words]);
    }
    let start = FULL.find("[node.alpha]").unwrap();
    refused(&format!("{}{}", &FULL[..start], &FULL[end..]), 1, &["needs the key \"node\"", "[node.NAME]"]);
    let only = format!("{}{nodes}{}", &FULL[..start], &FULL[end..]);
    refused(&only, 13, &["exactly two nodes"]);
}

#[test]
fn keys_that_contradict_each_other() {
    let disk = "disk = \"/dev/vdb\"";
    let meta = "meta = \"/m/r0\"";
    let second = "epoch = \"1s\"\n[[resource]]\nname = \"r1\"\ndisk = \"/dev/vdb\"";
    let certified = "client-ca-file = \"/t/clients.pem\"\nclient-certificates = \"required\"\n";
    for (from, to, line, words) in [
        (disk, &format!("{disk}\ndisk.alpha = \"/a\"")[..], 24, &["disk", "one key per node"][..]),
        (meta, "meta = \"/dev/vdb\"", 22, &["both disk of \"r0\" and metadata of \"r0\"", "alpha"]),
        ("heartbeat = \"1s\"", "heartbeat = \"4s\"", 29, &["heartbeat", "at most half of timeout"]),
        ("timeout = \"6s\"", "timeout = \"1s\"", 29, &["heartbeat", "at most half of timeout"]),
        ("epoch = \"1s\"", second, 34, &["disk of \"r0\"", "disk of \"r1\""]),
        (certified, "", 32, &["allow-names", "client-ca-file"]),
    ] {
        assert!(FULL.contains(from), "{from}");
        refused(&FULL.replacen(from, to, 1), line, words);
    }
}

/// The full file has a certificate; what cannot be said without one.
#[test]
fn tls_without_a_certificate() {
    let start = FULL.find("[tls]").unwrap();
    let end = FULL.find("[node.alpha]").unwrap();
    let without = format!("{}{}", &FULL[..start], &FULL[end..]);
    refused(&without, 29, &["allow-names", "[tls]", "client-ca-file"]);
    let without = without.replacen("allow-names = [\"vm1.example\"]\n", "", 1);
    parse(&without).unwrap();
    let socket = "nbd = [\"unix:/run/lockstep/nbd.sock\"]";
    for address in ["10.0.0.1:10809", "[::]:10809", "vm.example:10809"] {
        let listener = format!("nbd = [\"{address}\"]");
        let unsaid = without.replacen(socket, &listener, 1).replacen("tls = \"off\"\n", "", 1);
        refused(
            &unsaid,
            10,
            &["nbd", "[tls] with cert-file and key-file", "tls = \"off\" into [node.alpha]"],
        );
    }
    for policy in ["optional", "required"] {
        let text = without.replacen("tls = \"off\"", &format!("tls = \"{policy}\""), 1);
        refused(&text, 13, &["tls", policy, "[tls] with cert-file and key-file"]);
    }
}

/// Cut off anywhere, a line lost or doubled, any byte replaced by each byte that means something to TOML.
#[test]
fn a_damaged_file_gives_an_error_or_a_configuration_and_never_a_panic() {
    let check = |text: &str| {
        if let Err(error) = parse(text) {
            let lines = text.lines().count().max(1) + 1;
            assert!(error.line.is_some_and(|line| (1..=lines).contains(&line)), "{error}\n{text}");
            assert!(!error.message.is_empty(), "{text}");
        }
    };
    for (at, _) in FULL.char_indices() {
        check(&FULL[..at]);
        check(&FULL[at..]);
        for meaning in ["\"", "'", "[", "]", "{", "}", "=", ".", "#", "\n", "\\", ",", "\0", "9", "é", ""] {
            check(&format!("{}{meaning}{}", &FULL[..at], FULL.get(at + 1..).unwrap_or("")));
        }
    }
    for line in FULL.lines() {
        check(&FULL.replacen(&format!("{line}\n"), "", 1));
        check(&FULL.replacen(line, &format!("{line}\n{line}"), 1));
    }
}
