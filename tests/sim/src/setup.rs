//! What a seed decides before the run: sizes, limits, latencies, and which families of faults are on.
//!
//! A scenario in a file states what differs from [`Setup::plain`]; `fields.rs` knows each by its name. Old files know
//! nothing of a new field: its plain value must leave everything as it was before there was the field.

use crate::prng::Prng;
use lockstep_core::Timing;
use std::time::Duration;

/// One millisecond in nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// One microsecond in nanoseconds.
pub(crate) const US: u64 = 1_000;

/// Families of faults; each is on or off for a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Processes are killed.
    pub(crate) crash: bool,
    /// Machines lose power, one or both.
    pub(crate) power: bool,
    /// Processes stand still.
    pub(crate) pause: bool,
    /// Connections are reset with bytes in flight.
    pub(crate) reset: bool,
    /// The network is silent, one way or both.
    pub(crate) stall: bool,
    /// Dialling fails.
    pub(crate) refuse: bool,
    /// Faults strike at the core's actions instead of at random times.
    pub(crate) aimed: bool,
    /// The operator moves the Primary, disconnects, lets nodes leave.
    pub(crate) operator: bool,
    /// Machines are restored from older images of themselves.
    pub(crate) image: bool,
    /// Clients go away in the middle of requests.
    pub(crate) rude_clients: bool,
    /// A resync finds sectors that it cannot read.
    pub(crate) unreadable: bool,
    /// Disks fail, and are replaced under the running node.
    pub(crate) disk: bool,
    /// The operator says that a node is down which is not: split brain is expected.
    pub(crate) dishonest: bool,
    /// Bits turn over on the wire.
    pub(crate) flip: bool,
    /// Somebody else answers where the peer is dialled.
    pub(crate) stranger: bool,
    /// Wall clocks jump.
    pub(crate) wall_clock: bool,
    /// Bits turn over in metadata.
    pub(crate) rot: bool,
    /// Processes are killed while their metadata is being written.
    pub(crate) hasty: bool,
    /// Connections are reset while a superblock is being written.
    pub(crate) hasty_reset: bool,
    /// A process starts with other durations than the one before.
    pub(crate) retimed: bool,
    /// Any command at any moment, several at once.
    pub(crate) typist: bool,
}

/// What drawn decisions prefer, where a run is set up for something: a planted bug, say. It draws nothing itself, and
/// is no part of a scenario, which has the decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Focus {
    /// Actions that strikes are aimed at.
    pub(crate) codes: &'static [u64],
    /// Kinds of disk trouble.
    pub(crate) ailments: &'static [u64],
    /// What the operator types.
    pub(crate) verbs: &'static [u64],
    /// Faults and verbs come three times as often.
    pub(crate) often: bool,
}

impl Focus {
    /// One of these numbers, or of those below `bound` where there are none.
    pub(crate) fn pick(list: &[u64], bound: u64, rng: &mut Prng) -> u64 {
        if list.is_empty() { rng.below(bound) } else { rng.pick(list) }
    }

    /// A chance per thousand.
    pub(crate) fn chance(&self, per_mille: u64) -> u64 {
        if self.often { per_mille * 3 } else { per_mille }
    }
}

