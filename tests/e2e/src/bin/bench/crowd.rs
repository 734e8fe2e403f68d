//! Many connections to one volume beside one.
//!
//! Clients of our own, a thread each: what is asked before all of them are there, or after, does not count.

use crate::Options;
use crate::report::Table;
use crate::timed::{Client, micros, percentile};
use lockstep_e2e::Cluster;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 256;

/// So many connections with so many requests each, of 4 KiB.
struct Load {
    connections: usize,
    depth: usize,
}

/// A connection may have 128 requests under way.
const LOADS: [Load; 3] = [
    Load { connections: 1, depth: 1 },
    Load { connections: 1, depth: 128 },
    Load { connections: CONNECTIONS, depth: 1 },
];
/// What the daemon of the measured pair must allow.
pub(crate) const CLIENTS_MAX: usize = 2 * CONNECTIONS;

pub(crate) fn measure(pair: &Cluster, span_bytes: u64, options: &Options) -> Table {
    let title = format!("Many connections to one volume (4k random writes, {} s each)", options.runtime_s);
    let columns = ["connections", "depth", "per second", "p50 us", "p99 us", "beside the first"];
    let mut table = Table::new(&title, &columns);
    let mut data = Vec::new();
    let mut first_per_s = None;
    for load in &LOADS {
        let times = load.run(pair, span_bytes, options);
        let per_s = times.len() as f64 / f64::from(options.runtime_s);
        let ratio = per_s / *first_per_s.get_or_insert(per_s);
        let [p50_us, p99_us] = [50.0, 99.0].map(|percent| micros(percentile(&times, percent)));
        let figures = [per_s, p50_us, p99_us].map(|figure| format!("{figure:.0}"));
        let counts = [load.connections, load.depth].map(|count| count.to_string());
        table.row(counts.into_iter().chain(figures).chain([format!("{ratio:.2}")]));
        data.push(json!({ "connections": load.connections, "depth": load.depth, "iops": per_s,
                          "p50_us": p50_us, "p99_us": p99_us, "ratio": ratio }));
    }
    table.note("A thread of the harness for each connection; compare these rows with each other only.");
    table.data = Value::Array(data);
    table
}

impl Load {
    /// Latencies of the writes that began while all connections were there.
    fn run(&self, pair: &Cluster, span_bytes: u64, options: &Options) -> Vec<Duration> {
        let socket = pair.alpha.nbd();
        let clients: Vec<Client> =
            (0..self.connections).map(|_| Client::writes(socket, span_bytes, self.depth)).collect();
        let begin = Instant::now();
        let end = begin + Duration::from_secs(u64::from(options.runtime_s));
        std::thread::sleep(end - begin);
        clients.iter().for_each(Client::stop);
        let writes = clients.into_iter().flat_map(Client::end);
        writes.filter(|write| (begin..end).contains(&write.began)).map(|write| write.took).collect()
    }
}
