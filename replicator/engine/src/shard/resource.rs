//! One resource on this shard: its core, its disks, its requests, and where it stands between up and down.

use std::collections::VecDeque;

use lockstep_core::{CommandId, Event, Node, Role, SlotId, Status};

use crate::attach::Attached;
use crate::config::{Limits, ResourceConfig};
use crate::disk::Storage;
use crate::error::AttachError;
use crate::handle::{CommandReply, UpReply};
use crate::nbd::Request;
use crate::slab::Slab;
use crate::slots::{LARGE_BYTES, PoolId, PoolSize, SMALL_BYTES};
use lockstep_core::{Done, Instant, Refusal};

use super::turns::Turns;

/// Pools of one resource. They are apart, so that what one kind of traffic holds never stops another that
/// must move for the first to end; and no resource waits for another's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pools {
    /// Payloads of clients' writes.
    pub(crate) write: PoolId,
    /// Clients' reads; a part of a read has all its slots before it begins.
    pub(crate) read: PoolId,
    /// Payloads from the peer.
    pub(crate) receive: PoolId,
    /// Reads for the peer, and scratch.
    pub(crate) serve: PoolId,
}

impl Pools {
    /// Number of pools.
    pub(crate) const COUNT: u16 = 4;

    /// Of the resource with this index.
    pub(crate) fn of(index: u16) -> Self {
        let first = index * Self::COUNT;
        let pool = |nth| PoolId(first + nth);
        Self { write: pool(0), read: pool(1), receive: pool(2), serve: pool(3) }
    }

    /// All of them.
    pub(crate) fn all(self) -> [PoolId; 4] {
        [self.write, self.read, self.receive, self.serve]
    }

    /// Sizes in the order of `all`, for this much memory.
    pub(crate) fn sizes(buffer_bytes: u64) -> [PoolSize; 4] {
        // One of 128 KiB for each of 128 clients, and as much again and more to be shared.
        let read = PoolSize { small: 512, large: 288 };
        let rest = (buffer_bytes.max(Limits::BUFFER_BYTES_MIN) as usize).saturating_sub(read.bytes());
        let share = |percent: usize| {
            let bytes = rest / 100 * percent;
            let small = bytes / 5 / SMALL_BYTES;
            PoolSize { small: small as u32, large: (bytes / 5 * 4 / LARGE_BYTES) as u32 }
        };
        // What one end may send the other end must be able to take: receiving gets a little more than
        // writing.
        [share(40), read, share(45), share(15)]
    }
}

/// Between up and down.
pub(crate) enum Stage {
    /// The core runs.
    Up,
    /// The core was told to leave.
    Leaving { since: Instant },
    /// The core is done; the last disk operations end. Its leaving began at `since`.
    Closing { since: Instant, result: Result<Done, Refusal> },
    /// Nothing runs.
    Down,
}

/// One resource.
pub(crate) struct Resource {
    pub(crate) name: String,
    pub(crate) node: Option<Node>,
    pub(crate) stage: Stage,
    /// The core's command to leave, while it is under way.
    pub(crate) leaving: Option<CommandId>,
    /// Who waits for it to be down.
    pub(crate) down_replies: Vec<CommandReply>,
    /// Disks to run with as soon as it is down.
    pub(crate) restart: Option<(Box<Result<Attached, AttachError>>, UpReply)>,
    pub(crate) storage: Storage,
    pub(crate) pools: Pools,
    pub(crate) requests: Slab<Request>,
    /// Clients that wait until fewer requests are under way.
    pub(crate) request_turns: Turns,
    /// Clients that wait for slots to read into.
    pub(crate) read_turns: Turns,
    /// Clients that wait for slots for what they write.
    pub(crate) write_turns: Turns,
    /// Large slots to read into.
    pub(crate) read_slots_large: usize,
    /// Lists of slots that are not in use, to be used again.
    pub(crate) spare_lists: Vec<Vec<SlotId>>,
    /// Events made while the core's actions were executed.
    pub(crate) events: VecDeque<Event<'static>>,
    /// When the core wants a tick; `None`: it has changed since this was asked.
    pub(crate) deadline: Option<Option<Instant>>,
    /// Its connection to the peer, if one is up.
    pub(crate) link: Option<u32>,
    /// Key of the digests that are compared over that connection.
    pub(crate) digest_key: [u8; 32],
    pub(crate) commands: Vec<(CommandId, CommandReply)>,
    pub(crate) next_command: u32,
    /// Clients the core was told of.
    pub(crate) clients: u32,
    /// In which term this daemon opened the export last.
    pub(crate) opened_in: Option<u64>,
    /// Why there is no disk.
    pub(crate) error: Option<String>,
    /// Why there is no link.
    pub(crate) link_error: Option<String>,
    /// Memory of its pools in bytes.
    pub(crate) reserved_bytes: u64,
    /// Memory of its bitmaps at most, in bytes.
    pub(crate) bitmaps_bytes: u64,
    pub(crate) slots: u32,
}

