//! The eight steps. Each changes the cluster by commands only, measures, and fails on the first thing that
//! is not as promised. The ledger runs through all of them: what was acknowledged once is looked for to the
//! end.

use super::cluster::{Cluster, PEER_TIMEOUT, RESOURCE, Side, failed};
use super::copies::{Marks, differing_blocks};
use super::ledger::{BLOCK_BYTES, Check, Ledger};
use super::load::{self, Load, Tally};
use super::nbd::Client;
use super::report::{Finding, Report};
use crate::failure::Failure;
use crate::status::{PeerDoc, ResourceDoc};
use crate::text;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use Side::{Alpha, Beta};

/// The ledger covers this much of the volume at most, however large that is.
const LEDGER_BYTES_MAX: u64 = 256 << 20;
const WRITERS: usize = 4;
/// How much of the ledger is written to when the Primary is killed, in per cent.
const HEAVY_PERCENT: usize = 20;
/// How long each load runs that is not counted in writes.
const LOAD_TIME: Duration = Duration::from_millis(1500);

/// Ends with the step that failed, or after the last.
pub(crate) fn tell(cluster: &mut Cluster, report: &mut Report) -> Result<Totals, Failure> {
    type Tell<'a> = fn(&mut Story<'a>, &Report) -> Result<Finding, Failure>;
    let steps: [(&str, Tell<'_>); 8] = [
        ("pair up", Story::pair_up),
        ("write through NBD", Story::write),
        ("cut the link", Story::cut),
        ("reconnect", Story::reconnect),
        ("kill -9 the Primary", Story::kill),
        ("promote the survivor", Story::promote),
        ("the ledger", Story::look_up),
        ("the old Primary returns", Story::come_back),
    ];
    let blocks = (cluster.size_bytes.min(LEDGER_BYTES_MAX) / BLOCK_BYTES as u64) as usize;
    let mut story = Story { cluster, ledger: Ledger::new(blocks), totals: Totals::default(), killed: None };
    for (title, step) in steps {
        let begun = Instant::now();
        report.begin(title);
        let result = step(&mut story, report);
        if story.cluster.interrupted() {
            return Err(Failure::generic("interrupted"));
        }
        let commands = std::mem::take(&mut story.cluster.typed);
        let message = result.as_ref().err().map(|failure| failure.message.clone());
        report.end(title, begun, commands, result.map_err(|failure| failure.message));
        if let Some(message) = message {
            return Err(Failure::generic(message));
        }
    }
    Ok(story.totals)
}

/// Sums over the whole story.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Acknowledged block writes.
    pub(crate) acknowledged: u64,
    /// How often the copies were compared byte by byte, and were equal.
    pub(crate) comparisons: u32,
}

struct Story<'a> {
    cluster: &'a mut Cluster,
    ledger: Ledger,
    totals: Totals,
    killed: Option<Instant>,
}

/// The shape of a load; see [`Load`].
struct Shape {
    depth: usize,
    blocks_per_write: usize,
    part_percent: usize,
    writes_max: u64,
    time: Option<Duration>,
}

