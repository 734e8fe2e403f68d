//! `lockstep demo`: two daemons on this machine, a volume, a cut link, a killed Primary, a failover and a
//! return, with measured figures and a verdict.
//!
//! Needs no privileges and no other program. Invariants: only daemons started here are ended, whatever
//! happens; the directory made here is removed again, unless something went wrong or `--keep` says
//! otherwise; anything that is not as promised makes the exit code non-zero.

mod cluster;
mod copies;
mod ledger;
mod load;
mod nbd;
mod proxy;
mod report;
mod story;

use crate::failure::Failure;
use cluster::{Cluster, Pids, RESOURCE, Side, failed};
use report::Report;
use serde_json::json;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use story::Totals;

/// A demo that takes longer than this hangs, for all that each wait in it has a deadline of its own.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Exit code of a process that was interrupted, as shells have it.
const INTERRUPTED: u8 = 130;

/// `demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Size of the volume; its files are sparse.
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    size: String,
    /// Work in this directory, which must be empty or not exist, and leave its files there.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave both daemons running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// The global option.
    #[arg(from_global)]
    json: bool,
}

enum Happening {
    Told(Box<Ending>),
    Interrupted,
}

struct Ending {
    cluster: Option<Cluster>,
    report: Report,
    result: Result<Totals, Failure>,
}

/// Runs it.
pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let (dir, temporary) = work_directory(args.dir.as_deref())?;
    let pids = Pids::default();
    let (happened, happenings) = mpsc::channel();
    watch_signals(happened.clone())?;
    let (told, args_of_story, pids_of_story, dir_of_story) =
        (happened, args.clone(), pids.clone(), dir.clone());
    thread::spawn(move || {
        let story = AssertUnwindSafe(|| tell(&args_of_story, &dir_of_story, pids_of_story));
        // The panic was printed already; unwinding has ended the daemons.
        let ending = catch_unwind(story).unwrap_or_else(|_| Ending {
            cluster: None,
            report: Report::new(args_of_story.json),
            result: Err(Failure::generic("the demo itself is broken")),
        });
        // The receiver lives as long as the process.
        let _ = told.send(Happening::Told(Box::new(ending)));
    });
    let ending = match happenings.recv_timeout(TIME_MAX) {
        Ok(Happening::Told(ending)) => *ending,
        other => {
            pids.terminate();
            // Without daemons every step of the story fails soon, and its end reaps them.
            while let Ok(happening) = happenings.recv_timeout(Duration::from_secs(20)) {
                if let Happening::Told(ending) = happening {
                    drop(ending);
                    break;
                }
            }
            return Err(match other {
                Ok(_) => {
                    remove(&dir, temporary);
                    Failure::new(INTERRUPTED, "interrupted")
                }
                Err(_) => Failure::generic(format!("no end within {TIME_MAX:?}; see {}", dir.display())),
            });
        }
    };
    let Ending { cluster, report, result } = ending;
    let verdict = verdict(args, &report, &result, cluster.as_ref(), &dir);
    if let (Some(cluster), true, Ok(_)) = (&cluster, args.keep, &result) {
        if !args.json {
            print_hints(cluster, &report);
        }
        while !matches!(happenings.recv(), Ok(Happening::Interrupted) | Err(_)) {}
    }
    // Ends the daemons, before their files go.
    drop(cluster);
    if result.is_ok() {
        remove(&dir, temporary);
    }
    verdict
}

fn tell(args: &DemoArgs, dir: &Path, pids: Pids) -> Ending {
    let mut report = Report::new(args.json);
    match Cluster::create(dir, &args.size, pids) {
        Ok(mut cluster) => {
            let result = story::tell(&mut cluster, &mut report);
            Ending { cluster: Some(cluster), report, result }
        }
        Err(failure) => Ending { cluster: None, report, result: Err(failure) },
    }
}

