//! The commands of the README, typed from its text on two machines made of namespaces: from nothing to a pair in sync,
//! a planned move, a failover and a split brain. What cannot be typed there is named, with what runs it instead.
//!
//! A line is typed on the machine that its comment names, or else where the line before it was typed; the first one on
//! alpha. One whose comment says "refused" must be refused.

use lockstep_e2e::{Machine, Ran, run, temp_dir, wait_for};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md"));
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Fences of the README that are not typed here: how each begins, the file that runs it, and for each line words of
/// that file.
const ELSEWHERE: &[(&str, &str, &[&str])] = &[
    ("cargo run --release -- demo", "tests/e2e/tests/demo.rs", &["\"demo\""]),
    ("cargo xtask test", ".ci/run", &["cargo xtask test"]),
    (
        "modprobe nbd",
        "tests/vm/move.sh",
        &["modprobe nbd", "nbd-client -unix", "mkfs.ext4 -q /dev/nbd0", "mount /dev/nbd0 /mnt"],
    ),
    ("umount /mnt", "tests/vm/move.sh", &["umount /mnt", "nbd-client -d /dev/nbd0"]),
    // Names and certificates of machines that are not these.
    ("nbdinfo 'nbds://", "tests/e2e/tests/tls.rs", &["nbds", "tls-creds-x509"]),
    // The address is what QEMU takes; that it boots from it needs no test of ours.
    ("qemu-system-x86_64", "tests/e2e/tests/clients.rs", &["qemu_uri"]),
];

/// The shell's parts of the document, each with its lines.
fn fences() -> Vec<Vec<&'static str>> {
    let fences = README.split("\n```").skip(1).step_by(2);
    fences.filter_map(|fence| fence.strip_prefix("sh\n")).map(|text| text.lines().collect()).collect()
}

struct Pair {
    machines: [Machine; 2],
    _dir: tempfile::TempDir,
}

impl Pair {
    fn new() -> Pair {
        let dir = temp_dir(true);
        let machines = ["alpha", "beta"].map(|name| Machine::new(dir.path(), name, 64 * MIB));
        Machine::connect([(&machines[0], "10.0.0.1/24"), (&machines[1], "10.0.0.2/24")]);
        Pair { machines, _dir: dir }
    }

    fn alpha(&self) -> &Machine {
        &self.machines[0]
    }

    fn beta(&self) -> &Machine {
        &self.machines[1]
    }

    /// Types the lines of a part of the document.
    fn follow(&mut self, fence: &[&str]) {
        let mut places = vec![0];
        for line in fence {
            let (typed, comment) = line.split_once("  #").unwrap_or((line, ""));
            match comment {
                _ if comment.contains("on both") => places = vec![0, 1],
                _ if comment.contains("on alpha") => places = vec![0],
                _ if comment.contains("on beta") => places = vec![1],
                _ => {}
            }
            for place in &places {
                let machine = &mut self.machines[*place];
                println!("{}: {typed}", machine.name());
                match typed.trim().strip_suffix('&') {
                    Some(line) => machine.starts(line.trim()),
                    None if comment.contains("refused") => machine.types(typed.trim()).refused(17, &[]),
                    None => drop(wait_for_daemon(machine, typed.trim()).ok()),
                }
            }
        }
    }

    fn assert_equal(&self) {
        let sums = self.machines.each_ref().map(|machine| machine.types("sha256sum /dev/vdb").ok());
        assert_eq!(sums[0], sums[1]);
    }
}

/// Types a line; a daemon that was just started may not answer yet.
fn wait_for_daemon(machine: &Machine, line: &str) -> Ran {
    wait_for(line, LIMIT, || {
        let ran = machine.types(line);
        if ran.code == 3 || ran.code == 4 { Err(ran.to_string()) } else { Ok(ran) }
    })
}

/// A client writes, and goes.
fn write(machine: &Machine, pattern: u8) {
    let uri = machine.types("lockstep uri r0").ok();
    machine.types(&format!("qemu-io -f raw -c 'write -P {pattern} 0 64k' -c flush '{}'", uri.trim())).ok();
    wait_for("no client", LIMIT, || {
        let status = machine.types("lockstep status r0 --json").ok();
        if status.replace([' ', '\n'], "").contains("\"clients\":[]") { Ok(()) } else { Err(status) }
    });
}

fn wait_shown(machine: &Machine, words: &str) {
    wait_for(words, LIMIT, || {
        let status = machine.types("lockstep status r0").ok();
        if status.contains(words) { Ok(()) } else { Err(status) }
    });
}

/// What happens before a part of the document is of use, by how the part begins.
fn before(pair: &Pair, first: &str) {
    let [alpha, beta] = [pair.alpha(), pair.beta()];
    if first.contains("refused, says why") {
        // Alpha is Primary again, and then out of reach.
        beta.types("lockstep demote r0").ok();
        alpha.types("lockstep promote r0").ok();
        write(alpha, 1);
        beta.plug(false);
        wait_shown(beta, "Connecting");
    }
    if first.starts_with("lockstep resolve") {
        // It had gone on alone.
        write(alpha, 2);
        write(beta, 3);
        beta.plug(true);
        wait_shown(alpha, "SPLIT BRAIN");
        alpha.types("lockstep demote r0").ok();
    }
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let mut pair = Pair::new();
    let mut followed = 0;
    for fence in fences() {
        if ELSEWHERE.iter().any(|(begin, _, _)| fence[0].starts_with(begin)) {
            continue;
        }
        before(&pair, fence[0]);
        pair.follow(&fence);
        followed += 1;
    }
    assert!(followed >= 7, "{followed} parts of the document");
    pair.beta().types("lockstep wait r0 --for synced -t 60s").ok();
    let uri = pair.beta().types("lockstep uri r0").ok();
    pair.beta().types(&format!("qemu-io -f raw -c 'read -P 3 0 64k' '{}'", uri.trim())).ok();
    pair.assert_equal();
}

#[test]
fn what_is_not_typed_here_is_run_elsewhere() {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    for (begin, file, words) in ELSEWHERE {
        let fence = fences().into_iter().find(|fence| fence[0].starts_with(begin));
        let fence = fence.unwrap_or_else(|| panic!("the README has no \"{begin}\" any more"));
        let commands =
            fence.iter().filter(|line| !line.starts_with([' ', '-']) && !line.starts_with("server."));
        assert_eq!(commands.count(), words.len(), "{begin}");
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        for word in *words {
            assert!(text.contains(word), "{file} does not run it any more: no {word}");
        }
    }
}

#[test]
fn the_example_of_a_configuration_is_accepted() {
    let dir = temp_dir(false);
    let (_, rest) = README.split_once("\n```toml\n").expect("an example of a configuration");
    let (text, _) = rest.split_once("\n```").expect("its end");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a secret of a test of the README").expect("write a secret");
    run(Command::new("chmod").arg("600").arg(&secret)).ok();
    let text = text.replace("/etc/lockstep/secret", &secret.display().to_string());
    let file = dir.path().join("lockstep.toml");
    std::fs::write(&file, text).expect("write a configuration");
    let check = ["config", "check", "--node", "alpha", "--config"];
    run(Command::new(lockstep_e2e::binary()).args(check).arg(&file)).ok();
}