impl Story<'_> {
    fn pair_up(&mut self, report: &Report) -> Result<Finding, Failure> {
        self.cluster.command_ok(Alpha, &["create-md", RESOURCE, "--source"])?;
        self.cluster.start(Alpha)?;
        self.cluster.command_ok(Alpha, &["promote", RESOURCE])?;
        self.cluster.command_ok(Beta, &["create-md", RESOURCE])?;
        self.cluster.start(Beta)?;
        let begun = Instant::now();
        self.synced(Alpha, report)?;
        let first_sync = begun.elapsed();
        let size = self.cluster.size_bytes;
        self.equal()?;
        let line = format!(
            "two daemons, a volume of {}, alpha is Primary; first sync in {}, both copies UpToDate and equal",
            text::bytes(size),
            seconds(first_sync)
        );
        Ok(Finding::new(line).figure("volume_bytes", size).figure("first_sync_ms", ms(first_sync)))
    }

    fn write(&mut self, _: &Report) -> Result<Finding, Failure> {
        let random = Shape {
            depth: 8,
            blocks_per_write: 1,
            part_percent: 100,
            writes_max: u64::MAX,
            time: Some(LOAD_TIME),
        };
        let small = self.load_whole(Alpha, &random)?;
        let large = self.load_whole(Alpha, &Shape { blocks_per_write: 32, depth: 4, ..random })?;
        self.flush(Alpha)?;
        self.equal()?;
        let line = format!(
            "{} writes of 4 KiB ({}/s, median {} us, p99 {} us), then {} at {}/s; copies equal",
            small.writes,
            small.writes_per_s(),
            small.latency_us(500),
            small.latency_us(990),
            text::bytes(large.bytes),
            text::bytes(load::per_second(large.bytes, large.elapsed)),
        );
        let finding = Finding::new(line)
            .figure("writes_4k", small.writes)
            .figure("writes_4k_per_s", small.writes_per_s());
        let finding =
            finding.figure("median_us", small.latency_us(500)).figure("p99_us", small.latency_us(990));
        Ok(finding
            .figure("sequential_bytes", large.bytes)
            .figure("large_bytes_per_s", load::per_second(large.bytes, large.elapsed)))
    }

    fn cut(&mut self, _: &Report) -> Result<Finding, Failure> {
        self.cluster.proxy.cut();
        self.cluster
            .typed
            .push("(the demo pulls the cable between alpha and beta: packets vanish)".to_owned());
        let few = Shape { depth: 4, blocks_per_write: 1, part_percent: 10, writes_max: 400, time: None };
        let tally = self.load_whole(Alpha, &few)?;
        self.flush(Alpha)?;
        self.cluster.command_ok(Alpha, &["status", RESOURCE])?;
        let resource = self.cluster.status(Alpha)?;
        let out_of_sync_bytes = peer(&resource)?.out_of_sync_bytes;
        demand(peer(&resource)?.connection != "Connected", || {
            "alpha did not notice that the cable is cut".to_owned()
        })?;
        let differing = differing_blocks(&self.cluster.image(Alpha), &self.cluster.image(Beta));
        let differing = differing.map_err(|error| failed("comparing the copies", &error))?;
        let differing_bytes = (differing.len() * BLOCK_BYTES) as u64;
        demand(!differing.is_empty(), || {
            "the copies do not differ although one was written alone".to_owned()
        })?;
        demand(out_of_sync_bytes >= differing_bytes, || {
            format!("{differing_bytes} bytes differ, but only {out_of_sync_bytes} are marked dirty")
        })?;
        let marks = self.marks(out_of_sync_bytes)?;
        demand(marks.uncovered(&differing) == 0, || {
            format!("{} blocks differ that no mark on disk covers", marks.uncovered(&differing))
        })?;
        let held = Duration::from_micros(tally.latencies_us.last().copied().unwrap_or(0).into());
        let line = format!(
            "writes held {} until beta was given up (limit {}), then {} writes alone; {} dirty blocks, {} of \
             {}; {} blocks differ, all of them marked",
            seconds(held),
            seconds(PEER_TIMEOUT),
            tally.writes,
            out_of_sync_bytes / BLOCK_BYTES as u64,
            text::bytes(out_of_sync_bytes),
            text::bytes(self.cluster.size_bytes),
            differing.len(),
        );
        const CELLS: u64 = 64;
        let cell = text::bytes(self.cluster.size_bytes / CELLS);
        let picture = format!("bitmap on disk [{}], {cell} a character", marks.picture(CELLS));
        let finding =
            Finding::new(line).detail(picture).figure("held_ms", ms(held)).figure("writes", tally.writes);
        Ok(finding.figure("dirty_bytes", out_of_sync_bytes).figure("differing_bytes", differing_bytes))
    }

    fn reconnect(&mut self, report: &Report) -> Result<Finding, Failure> {
        let before = self.cluster.status(Alpha)?;
        let wire_before = self.cluster.proxy.carried_bytes();
        let begun = Instant::now();
        self.cluster.proxy.mend();
        self.cluster.typed.push("(the demo plugs the cable in again; nothing is typed)".to_owned());
        let after = self.synced(Alpha, report)?;
        let took = begun.elapsed();
        self.flush(Alpha)?;
        self.equal()?;
        let wire_bytes = self.cluster.proxy.carried_bytes() - wire_before;
        let dirty_bytes = peer(&before)?.out_of_sync_bytes;
        let copied_bytes = peer(&after)?.resynced_bytes_total - peer(&before)?.resynced_bytes_total;
        demand(copied_bytes <= dirty_bytes, || {
            format!("{copied_bytes} bytes were copied where {dirty_bytes} were dirty")
        })?;
        let line = self.resync_line(copied_bytes, wire_bytes, took);
        let finding =
            Finding::new(line).figure("copied_bytes", copied_bytes).figure("wire_bytes", wire_bytes);
        Ok(finding.figure("volume_bytes", self.cluster.size_bytes).figure("took_ms", ms(took)))
    }

    fn kill(&mut self, _: &Report) -> Result<Finding, Failure> {
        // Old heat would be copied too when alpha returns, and hide what this step costs.
        let cold = |resource: &ResourceDoc| resource.hot_regions == 0;
        self.cluster.wait(Alpha, "cold although it is idle", |_| {}, cold)?;
        let heavy = Shape {
            depth: 8,
            blocks_per_write: 1,
            part_percent: HEAVY_PERCENT,
            writes_max: u64::MAX,
            time: None,
        };
        let socket = self.cluster.nbd_socket(Alpha);
        let (ledger, cluster) = (&mut self.ledger, &mut *self.cluster);
        let stop = AtomicBool::new(false);
        let acknowledged = AtomicU64::new(0);
        let load = heavy.load(&socket, &stop, &acknowledged, 5);
        let begun = Instant::now();
        let (tally, killed) = thread::scope(|scope| {
            let writers = scope.spawn(|| load::run(ledger, &load));
            thread::sleep(LOAD_TIME);
            let killed = Instant::now();
            let result = cluster.kill(Alpha).map(|()| killed);
            (writers.join().expect("the load does not panic"), result)
        });
        let killed = killed?;
        self.killed = Some(killed);
        self.totals.acknowledged += tally.block_writes;
        demand(tally.broken.len() == WRITERS, || {
            format!("writers outlived their server: {:?}", tally.broken)
        })?;
        let last = tally.last_acknowledged.ok_or_else(|| Failure::generic("nothing was acknowledged"))?;
        let (writes, in_flight, rate) = (tally.writes, tally.in_flight, tally.writes_per_s());
        let line = format!(
            "{WRITERS} writers; killed after {:.3} s, last acknowledgement at {:.3} s; {writes} writes \
             acknowledged ({rate}/s), {in_flight} in flight, their fate open",
            (killed - begun).as_secs_f64(),
            (last - begun).as_secs_f64(),
        );
        let finding = Finding::new(line).figure("acknowledged", writes).figure("writes_per_s", rate);
        Ok(finding.figure("in_flight", in_flight))
    }

    fn promote(&mut self, _: &Report) -> Result<Finding, Failure> {
        let noticed = self.cluster.wait(
            Beta,
            "aware that alpha is gone",
            |_| {},
            |resource| resource.peers.first().is_some_and(|peer| peer.connection == "Connecting"),
        )?;
        demand(noticed.role == "Secondary", || format!("beta became {} by itself", noticed.role))?;
        let plain = self.cluster.command(Beta, &["promote", RESOURCE])?;
        demand(plain.code == 17, || format!("a plain promote ended with {}: {}", plain.code, plain.said))?;
        demand(plain.said.contains("--peer-is-down"), || {
            format!("the refusal does not help: {}", plain.said)
        })?;
        let begun = Instant::now();
        self.cluster.command_ok(Beta, &["promote", RESOURCE, "--peer-is-down"])?;
        let took = begun.elapsed();
        let resource = self.cluster.status(Beta)?;
        demand(resource.role == "Primary", || format!("beta is {} after promote", resource.role))?;
        let since_kill = self.killed.map_or(Duration::ZERO, |killed| killed.elapsed());
        let line = format!(
            "plain promote refused (exit 17); with the operator's word beta is Primary in {}, {} after the \
             kill",
            seconds(took),
            seconds(since_kill)
        );
        let finding = Finding::new(line).detail(format!("refused: {}", plain.said));
        Ok(finding.figure("promote_ms", ms(took)).figure("since_kill_ms", ms(since_kill)))
    }

    fn look_up(&mut self, _: &Report) -> Result<Finding, Failure> {
        let check = self.check_through_nbd(Beta)?;
        let acknowledged = self.totals.acknowledged;
        let line = format!(
            "{acknowledged} acknowledged block writes, {} found, {} lost; {} blocks read; of {} in flight \
             at the kill {} arrived",
            acknowledged - check.lost,
            check.lost,
            check.blocks,
            check.in_flight,
            check.in_flight_found,
        );
        demand(check.passed(), || format!("{line}: {}", check.wrong.join("; ")))?;
        // From here on beta has what alpha does not, and alpha may have what nobody acknowledged.
        let more = Shape { depth: 8, blocks_per_write: 1, part_percent: 10, writes_max: 500, time: None };
        let tally = self.load_whole(Beta, &more)?;
        self.flush(Beta)?;
        let first = tally.first_acknowledged.zip(self.killed).map(|(first, killed)| first - killed);
        let line = format!("{line}; then {} writes more on beta", tally.writes);
        let finding = Finding::new(line).figure("acknowledged", acknowledged).figure("lost", check.lost);
        let finding =
            finding.figure("in_flight", check.in_flight).figure("in_flight_found", check.in_flight_found);
        Ok(finding.figure("first_write_after_kill_ms", first.map_or(0, ms)).figure("blocks", check.blocks))
    }

    fn come_back(&mut self, report: &Report) -> Result<Finding, Failure> {
        let before = self.cluster.status(Beta)?;
        let wire_before = self.cluster.proxy.carried_bytes();
        let begun = Instant::now();
        self.cluster.start(Alpha)?;
        let after = self.synced(Beta, report)?;
        let took = begun.elapsed();
        demand(after.role == "Primary", || format!("beta is {}", after.role))?;
        let alpha = self.cluster.status(Alpha)?;
        demand(alpha.role == "Secondary" && alpha.disk == "UpToDate", || {
            format!("alpha is {} and {}", alpha.role, alpha.disk)
        })?;
        self.flush(Beta)?;
        self.equal()?;
        let wire_bytes = self.cluster.proxy.carried_bytes() - wire_before;
        let copied_bytes = peer(&after)?.resynced_bytes_total - peer(&before)?.resynced_bytes_total;
        let hot_bytes = self.heavy_bytes(after.region_bytes);
        demand(copied_bytes <= hot_bytes, || {
            format!("{copied_bytes} bytes were copied where {hot_bytes} were hot at most")
        })?;
        let image = File::open(self.cluster.image(Alpha)).map_err(|error| failed("alpha's copy", &error))?;
        let check = self.ledger.check(|offset, buffer| image.read_exact_at(buffer, offset));
        let check = check.map_err(|error| failed("reading alpha's copy", &error))?;
        demand(check.passed(), || format!("alpha's copy lacks {}: {}", check.lost, check.wrong.join("; ")))?;
        let line = format!(
            "alpha is target, {}; the ledger holds on alpha too",
            self.resync_line(copied_bytes, wire_bytes, took)
        );
        let finding =
            Finding::new(line).figure("copied_bytes", copied_bytes).figure("wire_bytes", wire_bytes);
        Ok(finding.figure("volume_bytes", self.cluster.size_bytes).figure("took_ms", ms(took)))
    }

    fn resync_line(&self, copied_bytes: u64, wire_bytes: u64, took: Duration) -> String {
        format!(
            "resynchronised {} of {} in {} ({} over the wire), copies equal",
            text::bytes(copied_bytes),
            text::bytes(self.cluster.size_bytes),
            seconds(took),
            text::bytes(wire_bytes)
        )
    }

    /// Bytes of the regions in which the load wrote that was on when the Primary was killed.
    fn heavy_bytes(&self, region_bytes: u64) -> u64 {
        let part_bytes = (self.ledger.entries.len() / WRITERS * BLOCK_BYTES) as u64;
        let regions = (0..WRITERS as u64).map(|writer| {
            let first = writer * part_bytes / region_bytes;
            (writer * part_bytes + part_bytes * HEAVY_PERCENT as u64 / 100).div_ceil(region_bytes) - first
        });
        regions.sum::<u64>() * region_bytes
    }

    /// Waits until both copies are UpToDate and mirrored, with a bar on the way.
    fn synced(&mut self, side: Side, report: &Report) -> Result<ResourceDoc, Failure> {
        let show = |resource: &ResourceDoc| {
            if let Some(resync) = resource.peers.first().and_then(|peer| peer.resync.as_ref()) {
                report.progress(resync);
            }
        };
        self.cluster.wait(side, "synced", show, |resource| resource.protected)?;
        self.cluster.command_ok(side, &["wait", RESOURCE, "--for", "synced"])?;
        self.cluster.status(side)
    }

    /// Compares the copies byte by byte. Nothing may be written meanwhile.
    fn equal(&mut self) -> Result<(), Failure> {
        let differing = differing_blocks(&self.cluster.image(Alpha), &self.cluster.image(Beta));
        let differing = differing.map_err(|error| failed("comparing the copies", &error))?;
        demand(differing.is_empty(), || {
            let first: Vec<String> = differing.iter().take(8).map(u64::to_string).collect();
            format!("the copies differ in {} blocks: {} ...", differing.len(), first.join(", "))
        })?;
        self.totals.comparisons += 1;
        Ok(())
    }

    /// Runs a load that nothing may break.
    fn load_whole(&mut self, side: Side, shape: &Shape) -> Result<Tally, Failure> {
        let socket: PathBuf = self.cluster.nbd_socket(side);
        let stop = AtomicBool::new(false);
        let acknowledged = AtomicU64::new(0);
        let load = shape.load(&socket, &stop, &acknowledged, self.totals.acknowledged);
        let ledger = &mut self.ledger;
        let tally = thread::scope(|scope| {
            let writers = scope.spawn(|| load::run(ledger, &load));
            if let Some(time) = shape.time {
                thread::sleep(time);
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            writers.join().expect("the load does not panic")
        });
        self.totals.acknowledged += tally.block_writes;
        demand(tally.broken.is_empty(), || format!("writers broke off: {}", tally.broken.join("; ")))?;
        Ok(tally)
    }

    fn flush(&self, side: Side) -> Result<(), Failure> {
        let flushed = Client::connect(&self.cluster.nbd_socket(side), RESOURCE).and_then(|mut client| {
            client.flush()?;
            client.disconnect()
        });
        flushed.map_err(|error| failed("flush", &error))
    }

    fn check_through_nbd(&mut self, side: Side) -> Result<Check, Failure> {
        let client = Client::connect(&self.cluster.nbd_socket(side), RESOURCE);
        let mut client = client.map_err(|error| failed("connecting to the NBD server", &error))?;
        let check = self.ledger.check(|offset, buffer| client.read(offset, buffer));
        client.disconnect().map_err(|error| failed("leaving the NBD server", &error))?;
        check.map_err(|error| failed("reading through NBD", &error))
    }

    /// The marks on alpha's disk, when the bits have got there; the activity map covers until then.
    fn marks(&self, out_of_sync_bytes: u64) -> Result<Marks, Failure> {
        const LAZY_MAX: Duration = Duration::from_secs(3);
        let deadline = Instant::now() + LAZY_MAX;
        loop {
            let marks = Marks::read(&self.cluster.meta(Alpha))
                .map_err(|error| failed("the metadata file", &error))?;
            let written = marks.dirty.len() * BLOCK_BYTES >= out_of_sync_bytes as usize;
            if written || Instant::now() > deadline {
                return Ok(marks);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Shape {
    fn load<'a>(
        &self,
        socket: &'a std::path::Path,
        stop: &'a AtomicBool,
        acknowledged: &'a AtomicU64,
        seed: u64,
    ) -> Load<'a> {
        Load {
            socket,
            export: RESOURCE,
            writers: WRITERS,
            depth: self.depth,
            blocks_per_write: self.blocks_per_write,
            part_percent: self.part_percent,
            seed,
            writes_max: self.writes_max,
            stop,
            acknowledged,
        }
    }
}

fn demand(kept: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if kept { Ok(()) } else { Err(Failure::generic(otherwise())) }
}

fn peer(resource: &ResourceDoc) -> Result<&PeerDoc, Failure> {
    resource.peers.first().ok_or_else(|| Failure::generic("the daemon knows no peer"))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn ms(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
