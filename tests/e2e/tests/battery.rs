//! Clients that others wrote, against the server alone (`lockstep nbd FILE`) and, where they write, against a pair
//! whose copies are compared afterwards. docs/CLIENTS.md has the table of all of them.

#[path = "battery/libnbd.rs"]
mod libnbd;
#[path = "battery/nbdkit.rs"]
mod nbdkit;
#[path = "battery/newer.rs"]
mod newer;
#[path = "battery/others.rs"]
mod others;
#[path = "battery/pair.rs"]
mod pair;
#[path = "battery/qemu.rs"]
mod qemu;
#[path = "battery/sample.rs"]
mod sample;
#[path = "battery/sparse.rs"]
mod sparse;
