//! File systems of the kernel on the server alone: nbdfuse makes a file of the export, a loop device a disk of it.

use lockstep_e2e::{Mounted, Plain, Volume, tool};

const MIB: u64 = 1 << 20;
/// The smallest that mkfs.xfs makes.
const SIZE_BYTES: u64 = 320 * MIB;

/// A tree with files of many sizes, made durable; some are removed, renamed and linked; then the sums of what is there.
const WRITE: &str = r#"
set -eu
cd "$1/mnt"
for folder in a b c; do
    mkdir $folder
    for number in $(seq 60); do
        head -c $((number * 1777)) /dev/urandom >$folder/$number
    done
done
dd if=/dev/urandom of=synced bs=256k count=16 conv=fsync status=none
sync -f .
rm b/1?
mv c/2 a/moved
ln a/1 c/linked
truncate -s 8M hole
dd if=/dev/urandom of=hole bs=4k count=3 seek=700 conv=notrunc,fsync status=none
fallocate -p -o 1M -l 64k synced
find . -type f -print0 | sort -z | xargs -0 sha256sum >"$1/sums"
"#;

const CHECK: &str = r#"
set -eu
cd "$1/mnt"
sha256sum --quiet -c "$1/sums"
[ "$(find . -type f | wc -l)" = "$(wc -l <"$1/sums")" ]
rm -r a b
head -c 3000000 /dev/urandom >again
sync -f .
"#;

fn a_tree_survives(file_system: &str, check: &[&str]) {
    let served = Plain::start(SIZE_BYTES, &[]);
    let machine = served.path("machine");
    let folder = machine.display().to_string();
    for (volume, script) in [(Volume::Empty, WRITE), (Volume::Kept, CHECK)] {
        let program = ["sh", "-c", script, "sh", &folder];
        Mounted::with(&machine, &served.uri(), file_system, volume, &program).wait_end();
        tool(check[0]).args(&check[1..]).arg(served.disk()).run().ok();
    }
}

#[test]
fn a_tree_on_ext4_survives() {
    a_tree_survives("ext4", &["e2fsck", "-f", "-n"]);
}

#[test]
fn a_tree_on_xfs_survives() {
    a_tree_survives("xfs", &["xfs_repair", "-n", "-f"]);
}
