//! The words of decisions, see `script.rs`.
//!
//! ```text
//! boot N [no-disk]
//! client C join N [structured] | leave | goodbye | mute for NS | deaf for NS
//!        | wrong (past-the-end | misaligned | empty | flag) | flush
//!        | (read | write | trim | zero | zero-allocate) FIRST +COUNT [fua]
//! operator N promote [peer-is-down | accept-data-loss] | demote [force] | connect | disconnect | resolve NODE
//!            | invalidate | invalidate-remote | sync pause | sync resume | sync RATE | detach | leave
//!            | attach [empty] | checkpoint (create | delete) NAME
//! fault kill N | power N | pause N for NS | reset | silence (N | both) for NS | refuse for NS
//!       | take-image N | restore-image N | unreadable N FIRST +COUNT | hang N for NS
//!       | trouble N (all | write | read | flush | write-and-flush | meta | full) PER-MILLE for NS
//!       | trouble N sectors A,B,C for NS | flip | stranger for NS | wall-clock N (forward | back) MS | rot N BIT
//!       | aim N CODE (kill | power) (before | at-once | after NS)
//! ```

use crate::decision::{Ailment, Aim, ClientAct, Decision, Fault, When, Wrong};
use crate::host::Stop;
use crate::setup::Setup;
use crate::world::node_id;
use lockstep_core::{CheckpointName, Command, RequestKind, SyncOrder};

/// A decision as text.
pub(crate) fn show(decision: &Decision) -> String {
    match decision {
        Decision::Boot { n, disk: true } => format!("boot {n}"),
        Decision::Boot { n, disk: false } => format!("boot {n} no-disk"),
        Decision::Client(client, act) => format!("client {client} {}", show_act(*act)),
        Decision::Command(n, command) => format!("operator {n} {}", show_command(*command)),
        Decision::Attach { n, empty } => format!("operator {n} attach{}", if *empty { " empty" } else { "" }),
        Decision::Fault(fault) => format!("fault {}", show_fault(fault)),
    }
}

/// What a decision has in common with others: its first words, without numbers.
pub(crate) fn kind(decision: &Decision) -> String {
    let text = show(decision);
    let words = text.split_whitespace().filter(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
    let named = words.filter(|word| !word.starts_with('+') && *word != "for" && *word != "fua");
    named.take(3).collect::<Vec<_>>().join(" ")
}

fn show_act(act: ClientAct) -> String {
    match act {
        ClientAct::Join { n, structured } => {
            format!("join {n}{}", if structured { " structured" } else { "" })
        }
        ClientAct::Leave => "leave".into(),
        ClientAct::Goodbye => "goodbye".into(),
        ClientAct::Mute(ns) => format!("mute for {ns}"),
        ClientAct::Deaf(ns) => format!("deaf for {ns}"),
        ClientAct::Wrong(wrong) => {
            format!("wrong {}", WRONGS.iter().find(|(_, known)| *known == wrong).map_or("", |(name, _)| name))
        }
        ClientAct::Request { kind: RequestKind::Flush, .. } => "flush".into(),
        ClientAct::Request { kind, range: (first, count), fua } => {
            let kind = match kind {
                RequestKind::Read => "read",
                RequestKind::Write => "write",
                RequestKind::Trim => "trim",
                RequestKind::Zero { no_hole: false } => "zero",
                RequestKind::Zero { no_hole: true } => "zero-allocate",
                RequestKind::Flush => "flush",
            };
            format!("{kind} {first} +{count}{}", if fua { " fua" } else { "" })
        }
    }
}

fn show_command(command: Command) -> String {
    match command {
        Command::Promote { accept_data_loss: true, .. } => "promote accept-data-loss".into(),
        Command::Promote { peer_is_down: true, .. } => "promote peer-is-down".into(),
        Command::Promote { .. } => "promote".into(),
        Command::Demote { force: false } => "demote".into(),
        Command::Demote { force: true } => "demote force".into(),
        Command::Connect => "connect".into(),
        Command::Disconnect => "disconnect".into(),
        Command::Resolve { discard } => format!("resolve {}", u8::from(discard != node_id(0))),
        Command::Invalidate { peer: false } => "invalidate".into(),
        Command::Invalidate { peer: true } => "invalidate-remote".into(),
        Command::Sync(SyncOrder::Pause) => "sync pause".into(),
        Command::Sync(SyncOrder::Resume) => "sync resume".into(),
        Command::Sync(SyncOrder::Rate(None)) => "sync unlimited".into(),
        Command::Sync(SyncOrder::Rate(Some(rate))) => format!("sync {rate}"),
        Command::Sync(SyncOrder::AtLeast(rate)) => format!("sync at-least {}", rate.unwrap_or(0)),
        Command::Detach => "detach".into(),
        Command::CreateCheckpoint { name } => format!("checkpoint create {}", name.as_str()),
        Command::DeleteCheckpoint { name } => format!("checkpoint delete {}", name.as_str()),
        Command::Leave => "leave".into(),
    }
}

fn show_stop(how: Stop) -> &'static str {
    if how == Stop::Power { "power" } else { "kill" }
}