/// Everything drawn before the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Of the streams that decide what the environment does: latencies, damage, identities.
    pub(crate) seed: u64,
    /// Each latency is the mean one.
    pub(crate) calm_latency: bool,
    /// Sectors of the volume.
    pub(crate) sectors: usize,
    /// log2 of the bitmap's blocks.
    pub(crate) block_shift: u8,
    /// log2 of the regions.
    pub(crate) region_shift: u8,
    /// Bound of hot regions.
    pub(crate) max_hot: u32,
    /// Node 0 or 1, whose data is the first.
    pub(crate) source: usize,
    /// Logical blocks of each node's disk in bytes.
    pub(crate) granule_bytes: [u32; 2],
    /// Per node: completed writes outlive the process, as the core is told.
    pub(crate) survives: [bool; 2],
    /// As in the core's configuration.
    pub(crate) writes_max: usize,
    /// As in the core's configuration.
    pub(crate) undurable_max: usize,
    /// As in the core's configuration.
    pub(crate) resync_window: usize,
    /// As in the core's configuration.
    pub(crate) bits_frame_bytes: usize,
    /// As in the core's configuration.
    pub(crate) timing: Timing,
    /// Parts per million by which each clock is fast, plus 500.
    pub(crate) clock_ppm: [u64; 2],
    /// Buffers for what the peer sends, per machine.
    pub(crate) receive_slots: usize,
    /// Mean latency of a data write or read, per node, ns.
    pub(crate) disk_ns: [u64; 2],
    /// Mean latency of a flush, ns.
    pub(crate) flush_ns: u64,
    /// Mean latency of a metadata write, ns.
    pub(crate) meta_ns: u64,
    /// One-way latency of the network, ns.
    pub(crate) wire_ns: u64,
    /// Time per KiB on the wire, ns.
    pub(crate) wire_ns_per_kib: u64,
    /// Clients.
    pub(crate) clients: usize,
    /// Requests in flight per client.
    pub(crate) depth: u64,
    /// What the kernels hold between a client and its node, each way.
    pub(crate) client_buffer_bytes: usize,
    /// Answers that a client may leave unread before it is not read any more.
    pub(crate) unsent_max: usize,
    /// Buffers for what clients write, per machine.
    pub(crate) write_slots: usize,
    /// Mean time between the requests of a client, ns.
    pub(crate) think_ns: u64,
    /// Sectors that most requests go to.
    pub(crate) hot_sectors: usize,
    /// Length of the phase with faults, ns.
    pub(crate) stormy_ns: u64,
    /// Mean time between faults, ns.
    pub(crate) fault_gap_ns: u64,
    /// Which faults.
    pub(crate) faults: Faults,
    /// Where flushes fail, so does the one in a write with FUA.
    pub(crate) sync_of_fua: bool,
    /// Per node: data and metadata are on one device, and share its fate.
    pub(crate) one_device: [bool; 2],
    /// Who is there when the faults have ended; whoever is not is gone for good.
    pub(crate) survivors: [bool; 2],
    /// Room for checkpoints; with none, nobody makes any.
    pub(crate) checkpoints: u8,
    /// What it is set up for.
    pub(crate) focus: Focus,
}

impl Setup {
    /// A small volume, quick disks and wires, wide limits, one client.
    pub(crate) fn plain() -> Self {
        Setup {
            seed: 0,
            calm_latency: true,
            sectors: 2048,
            block_shift: 12,
            region_shift: 17,
            max_hot: 8,
            source: 0,
            granule_bytes: [512; 2],
            survives: [false; 2],
            writes_max: 32,
            undurable_max: 64,
            resync_window: 8,
            bits_frame_bytes: 64,
            timing: plain_timing(),
            clock_ppm: [500; 2],
            receive_slots: usize::MAX,
            disk_ns: [100 * US; 2],
            flush_ns: 500 * US,
            meta_ns: 200 * US,
            wire_ns: 50 * US,
            wire_ns_per_kib: 1000,
            clients: 1,
            depth: 8,
            client_buffer_bytes: 1 << 16,
            unsent_max: 128,
            write_slots: usize::MAX,
            think_ns: MS,
            hot_sectors: 2048,
            stormy_ns: 1000 * MS,
            fault_gap_ns: 100 * MS,
            faults: Faults::default(),
            sync_of_fua: false,
            one_device: [true; 2],
            survivors: [true; 2],
            checkpoints: 0,
            focus: Focus::default(),
        }
    }

