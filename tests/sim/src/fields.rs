//! The fields of a setup by name, for files and for whoever makes a scenario simpler.

use crate::setup::{Faults, Setup};
use lockstep_core::Timing;
use std::time::Duration;

/// A value that a line of a file can say.
pub(crate) trait Value {
    /// As text.
    fn show(&self) -> String;
    /// From text; what is expected, if that is something else.
    fn read(&mut self, text: &str) -> Result<(), &'static str>;
}

impl Setup {
    /// Every field and its name. Whoever adds one is told by the compiler to name it here.
    pub(crate) fn fields(&mut self) -> Vec<(&'static str, &mut dyn Value)> {
        let Setup {
            seed,
            calm_latency,
            sectors,
            block_shift,
            region_shift,
            max_hot,
            source,
            granule_bytes,
            survives,
            writes_max,
            undurable_max,
            resync_window,
            bits_frame_bytes,
            timing,
            clock_ppm,
            receive_slots,
            disk_ns,
            flush_ns,
            meta_ns,
            wire_ns,
            wire_ns_per_kib,
            clients,
            depth,
            client_buffer_bytes,
            unsent_max,
            write_slots,
            think_ns,
            hot_sectors,
            stormy_ns,
            fault_gap_ns,
            faults,
            sync_of_fua,
            one_device,
            survivors,
            checkpoints,
            focus: _,
        } = self;
        let mut all: Vec<(&'static str, &mut dyn Value)> = vec![
            ("seed", seed),
            ("calm-latency", calm_latency),
            ("sectors", sectors),
            ("block-shift", block_shift),
            ("region-shift", region_shift),
            ("max-hot", max_hot),
            ("source", source),
            ("granule-bytes", granule_bytes),
            ("survives", survives),
            ("writes-max", writes_max),
            ("undurable-max", undurable_max),
            ("resync-window", resync_window),
            ("bits-frame-bytes", bits_frame_bytes),
            ("clock-ppm", clock_ppm),
            ("receive-slots", receive_slots),
            ("disk-ns", disk_ns),
            ("flush-ns", flush_ns),
            ("meta-ns", meta_ns),
            ("wire-ns", wire_ns),
            ("wire-ns-per-kib", wire_ns_per_kib),
            ("clients", clients),
            ("depth", depth),
            ("client-buffer-bytes", client_buffer_bytes),
            ("unsent-max", unsent_max),
            ("write-slots", write_slots),
            ("think-ns", think_ns),
            ("hot-sectors", hot_sectors),
            ("stormy-ns", stormy_ns),
            ("fault-gap-ns", fault_gap_ns),
            ("sync-of-fua", sync_of_fua),
            ("one-device", one_device),
            ("survivors", survivors),
            ("checkpoints", checkpoints),
        ];
        all.extend(fields_of_timing(timing));
        all.extend(fields_of_faults(faults));
        all
    }
}

fn fields_of_timing(timing: &mut Timing) -> [(&'static str, &mut dyn Value); 9] {
    let Timing {
        timeout,
        heartbeat,
        redial_min,
        redial_max,
        epoch,
        io_timeout,
        disk_timeout,
        lazy_write,
        resync_retry,
    } = timing;
    [
        ("timeout", timeout),
        ("heartbeat", heartbeat),
        ("redial-min", redial_min),
        ("redial-max", redial_max),
        ("epoch", epoch),
        ("io-timeout", io_timeout),
        ("disk-timeout", disk_timeout),
        ("lazy-write", lazy_write),
        ("resync-retry", resync_retry),
    ]
}

fn fields_of_faults(faults: &mut Faults) -> [(&'static str, &mut dyn Value); 21] {
    let Faults {
        crash,
        power,
        pause,
        reset,
        stall,
        refuse,
        aimed,
        operator,
        image,
        rude_clients,
        unreadable,
        disk,
        dishonest,
        flip,
        stranger,
        wall_clock,
        rot,
        hasty,
        hasty_reset,
        retimed,
        typist,
    } = faults;
    [
        ("crash", crash),
        ("power", power),
        ("pause", pause),
        ("reset", reset),
        ("stall", stall),
        ("refuse", refuse),
        ("aimed", aimed),
        ("operator", operator),
        ("image", image),
        ("rude-clients", rude_clients),
        ("unreadable", unreadable),
        ("disk", disk),
        ("dishonest", dishonest),
        ("flip", flip),
        ("stranger", stranger),
        ("wall-clock", wall_clock),
        ("rot", rot),
        ("hasty", hasty),
        ("hasty-reset", hasty_reset),
        ("retimed", retimed),
        ("typist", typist),
    ]
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl Value for $kind {
            fn show(&self) -> String {
                if *self == <$kind>::MAX { "unlimited".into() } else { self.to_string() }
            }

            fn read(&mut self, text: &str) -> Result<(), &'static str> {
                let limit = (text == "unlimited").then_some(<$kind>::MAX);
                *self = limit.or_else(|| text.parse().ok()).ok_or("a number or `unlimited`")?;
                Ok(())
            }
        }
    )*};
}
numbers!(u8, u32, u64, usize);

impl Value for bool {
    fn show(&self) -> String {
        if *self { "yes".into() } else { "no".into() }
    }

    fn read(&mut self, text: &str) -> Result<(), &'static str> {
        *self = match text {
            "yes" => true,
            "no" => false,
            _ => return Err("`yes` or `no`"),
        };
        Ok(())
    }
}

impl Value for Duration {
    fn show(&self) -> String {
        format!("{}ms", self.as_millis())
    }

    fn read(&mut self, text: &str) -> Result<(), &'static str> {
        let ms = text.strip_suffix("ms").and_then(|number| number.parse().ok());
        *self = Duration::from_millis(ms.ok_or("a duration like `100ms`")?);
        Ok(())
    }
}

impl Value for Option<Duration> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "none".into(), Value::show)
    }

    fn read(&mut self, text: &str) -> Result<(), &'static str> {
        let mut duration = Duration::ZERO;
        *self = match text {
            "none" => None,
            _ => Some(
                duration.read(text).map(|()| duration).map_err(|_| "a duration like `100ms`, or `none`")?,
            ),
        };
        Ok(())
    }
}

/// One for each node.
impl<T: Value> Value for [T; 2] {
    fn show(&self) -> String {
        format!("{} {}", self[0].show(), self[1].show())
    }

    fn read(&mut self, text: &str) -> Result<(), &'static str> {
        let (first, second) = text.split_once(' ').ok_or("two values, one for each node")?;
        self[0].read(first)?;
        self[1].read(second.trim_start())
    }
}