fn show_fault(fault: &Fault) -> String {
    match fault {
        Fault::Strike(n, how) => format!("{} {n}", show_stop(*how)),
        Fault::Aim(Aim { n, code, how, when }) => {
            let when = match when {
                When::Before => "before".into(),
                When::AtOnce => "at-once".into(),
                When::After(ns) => format!("after {ns}"),
            };
            format!("aim {n} {code} {} {when}", show_stop(*how))
        }
        Fault::Pause { n, ns } => format!("pause {n} for {ns}"),
        Fault::Reset => "reset".into(),
        Fault::Silence { from: [true, true], ns } => format!("silence both for {ns}"),
        Fault::Silence { from, ns } => format!("silence {} for {ns}", usize::from(from[1])),
        Fault::Refuse { ns } => format!("refuse for {ns}"),
        Fault::TakeImage(n) => format!("take-image {n}"),
        Fault::RestoreImage(n) => format!("restore-image {n}"),
        Fault::Unreadable(n, (first, count)) => format!("unreadable {n} {first} +{count}"),
        Fault::Hang { n, ns } => format!("hang {n} for {ns}"),
        Fault::Flip => "flip".into(),
        Fault::Stranger { ns } => format!("stranger for {ns}"),
        Fault::WallClock { n, forward: true, ms } => format!("wall-clock {n} forward {ms}"),
        Fault::WallClock { n, forward: false, ms } => format!("wall-clock {n} back {ms}"),
        Fault::Rot { n, bit } => format!("rot {n} {bit}"),
        Fault::Trouble { n, what: Ailment::Sectors(sectors), ns, .. } => {
            let sectors: Vec<String> = sectors.iter().map(usize::to_string).collect();
            format!("trouble {n} sectors {} for {ns}", sectors.join(","))
        }
        Fault::Trouble { n, what, per_mille, ns } => {
            let name = AILMENTS.iter().find(|(_, known)| known == what).map_or("", |(name, _)| name);
            format!("trouble {n} {name} {per_mille} for {ns}")
        }
    }
}

const WRONGS: [(&str, Wrong); 4] = [
    ("past-the-end", Wrong::PastTheEnd),
    ("misaligned", Wrong::Misaligned),
    ("empty", Wrong::Empty),
    ("flag", Wrong::Flag),
];

const AILMENTS: [(&str, Ailment); 7] = [
    ("all", Ailment::All),
    ("write", Ailment::Write),
    ("read", Ailment::Read),
    ("flush", Ailment::Flush),
    ("write-and-flush", Ailment::WriteAndFlush),
    ("meta", Ailment::Meta),
    ("full", Ailment::Full),
];

/// A decision from words.
pub(crate) fn parse(words: &[&str], setup: &Setup) -> Result<Decision, String> {
    let mut words = Words { rest: words, setup };
    let decision = match words.next() {
        "boot" => {
            let n = words.node()?;
            Decision::Boot { n, disk: !words.has("no-disk") }
        }
        "client" => {
            let client = words.number("the number of a client")?;
            if client >= setup.clients {
                return Err(format!("no such client; this setup has {}, from 0", setup.clients));
            }
            Decision::Client(client, words.act()?)
        }
        "operator" => {
            let n = words.node()?;
            words.command(n)?
        }
        "fault" => Decision::Fault(words.fault()?),
        _ => return Err("expected one of boot, client, operator, fault".into()),
    };
    match words.rest {
        [] => Ok(decision),
        [word, ..] => Err(format!("nothing more was expected at `{word}`")),
    }
}

