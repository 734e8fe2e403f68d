//! libnbd: its tools, and its library from Python.

use crate::sample::{MIB, SIZE_BYTES, assert_holds, sample};
use lockstep_e2e::{Plain, assert_equal, qemu_uri, tool};
use serde_json::Value;

#[test]
fn nbdinfo_names_what_is_offered() {
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let ask = |words: &[&str]| tool("nbdinfo").args(words).arg(served.uri()).run();
    let info: Value = serde_json::from_str(&ask(&["--json"]).ok()).expect("JSON");
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!((&info["TLS"], &info["structured"]), (&Value::Bool(false), &Value::Bool(true)));
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], SIZE_BYTES);
    let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|key| &export[key]);
    assert_eq!(sizes, [1, 4096, 32 * MIB].map(Value::from).each_ref());
    let listed: Value = serde_json::from_str(&ask(&["--list", "--json"]).ok()).expect("JSON");
    assert_eq!(listed["exports"][0]["export-name"], "disk");
    assert_eq!(ask(&["--size"]).ok().trim(), SIZE_BYTES.to_string());
    let can =
        ["cache", "connect", "df", "flush", "fua", "multi-conn", "read", "structured-reply", "trim", "write"];
    for word in can.into_iter().chain(["zero"]) {
        assert_eq!(ask(&["--can", word]).code, 0, "--can {word}");
    }
    for word in ["read-only", "tls"] {
        assert_eq!(ask(&["--is", word]).code, 2, "--is {word}");
    }
    let wrong = tool("nbdinfo").arg(qemu_uri(&served.socket(), "nothing")).run();
    assert!(wrong.code == 1 && wrong.stderr.contains("nothing"), "{wrong}");
}

#[test]
fn nbdcopy_in_and_out_in_every_way() {
    let bytes = sample(1);
    let ways: [&[&str]; 4] = [
        &["--connections=4", "--requests=64"],
        &["--synchronous"],
        &["--connections=1", "--requests=1", "--request-size=65536", "--sparse=512"],
        &["--threads=4", "--queue-size=16777216", "--flush", "--allocated"],
    ];
    for way in ways {
        let served = Plain::start(SIZE_BYTES, &[]);
        let image = served.file("sample.img", &bytes);
        let back = served.path("back.img");
        tool("nbdcopy").args(way).arg(&image).arg(served.uri()).run().ok();
        assert_holds(&served, &bytes);
        tool("nbdcopy").args(way).arg(served.uri()).arg(&back).run().ok();
        assert_equal(&image, &back);
    }
}

#[test]
fn nbdcopy_between_two_servers_and_through_pipes() {
    let (from, to) = (Plain::holding(&sample(2), &["--read-only"]), Plain::start(SIZE_BYTES, &[]));
    let copy = tool("nbdcopy").args(["--destination-is-zero", "--connections=3"]);
    copy.arg(from.uri()).arg(to.uri()).run().ok();
    assert_holds(&to, &sample(2));
    let piped = Plain::start(SIZE_BYTES, &[]);
    let script = r#"set -o pipefail; nbdcopy "$1" - | nbdcopy - "$2""#;
    tool("bash").args(["-c", script, "pipe"]).args([to.uri(), piped.uri()]).run().ok();
    assert_holds(&piped, &sample(2));
}

#[test]
fn nbddump_shows_the_bytes() {
    let mut bytes = vec![0; 1 << 20];
    bytes[4096..4112].copy_from_slice(b"sixteen letters.");
    let served = Plain::holding(&bytes, &[]);
    let said = tool("nbddump").arg(served.uri()).run().ok();
    assert!(
        said.lines().any(|line| line.starts_with("0000001000") && line.contains("|sixteen letters.|")),
        "{said}"
    );
}

pub(crate) const ASYNC: &str = include_str!("async.py");

#[test]
fn asynchronous_requests_on_four_connections() {
    let served = Plain::start(SIZE_BYTES, &[]);
    tool("python3").args(["-c", ASYNC]).arg(served.uri()).run().ok();
}

pub(crate) const SESSION: &str = include_str!("session.py");

#[test]
fn the_handshake_and_each_command_from_python() {
    let served = Plain::start(SIZE_BYTES, &["--name", "disk"]);
    let arguments = [served.socket().display().to_string(), SIZE_BYTES.to_string()];
    tool("python3").args(["-c", SESSION]).args(arguments).run().ok();
}
