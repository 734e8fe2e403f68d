//! Writes over a replication link with a round trip, at growing depths: what a write costs beyond the round trip, and
//! up to which depth more requests are more throughput.

use crate::distance::Distance;
use crate::report::{Axis, Curve, Plot, Section, Table};
use crate::timed::micros;
use crate::{LOAD_BYTES, Options, Sample, fio};
use lockstep_e2e::{Cluster, Plan, RESOURCE, qemu_uri};
use serde_json::{Value, json};
use std::time::Duration;

const ROUND_TRIPS: [Duration; 4] = [
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(50),
];
/// Connections, and requests that each one has under way: a connection may have 128.
const DEPTHS: [(u32, u32); 6] = [(1, 1), (1, 8), (1, 32), (1, 128), (4, 128), (16, 128)];

/// One cell of the table.
struct Point {
    depth: u32,
    sample: Sample,
}

/// All depths over one wire.
struct Wire {
    round_trip: Duration,
    /// With what the proxy takes.
    measured: Duration,
    points: Vec<Point>,
}

pub(crate) fn measure(options: &Options) -> Section {
    let wires: Vec<Wire> = ROUND_TRIPS.iter().map(|round_trip| over(*round_trip, options)).collect();
    Section { tables: vec![to_table(&wires, options)], plots: vec![to_plot(&wires)] }
}

fn over(round_trip: Duration, options: &Options) -> Wire {
    let measured = Distance::measured(round_trip);
    // All of it may be hot: what a bound costs is looked at elsewhere.
    let mut cluster = Cluster::new(&Plan { timeout_ms: 6000, max_hot_bytes: LOAD_BYTES, ..Plan::default() });
    let wire = Distance::new(cluster.beta_port(), round_trip);
    // Alpha dials; it finds the wire where its configuration has the cluster's own proxy.
    let config = std::fs::read_to_string(cluster.alpha.config()).expect("alpha's configuration");
    let [near, far] = [cluster.proxy.port(), wire.port()].map(|port| format!("127.0.0.1:{port}"));
    assert!(config.contains(&near), "alpha does not dial {near}:\n{config}");
    std::fs::write(cluster.alpha.config(), config.replace(&near, &far)).expect("alpha's configuration");
    cluster.begin();
    let uri = qemu_uri(cluster.alpha.nbd(), RESOURCE);
    fio(&uri, &["--rw=write", "--bs=1M", "--iodepth=16"], None);
    let points = DEPTHS.map(|(connections, depth)| {
        let arguments = [format!("--iodepth={depth}"), format!("--numjobs={connections}")];
        let [depth_each, jobs] = arguments.each_ref().map(String::as_str);
        let load = ["--rw=randwrite", "--bs=4k", depth_each, jobs, "--thread", "--group_reporting"];
        Point { depth: connections * depth, sample: fio(&uri, &load, Some(options.runtime_s)) }
    });
    Wire { round_trip, measured, points: points.into() }
}

fn to_table(wires: &[Wire], options: &Options) -> Table {
    let title = format!("4k random writes over a link with a round trip ({} s each)", options.runtime_s);
    let columns =
        ["round trip, depth", "per second", "mean us", "mean less round trip, us", "share of the ideal"];
    let mut table = Table::new(&title, &columns);
    let mut data = Vec::new();
    for wire in wires {
        let measured_us = micros(wire.measured);
        for Point { depth, sample } in &wire.points {
            // Every request takes what one alone takes.
            let ideal = wire.points[0].sample.iops * f64::from(*depth);
            let share = sample.iops / ideal;
            let beyond_us = sample.latency_us - measured_us;
            table.row([
                format!("{} ms, {depth}", wire.round_trip.as_secs_f64() * 1000.0),
                format!("{:.0}", sample.iops),
                format!("{:.0}", sample.latency_us),
                format!("{beyond_us:.0}"),
                format!("{share:.2}"),
            ]);
            data.push(
                json!({ "round_trip_us": micros(wire.round_trip), "measured_round_trip_us": measured_us,
                              "depth": depth, "iops": sample.iops, "latency_us": sample.latency_us,
                              "p99_us": sample.p99_us, "beyond_round_trip_us": beyond_us,
                              "share_of_ideal": share }),
            );
        }
    }
    let measured: Vec<String> = wires.iter().map(|wire| format!("{:.0}", micros(wire.measured))).collect();
    table.note(format!(
        "The wire is a proxy that delays each byte by half a round trip and limits nothing else. A byte takes {} us \
         there and back, which is what is subtracted. Ideal: as many times the throughput at depth 1 as the depth.",
        measured.join(", ")
    ));
    table.note(
        "Depths above 128 are several connections: one may have 128 requests under way. What bounds all of a \
         resource: a slot for each write of up to 128 KiB, 40 % of what reads leave of `buffer-memory`; 4096 requests; \
         8192 writes that are not durable on both copies, of which a flush over the wire makes room. A region that \
         finds max-hot reached waits for such a flush, too (docs/ARCHITECTURE.md, Queues and their bounds).",
    );
    table.data = Value::Array(data);
    table
}

fn to_plot(wires: &[Wire]) -> Plot {
    let axis = |label: &str| Axis { label: label.to_string(), is_logarithmic: true };
    let curves = wires.iter().map(|wire| Curve {
        name: format!("{} ms", wire.round_trip.as_secs_f64() * 1000.0),
        points: wire.points.iter().map(|point| (f64::from(point.depth), point.sample.iops)).collect(),
    });
    Plot {
        name: "network".to_string(),
        title: "4k random writes over a link with a round trip".to_string(),
        x: axis("requests under way"),
        y: axis("writes per second"),
        curves: curves.collect(),
    }
}