    /// What this seed decides.
    pub(crate) fn of(seed: u64) -> Self {
        let rng = &mut Prng::new(seed, "setup");
        let granule_bytes = [rng.pick(&[512, 512, 4096]), rng.pick(&[512, 512, 4096])];
        let mut sectors = rng.between(2 * 1024, 16 * 1024) as usize;
        if granule_bytes.contains(&4096) || rng.coin() {
            sectors = sectors.next_multiple_of(8);
        }
        let hot_sectors = (sectors as u64 / rng.pick(&[1, 4, 16, 64])) as usize;
        let setup = Setup {
            seed,
            calm_latency: false,
            sectors,
            block_shift: rng.pick(&[12, 12, 12, 13, 16]),
            region_shift: rng.pick(&[17, 17, 18]),
            max_hot: rng.between(2, 8) as u32,
            source: rng.below(2) as usize,
            granule_bytes,
            survives: [rng.coin(), rng.coin()],
            writes_max: rng.between(2, 32) as usize,
            undurable_max: rng.between(4, 64) as usize,
            resync_window: rng.between(1, 8) as usize,
            bits_frame_bytes: rng.pick(&[1, 2, 8, 64]),
            timing: timing(rng),
            clock_ppm: [rng.below(1001), rng.below(1001)],
            disk_ns: [rng.pick(&[20, 100, 500]) * US, rng.pick(&[20, 100, 500]) * US],
            flush_ns: rng.pick(&[50, 500, 5000]) * US,
            meta_ns: rng.pick(&[50, 200, 1000]) * US,
            wire_ns: rng.pick(&[10, 50, 200, 1000]) * US,
            wire_ns_per_kib: rng.pick(&[100, 1000, 10_000]),
            clients: rng.between(1, 4) as usize,
            depth: rng.pick(&[1, 2, 4, 8, 32]),
            client_buffer_bytes: rng.pick(&[64, 512, 4096, 1 << 16]),
            unsent_max: rng.pick(&[1, 4, 128]),
            write_slots: rng.pick(&[1, 4, usize::MAX, usize::MAX]),
            think_ns: rng.pick(&[500, 1000, 2000, 5000, 10_000]) * US,
            hot_sectors: hot_sectors.max(64),
            stormy_ns: rng.between(500, 3000) * MS,
            fault_gap_ns: rng.pick(&[20, 50, 100, 300]) * MS,
            faults: faults(rng),
            // Last, so that what older seeds drew stays.
            receive_slots: rng.pick(&[1, 4, usize::MAX, usize::MAX]),
            sync_of_fua: rng.below(4) == 0,
            one_device: [true; 2],
            survivors: [true; 2],
            checkpoints: 0,
            focus: Focus::default(),
        };
        setup.with_more(&mut Prng::new(seed, "more"))
    }

    /// What is drawn from a stream of its own, so that what older seeds drew stays.
    fn with_more(mut self, rng: &mut Prng) -> Self {
        self.one_device = [rng.coin(), rng.coin()];
        let f = &mut self.faults;
        if f.is_mixed() {
            (f.flip, f.stranger, f.wall_clock, f.rot) = (rng.coin(), rng.coin(), rng.coin(), rng.coin());
            (f.retimed, f.typist) = (rng.coin(), rng.chance(250));
            f.hasty = rng.coin() && (f.crash || f.power);
        }
        if rng.chance(50) {
            // One family, and that all the time.
            let dishonest = f.dishonest;
            *f = Faults { dishonest, ..Faults::only(rng.below(Faults::FAMILIES)) };
            self.fault_gap_ns /= 20;
        }
        if self.faults.retimed {
            // Nobody is taken for dead by a peer that waits less.
            self.timing.heartbeat = Duration::from_millis(TIMEOUTS_MS[0] / 6);
        }
        let both = [true; 2];
        self.survivors = rng.pick(&[both, both, both, both, both, both, [true, false], [false, true]]);
        if rng.chance(100) {
            self.be_silly(rng);
        }
        // Half of all seeds know nothing of checkpoints, and are what they were before there were any.
        let rng = &mut Prng::new(self.seed, "checkpoints");
        self.checkpoints = rng.pick(&[0, 0, 0, 1, 3, 4]);
        // A quarter of those whose connections are reset anyway. The ends learn of a reset after some ten milliseconds,
        // which a record has to outlast.
        self.faults.hasty_reset = self.faults.reset && Prng::new(self.seed, "hasty reset").chance(250);
        if self.faults.hasty_reset {
            self.meta_ns = 5000 * US;
        }
        self
    }
}