struct Words<'a> {
    rest: &'a [&'a str],
    setup: &'a Setup,
}

impl<'a> Words<'a> {
    /// The next word; empty after the last one.
    fn next(&mut self) -> &'a str {
        let (word, rest) = self.rest.split_first().unwrap_or((&"", &[]));
        self.rest = rest;
        word
    }

    /// Takes the next word if it is this one.
    fn has(&mut self, word: &str) -> bool {
        let has = self.rest.first() == Some(&word);
        if has {
            self.next();
        }
        has
    }

    fn number<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, String> {
        self.next().parse().map_err(|_| format!("expected {what}"))
    }

    fn node(&mut self) -> Result<usize, String> {
        let number: Option<usize> = self.next().parse().ok();
        number.filter(|&n| n < 2).ok_or("expected a node, 0 or 1".into())
    }

    /// `FIRST +COUNT`.
    fn range(&mut self) -> Result<(usize, usize), String> {
        let first: usize = self.number("the first sector")?;
        let count: Option<usize> = self.next().strip_prefix('+').and_then(|count| count.parse().ok());
        let count = count.filter(|&count| count > 0).ok_or("expected `+COUNT` sectors")?;
        let sectors = self.setup.sectors;
        if first.checked_add(count).is_none_or(|end| end > sectors) {
            return Err(format!("outside the volume, which has {sectors} sectors"));
        }
        Ok((first, count))
    }

    /// `for NS`.
    fn length(&mut self) -> Result<u64, String> {
        if !self.has("for") {
            return Err("expected `for` and a number of nanoseconds".into());
        }
        self.number("a number of nanoseconds")
    }

    fn act(&mut self) -> Result<ClientAct, String> {
        let kind = match self.next() {
            "join" => {
                let n = self.node()?;
                return Ok(ClientAct::Join { n, structured: self.has("structured") });
            }
            "leave" => return Ok(ClientAct::Leave),
            "goodbye" => return Ok(ClientAct::Goodbye),
            "mute" => return self.length().map(ClientAct::Mute),
            "deaf" => return self.length().map(ClientAct::Deaf),
            "wrong" => return self.wrong(),
            "flush" => {
                return Ok(ClientAct::Request { kind: RequestKind::Flush, range: (0, 0), fua: false });
            }
            "read" => RequestKind::Read,
            "write" => RequestKind::Write,
            "trim" => RequestKind::Trim,
            "zero" => RequestKind::Zero { no_hole: false },
            "zero-allocate" => RequestKind::Zero { no_hole: true },
            _ => {
                return Err(
                    "expected one of join, leave, goodbye, mute, deaf, wrong, read, write, trim, zero, \
                     zero-allocate, flush"
                        .into(),
                );
            }
        };
        let range = self.range()?;
        Ok(ClientAct::Request { kind, range, fua: kind != RequestKind::Read && self.has("fua") })
    }

    fn wrong(&mut self) -> Result<ClientAct, String> {
        let word = self.next();
        let Some((_, wrong)) = WRONGS.into_iter().find(|(name, _)| *name == word) else {
            return Err(format!("expected one of {}", WRONGS.map(|(name, _)| name).join(", ")));
        };
        Ok(ClientAct::Wrong(wrong))
    }

    fn command(&mut self, n: usize) -> Result<Decision, String> {
        let command = match self.next() {
            "attach" => return Ok(Decision::Attach { n, empty: self.has("empty") }),
            "promote" => {
                let accept_data_loss = self.has("accept-data-loss");
                let peer_is_down = accept_data_loss || self.has("peer-is-down");
                Command::Promote { peer_is_down, accept_data_loss }
            }
            "demote" => Command::Demote { force: self.has("force") },
            "connect" => Command::Connect,
            "disconnect" => Command::Disconnect,
            "resolve" => Command::Resolve { discard: node_id(self.node()?) },
            "invalidate" => Command::Invalidate { peer: false },
            "invalidate-remote" => Command::Invalidate { peer: true },
            "sync" if self.has("pause") => Command::Sync(SyncOrder::Pause),
            "sync" if self.has("resume") => Command::Sync(SyncOrder::Resume),
            "sync" if self.has("unlimited") => Command::Sync(SyncOrder::Rate(None)),
            "sync" if self.has("at-least") => {
                let rate = self.number("bytes per second, or 0")?;
                Command::Sync(SyncOrder::AtLeast(Some(rate).filter(|rate| *rate > 0)))
            }
            "sync" => Command::Sync(SyncOrder::Rate(Some(
                self.number("pause, resume, unlimited, or bytes per second")?,
            ))),
            "detach" => Command::Detach,
            "checkpoint" => self.checkpoint()?,
            "leave" => Command::Leave,
            _ => {
                return Err("expected one of promote, demote, connect, disconnect, resolve, invalidate, \
                     invalidate-remote, sync, detach, attach, checkpoint, leave"
                    .into());
            }
        };
        Ok(Decision::Command(n, command))
    }

    fn checkpoint(&mut self) -> Result<Command, String> {
        let word = self.next();
        let name = CheckpointName::new(self.next()).ok_or("expected the name of a checkpoint")?;
        match word {
            "create" => Ok(Command::CreateCheckpoint { name }),
            "delete" => Ok(Command::DeleteCheckpoint { name }),
            _ => Err("expected `create` or `delete`".into()),
        }
    }

    fn fault(&mut self) -> Result<Fault, String> {
        Ok(match self.next() {
            "kill" => Fault::Strike(self.node()?, Stop::Kill),
            "power" => Fault::Strike(self.node()?, Stop::Power),
            "aim" => Fault::Aim(self.aim()?),
            "pause" => Fault::Pause { n: self.node()?, ns: self.length()? },
            "reset" => Fault::Reset,
            "silence" if self.has("both") => Fault::Silence { from: [true; 2], ns: self.length()? },
            "silence" => {
                let n = self.node()?;
                Fault::Silence { from: [n == 0, n == 1], ns: self.length()? }
            }
            "refuse" => Fault::Refuse { ns: self.length()? },
            "take-image" => Fault::TakeImage(self.node()?),
            "restore-image" => Fault::RestoreImage(self.node()?),
            "unreadable" => Fault::Unreadable(self.node()?, self.range()?),
            "hang" => Fault::Hang { n: self.node()?, ns: self.length()? },
            "trouble" => self.trouble()?,
            "flip" => Fault::Flip,
            "stranger" => Fault::Stranger { ns: self.length()? },
            "rot" => Fault::Rot { n: self.node()?, bit: self.number("the number of a bit")? },
            "wall-clock" => {
                let n = self.node()?;
                let forward = match self.next() {
                    "forward" => true,
                    "back" => false,
                    _ => return Err("expected `forward` or `back`".into()),
                };
                Fault::WallClock { n, forward, ms: self.number("a number of milliseconds")? }
            }
            _ => {
                return Err("expected one of kill, power, aim, pause, reset, silence, refuse, take-image, \
                     restore-image, unreadable, hang, trouble, flip, stranger, rot, wall-clock"
                    .into());
            }
        })
    }

    fn aim(&mut self) -> Result<Aim, String> {
        let (n, code) = (self.node()?, self.number("the number of an action")?);
        let how = match self.next() {
            "kill" => Stop::Kill,
            "power" => Stop::Power,
            _ => return Err("expected `kill` or `power`".into()),
        };
        let when = match self.next() {
            "before" => When::Before,
            "at-once" => When::AtOnce,
            "after" => When::After(self.number("a number of nanoseconds")?),
            _ => return Err("expected `before`, `at-once` or `after NS`".into()),
        };
        Ok(Aim { n, code, how, when })
    }

    fn trouble(&mut self) -> Result<Fault, String> {
        let n = self.node()?;
        if self.has("sectors") {
            let sectors = self.next().split(',').map(str::parse);
            let sectors = sectors.collect::<Result<_, _>>().map_err(|_| "expected sectors like `1,2,3`")?;
            return Ok(Fault::Trouble {
                n,
                what: Ailment::Sectors(sectors),
                per_mille: 0,
                ns: self.length()?,
            });
        }
        let word = self.next();
        let Some((_, what)) = AILMENTS.into_iter().find(|(name, _)| *name == word) else {
            let names: Vec<&str> = AILMENTS.iter().map(|(name, _)| *name).collect();
            return Err(format!("expected one of {}, sectors", names.join(", ")));
        };
        let per_mille = self.number("how many of a thousand")?;
        Ok(Fault::Trouble { n, what, per_mille, ns: self.length()? })
    }
}