/// The last line, or the JSON document.
fn verdict(
    args: &DemoArgs,
    report: &Report,
    result: &Result<Totals, Failure>,
    cluster: Option<&Cluster>,
    dir: &Path,
) -> Result<(), Failure> {
    let seconds = report.elapsed().as_secs_f64();
    let (steps, totals) = (report.steps(), result.as_ref().copied().unwrap_or_default());
    if args.json {
        let kept = cluster.filter(|_| args.keep && result.is_ok());
        let document = json!({
            "schema": crate::status::SCHEMA,
            "passed": result.is_ok(),
            "failure": result.as_ref().err().map(|failure| &failure.message),
            "seconds": seconds,
            "acknowledged_block_writes": totals.acknowledged,
            "comparisons": totals.comparisons,
            "steps": steps,
            "nbd_uri": kept.map(uri),
            "socket": kept.map(|cluster| cluster.control_socket(Side::Beta)),
            "dir": dir,
        });
        let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{document}\n").as_bytes());
    }
    match result {
        Ok(Totals { acknowledged, comparisons }) => {
            report.say(&format!(
                "VERDICT: all as promised: {} steps in {seconds:.1} s, {acknowledged} acknowledged block \
                 writes, 0 lost, copies compared byte by byte {comparisons} times and equal each time",
                steps.len(),
            ));
            Ok(())
        }
        Err(failure) => {
            let logs = format!("configuration, logs and files are in {}", dir.display());
            report.say(&format!("VERDICT: FAILED at step {}; {logs}", steps.len()));
            // In JSON the failure was said in the document already.
            let message = if args.json { String::new() } else { failure.message.clone() };
            Err(Failure::new(failure.code, message))
        }
    }
}

fn uri(cluster: &Cluster) -> String {
    format!("nbd+unix:///{RESOURCE}?socket={}", cluster.nbd_socket(Side::Beta).display())
}

fn print_hints(cluster: &Cluster, report: &Report) {
    let uri = uri(cluster);
    for line in [
        String::new(),
        "Both daemons go on running until Ctrl-C. beta is Primary. In another terminal:".to_owned(),
        format!("  export LOCKSTEP_SOCKET={}", cluster.control_socket(Side::Beta).display()),
        format!("  lockstep status {RESOURCE} --watch"),
        format!("  lockstep disconnect {RESOURCE}; lockstep connect {RESOURCE}"),
        format!("  nbdinfo '{uri}'"),
        format!("  qemu-img bench -w -f raw '{uri}'"),
        format!("  lockstep --socket {} status", cluster.control_socket(Side::Alpha).display()),
    ] {
        report.say(&line);
    }
}

/// The directory to work in, and whether it is to be removed at the end.
fn work_directory(asked: Option<&Path>) -> Result<(PathBuf, bool), Failure> {
    let named = |path: &Path, error: std::io::Error| failed(&path.display().to_string(), &error);
    let Some(path) = asked else {
        let random = u64::from_le_bytes(crate::secret::random()?);
        let path = std::env::temp_dir().join(format!("lockstep-demo-{random:016x}"));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| named(&path, error))?;
        return Ok((path, true));
    };
    let path = std::path::absolute(path).map_err(|error| named(path, error))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| named(&path, error))?;
    let mut entries = fs::read_dir(&path).map_err(|error| named(&path, error))?;
    if entries.next().is_some() {
        return Err(Failure::usage(format!("{} is not empty; name a new directory", path.display())));
    }
    Ok((path, false))
}

fn remove(dir: &Path, temporary: bool) {
    if temporary && let Err(error) = fs::remove_dir_all(dir) {
        eprintln!("lockstep: {} was not removed: {error}", dir.display());
    }
}

/// Reports Ctrl-C and SIGTERM, so that no daemon outlives the demo.
fn watch_signals(happened: mpsc::Sender<Happening>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed("a runtime for signals", &error))?;
    let streams =
        runtime.block_on(async { Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)) });
    let (mut interrupt, mut terminate) =
        streams.map_err(|error: std::io::Error| failed("signals", &error))?;
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if happened.send(Happening::Interrupted).is_err() {
                    return;
                }
            }
        });
    });
    Ok(())
}
