//! One run of fio, and what it says.

use crate::LOAD_BYTES;
use lockstep_e2e::tool;
use serde_json::Value;
use std::time::Duration;

/// Shares of requests, in percent, that are no slower than the sample's percentile at the same place.
pub(crate) const PERCENTILES: [f64; 6] = [50.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// What one run measured, reads and writes together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) iops: f64,
    pub(crate) latency_us: f64,
    pub(crate) p99_us: f64,
    /// In the order of [`PERCENTILES`].
    pub(crate) percentiles_us: [f64; PERCENTILES.len()],
    /// Requests in all.
    pub(crate) requests: f64,
    /// Processor time of fio's job.
    pub(crate) client_cpu_us: f64,
}

/// Of requests that took so long each, as many as were made in `seconds`.
pub(crate) fn sample(mut latencies_us: Vec<f64>, seconds: f64) -> Sample {
    latencies_us.sort_by(f64::total_cmp);
    let count = latencies_us.len();
    assert!(count > 0, "a run without a request");
    let at = |percent: f64| latencies_us[((count as f64 * percent / 100.0) as usize).min(count - 1)];
    Sample {
        iops: count as f64 / seconds,
        latency_us: latencies_us.iter().sum::<f64>() / count as f64,
        p99_us: at(99.0),
        percentiles_us: PERCENTILES.map(at),
        requests: count as f64,
        client_cpu_us: f64::NAN,
    }
}

/// On an export, with a working set of [`LOAD_BYTES`].
pub(crate) fn fio(uri: &str, arguments: &[&str], runtime_s: Option<u32>) -> Sample {
    let runtime = runtime_s.map(|seconds| Duration::from_secs(seconds.into()));
    run(&[nbd_job(uri)], LOAD_BYTES, arguments, runtime)
}

/// What makes a job work on an export.
pub(crate) fn nbd_job(uri: &str) -> Vec<String> {
    vec!["--ioengine=nbd".to_string(), format!("--uri={uri}")]
}

/// All jobs at the same time, each with these arguments; without a time, each byte once.
pub(crate) fn run(jobs: &[Vec<String>], bytes: u64, arguments: &[&str], runtime: Option<Duration>) -> Sample {
    parse(&tool("fio").args(&words(jobs, bytes, arguments, runtime)[1..]).run().ok())
}

/// The command line of [`run`], for who runs it under something else.
pub(crate) fn words(
    jobs: &[Vec<String>],
    bytes: u64,
    arguments: &[&str],
    runtime: Option<Duration>,
) -> Vec<String> {
    let percentiles = PERCENTILES.map(|percent| percent.to_string()).join(":");
    let common = ["fio", "--name=global", "--output-format=json", "--group_reporting", "--thread"];
    let mut words: Vec<String> = common.map(String::from).to_vec();
    words.push("--unified_rw_reporting=mixed".to_string());
    words.extend([format!("--size={bytes}"), format!("--percentile_list={percentiles}")]);
    // The last one of its kind counts: the arguments may name another size.
    words.extend(arguments.iter().map(ToString::to_string));
    if let Some(runtime) = runtime {
        words.extend(["--time_based", "--randrepeat=0", "--norandommap"].map(String::from));
        words.push(format!("--runtime={}ms", runtime.as_millis()));
    }
    for (which, job) in jobs.iter().enumerate() {
        words.push(format!("--name=job{which}"));
        words.extend_from_slice(job);
    }
    words
}

/// What it printed. Jobs are reported as one group.
pub(crate) fn parse(text: &str) -> Sample {
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("fio: {error}: {text}"));
    let job = &report["jobs"][0];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number of fio: {value}: {job}"));
    let all = &job["mixed"];
    let percentile = |percent: f64| number(&all["clat_ns"]["percentile"][format!("{percent:.6}")]) / 1000.0;
    let busy = (number(&job["usr_cpu"]) + number(&job["sys_cpu"])) / 100.0;
    Sample {
        iops: number(&all["iops"]),
        latency_us: number(&all["lat_ns"]["mean"]) / 1000.0,
        p99_us: percentile(99.0),
        percentiles_us: PERCENTILES.map(percentile),
        requests: number(&all["total_ios"]),
        client_cpu_us: busy * number(&all["runtime"]) * 1000.0,
    }
}