impl Resource {
    /// When the core wants a tick. Every turn of the shard asks this of every resource, most of which have done nothing
    /// since the last one.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let node = &self.node;
        let ask = || node.as_ref().and_then(|node| node.next_deadline()).map(|deadline| deadline.at);
        *self.deadline.get_or_insert_with(ask)
    }

    /// A resource that is down.
    pub(crate) fn new(index: u16, config: &ResourceConfig) -> Self {
        let pools = Pools::of(index);
        let sizes = Pools::sizes(config.buffer_bytes);
        Self {
            name: config.name.clone(),
            node: None,
            deadline: None,
            stage: Stage::Down,
            leaving: None,
            down_replies: Vec::new(),
            restart: None,
            storage: Storage::new(index, &config.name, pools.serve),
            pools,
            requests: Slab::with_capacity(1024),
            request_turns: Turns::default(),
            read_turns: Turns::default(),
            write_turns: Turns::default(),
            read_slots_large: sizes[1].large as usize,
            spare_lists: Vec::new(),
            events: VecDeque::with_capacity(64),
            link: None,
            digest_key: [0; 32],
            commands: Vec::new(),
            next_command: 1,
            clients: 0,
            opened_in: None,
            error: None,
            link_error: None,
            bitmaps_bytes: 0,
            reserved_bytes: sizes.iter().map(|size| size.bytes() as u64).sum(),
            slots: sizes.iter().map(|size| size.small + size.large).sum(),
        }
    }

    /// Keeps a callback until the core answers.
    pub(crate) fn add_command(&mut self, reply: CommandReply) -> CommandId {
        let id = self.command_id();
        self.commands.push((id, reply));
        id
    }

    /// Whether clients belong to the other node: it is Primary, or this node was the last one and was demoted, so that
    /// their address is about to move. Kept waiting here, they would miss it.
    pub(crate) fn is_elsewhere(&self, status: &Status) -> bool {
        let peer_is_primary = status.peers.iter().any(|peer| peer.role == Some(Role::Primary));
        peer_is_primary || (status.role == Role::Secondary && self.opened_in == Some(status.term))
    }

    /// Number of a command to leave; `None` while one is under way.
    pub(crate) fn leave_command(&mut self) -> Option<CommandId> {
        if self.leaving.is_none() {
            self.leaving = Some(self.command_id());
            return self.leaving;
        }
        None
    }

    fn command_id(&mut self) -> CommandId {
        self.next_command = self.next_command.wrapping_add(1);
        CommandId(self.next_command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_memory_holds_the_largest_read() {
        let sizes = Pools::sizes(0);
        assert!(sizes[1].large >= 257);
        assert!(sizes.iter().all(|size| size.large >= 16 && size.small >= 64), "{sizes:?}");
        let total: usize = sizes.iter().map(|size| size.bytes()).sum();
        assert!(total as u64 <= Limits::BUFFER_BYTES_MIN);
        assert!(Pools::sizes(Limits::BUFFER_BYTES)[0].large > sizes[0].large);
    }
}
