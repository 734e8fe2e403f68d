//! Clients with others between write to the Primary of a pair; both copies are compared after each.

use crate::sample::{MIB, SIZE_BYTES, sample};
use lockstep_e2e::{Cluster, Newer, Plan, RESOURCE, Reexport, assert_equal, qemu_uri, tool};
use nbd::client::{NbdClient, handshake};
use std::io::Write;
use std::os::unix::net::UnixStream;

#[test]
fn what_others_write_through_others_is_on_both_copies() {
    let cluster = Cluster::primary(&Plan { size_bytes: SIZE_BYTES, on_disk: true, ..Plan::default() });
    let (dir, socket) = (cluster.dir(), cluster.alpha.nbd());
    let uri = qemu_uri(socket, RESOURCE);
    let image = dir.join("sample.img");
    let renew = |seed| std::fs::write(&image, sample(seed)).expect("write an image");
    let both_hold_it = || {
        cluster.assert_replicas_equal();
        assert_equal(&image, cluster.beta.disk());
    };

    renew(41);
    let script = format!("nbdcopy --flush '{}' $uri", image.display());
    let filters = ["--filter=blocksize", "--filter=cache", "nbd"];
    let settings = ["minblock=4096", "maxdata=64k", "maxlen=1M", "cache=writeback"];
    let proxy = tool("nbdkit").args(["-U", "-"]).args(filters).arg(format!("uri={uri}")).args(settings);
    proxy.args(["--run", &script]).run().ok();
    both_hold_it();

    renew(42);
    let again = Reexport::start(dir, socket, RESOURCE);
    tool("nbdcopy").args(["--connections=4", "--flush"]).arg(&image).arg(again.uri()).run().ok();
    drop(again);
    both_hold_it();

    renew(43);
    let mut stream = UnixStream::connect(socket).expect("connect");
    let export = handshake(&mut stream, RESOURCE.as_bytes()).expect("a handshake");
    let mut client = NbdClient::new(stream, &export);
    for chunk in sample(43).chunks(700_001) {
        client.write_all(chunk).expect("write");
    }
    client.flush().expect("flush");
    both_hold_it();

    renew(44);
    let inside = format!("nbd+unix:///{RESOURCE}?socket=/mnt/alpha/nbd.sock");
    let clients = Newer::clients();
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "16", "/mnt/sample.img", &inside];
    clients.tool(dir, "qemu-img").args(convert).run().ok();
    both_hold_it();
    let commands = ["write -z -u 1M 20M", "discard 22M 1M", "write -P 5 3M 1M", "flush"];
    let words = commands.iter().flat_map(|command| ["-c", command]);
    clients.tool(dir, "qemu-io").args(["-f", "raw", "-t", "none"]).args(words).arg(&inside).run().ok();
    let mut expected = sample(44);
    expected[MIB as usize..21 << 20].fill(0);
    expected[22 << 20..23 << 20].fill(0);
    expected[3 << 20..4 << 20].fill(5);
    std::fs::write(&image, expected).expect("write an image");
    both_hold_it();
}