impl Setup {
    /// Limits and durations that nobody would choose.
    fn be_silly(&mut self, rng: &mut Prng) {
        let ms = Duration::from_millis;
        self.timing.epoch = ms(rng.pick(&[1, 10_000]));
        self.timing.lazy_write = ms(rng.pick(&[1, 10_000]));
        self.timing.io_timeout = ms(rng.pick(&[1, 20_000]));
        self.timing.resync_retry = ms(rng.pick(&[1, 5_000]));
        self.timing.redial_max = ms(rng.pick(&[5, 2_000]));
        (self.writes_max, self.undurable_max, self.max_hot) = (1, rng.pick(&[1, 2, 64]), rng.pick(&[1, 64]));
    }
}

impl Faults {
    /// Families that may be alone.
    const FAMILIES: u64 = 17;

    /// More than one cause.
    fn is_mixed(&self) -> bool {
        let others = [self.pause, self.reset, self.stall, self.refuse, self.operator, self.rude_clients];
        others.contains(&true)
    }

    fn only(family: u64) -> Self {
        let mut f = Faults::default();
        let flag = match family {
            0 => &mut f.crash,
            1 => &mut f.power,
            2 => &mut f.pause,
            3 => &mut f.reset,
            4 => &mut f.stall,
            5 => &mut f.refuse,
            6 => &mut f.operator,
            7 => &mut f.rude_clients,
            8 => &mut f.image,
            9 => &mut f.disk,
            10 => &mut f.flip,
            11 => &mut f.stranger,
            12 => &mut f.wall_clock,
            13 => &mut f.typist,
            // Of no effect alone: with what they need.
            14 => {
                f.crash = true;
                &mut f.hasty
            }
            15 => {
                f.power = true;
                &mut f.rot
            }
            _ => {
                f.crash = true;
                &mut f.retimed
            }
        };
        *flag = true;
        f
    }
}

/// How long a silent peer is waited for.
const TIMEOUTS_MS: [u64; 3] = [100, 300, 600];

/// Other durations than `timing`, for one process.
pub(crate) fn retimed(mut timing: Timing, rng: &mut Prng) -> Timing {
    let ms = Duration::from_millis;
    timing.timeout = ms(rng.pick(&TIMEOUTS_MS));
    timing.epoch = ms(rng.pick(&[1, 20, 1000]));
    timing.io_timeout = ms(rng.pick(&[20, 500, 5000]));
    timing.lazy_write = ms(rng.pick(&[1, 50, 500]));
    timing.redial_max = ms(rng.pick(&[5, 100, 300]));
    timing
}

fn plain_timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        timeout: ms(300),
        heartbeat: ms(50),
        redial_min: ms(5),
        redial_max: ms(100),
        epoch: ms(100),
        io_timeout: ms(500),
        disk_timeout: None,
        lazy_write: ms(50),
        resync_retry: ms(50),
    }
}

fn timing(rng: &mut Prng) -> Timing {
    let ms = Duration::from_millis;
    let timeout_ms = rng.pick(&TIMEOUTS_MS);
    Timing {
        timeout: ms(timeout_ms),
        heartbeat: ms(timeout_ms / 6),
        redial_min: ms(5),
        redial_max: ms(100),
        epoch: ms(rng.pick(&[20, 100, 1000])),
        io_timeout: ms(rng.pick(&[500, 5000])),
        disk_timeout: rng.pick(&[None, Some(ms(100)), Some(ms(400))]),
        lazy_write: ms(rng.pick(&[5, 50, 500])),
        resync_retry: ms(rng.pick(&[50, 500])),
    }
}

fn faults(rng: &mut Prng) -> Faults {
    let mut one = || rng.coin();
    let drawn = Faults {
        crash: one(),
        power: one(),
        pause: one(),
        reset: one(),
        stall: one(),
        refuse: one(),
        aimed: one(),
        operator: one(),
        rude_clients: one(),
        unreadable: one(),
        image: one(),
        disk: one(),
        ..Faults::default()
    };
    match rng.below(20) {
        0 | 1 => Faults::default(),
        2 | 3 => Faults { crash: true, aimed: drawn.aimed, ..Faults::default() },
        4 | 5 => Faults { power: true, aimed: drawn.aimed, ..Faults::default() },
        8..11 => Faults { disk: true, operator: drawn.operator, crash: drawn.crash, ..Faults::default() },
        6 | 7 => Faults { dishonest: true, stall: true, ..drawn },
        _ => drawn,
    }
}
