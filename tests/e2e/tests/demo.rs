//! `lockstep demo` shows a failover on any machine, and says whether it kept its promises.

use lockstep_e2e::{binary, run, temp_dir};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn the_demo_keeps_every_promise_within_a_minute() {
    let dir = temp_dir(true);
    let started = Instant::now();
    let ran = run(Command::new("timeout").arg("90").arg(binary()).arg("demo").env("TMPDIR", dir.path()));
    let took = started.elapsed();
    println!("{}", ran.stdout);
    assert!(took < Duration::from_secs(60), "the demo took {took:?}");
    let last = ran.stdout.lines().last().unwrap_or_default().to_string();
    ran.ok();
    assert!(last.to_lowercase().contains("verdict"), "the last line is no verdict: {last}");
}
