//! The harness of the end-to-end tests: real daemon processes, a faulty wire between them, and a client that
//! remembers what it was promised.
//!
//! A [`Cluster`] is two nodes on this machine with their own configuration, state directory and sockets;
//! alpha reaches beta through a [`Proxy`] that can spoil the wire. A [`Ledger`] writes over NBD, reconnects,
//! and knows for each block which values are possible after whatever happened. Everything waits with a
//! deadline ([`wait_for`]) and panics with what it saw last; a cluster that is dropped while panicking prints
//! its daemons' logs. Processes are ended by their own handle only, and die with the test's thread.
#![forbid(unsafe_code)]

mod backup;
pub mod bytes;
mod certificates;
mod client;
mod cluster;
mod dial;
mod diary;
mod faulty;
mod foreign;
mod image;
mod ledger;
mod machine;
mod memory;
mod mounted;
mod newer;
mod node;
mod plain;
mod port;
mod power;
mod process;
mod proxy;
mod qmp;
mod raw;
mod reexport;
mod relay;
mod rng;
mod run;
mod scene;
mod served;
mod small;
mod switched;
mod wait;
mod wires;
mod write_log;
mod writer;

pub use backup::Backup;
pub use certificates::Authority;
pub use client::{Answer, Connection};
pub use cluster::{Cluster, NODES, Plan, RESOURCE, SECOND, temp_dir};
pub use dial::Target;
pub use diary::{Moment, Promised};
pub use faulty::{Fault, FaultyDisk, UNREADABLE};
pub use foreign::{Tool, qemu_uri, tool};
pub use image::assert_equal;
pub use ledger::{Ledger, Load};
pub use machine::Machine;
pub use memory::{open_descriptors, peak_bytes, rss_bytes, settled_descriptors};
pub use mounted::{Mounted, Volume};
pub use newer::Newer;
pub use node::Node;
pub use plain::Plain;
pub use port::Port;
pub use power::{Media, Positions, Recording, power_plan};
pub use process::Process;
pub use proxy::{Direction, Proxy};
pub use qmp::Qmp;
pub use raw::{OptionReply, RawHandshake, option_bytes};
pub use reexport::Reexport;
pub use relay::{Address, Relay};
pub use rng::{Rng, rounds, seed};
pub use run::{Ran, binary, run};
pub use scene::Scene;
pub use served::Served;
pub use small::SmallDisk;
pub use switched::{Health, SwitchedDisk};
pub use wait::{wait_for, wait_until};
pub use wires::Wires;
pub use write_log::{Entry, Loss, WriteLog};
