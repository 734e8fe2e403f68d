//! What Lockstep takes when it does nothing: processor time of a connected pair, and start-up and memory with
//! 1 TiB.

use crate::Options;
use crate::report::{Section, Table};
use lockstep_e2e::{Cluster, Node, Plan, RESOURCE};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

const IDLE: Duration = Duration::from_secs(5);
const LARGE_BYTES: u64 = 1 << 40;
/// `USER_HZ`, which is 100 on every platform that this runs on.
const TICKS_PER_S: f64 = 100.0;

/// Both.
pub(crate) fn measure(_: &Options) -> Section {
    let idle_cpu_percent = idle_cpu_percent();
    let mut cluster = Cluster::new(&Plan { size_bytes: LARGE_BYTES, ..Plan::default() });
    cluster.alpha.lockstep(&["create-md", RESOURCE, "--source"]).ok();
    let begin = Instant::now();
    cluster.alpha.start();
    let start_ms = begin.elapsed().as_secs_f64() * 1000.0;
    let rss_bytes = cluster.alpha.rss_bytes();
    let mut table = Table::new("Doing nothing", &["", "figure"]);
    let mut row = |name: &str, figure: String| table.row([name.to_string(), figure]);
    row("idle pair, both daemons, of one processor", format!("{idle_cpu_percent:.2} %"));
    row("1 TiB volume, until the daemon answers", format!("{start_ms:.0} ms"));
    row("1 TiB volume, resident", format!("{} MiB", rss_bytes >> 20));
    table.data = json!({ "idle_cpu_percent": idle_cpu_percent, "start_1tib_ms": start_ms,
                         "rss_1tib_bytes": rss_bytes });
    Section { tables: vec![table], ..Section::default() }
}

/// Nothing is awaited here: the passing of time itself is what is measured.
fn idle_cpu_percent() -> f64 {
    let cluster = Cluster::primary(&Plan { direct: true, timeout_ms: 6000, ..Plan::default() });
    let used = || cpu_s(&cluster.alpha) + cpu_s(&cluster.beta);
    let before = used();
    std::thread::sleep(IDLE);
    (used() - before) / IDLE.as_secs_f64() * 100.0
}

/// Seconds of processor time of a node's daemon, user and system.
pub(crate) fn cpu_s(node: &Node) -> f64 {
    let stat = proc(node, "stat");
    // The name in parentheses may hold blanks; user and system time are the 14th and 15th fields of all.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().expect("ticks")).sum();
    ticks / TICKS_PER_S
}

fn proc(node: &Node, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", node.pid())).expect("read from /proc")
}
