//! Questions for block status: answered at once, from what the core and the disk know, without a request in the core.
//!
//! An answer is small, and a client whose answers wait to be sent gets no further one: what it does not read costs
//! no more than [`WAITING_BYTES_MAX`] and one answer.

use lockstep_core::{ExportState, Node};
use lockstep_nbd::{CONTEXTS_MAX, EXTENTS_MAX, Extents, NbdError, ReplyTo, put_status};

use super::Shard;
use super::requests::Next;
use crate::disk::Disk;
use crate::nbd::{NotComplete, Phase, Serving};

/// Answers that may wait to be sent when a question is answered.
const WAITING_BYTES_MAX: usize = 32 << 10;
/// Memory of such answers to one client.
pub(crate) const STATUS_MEMORY_BYTES: usize = WAITING_BYTES_MAX + CONTEXTS_MAX * (EXTENTS_MAX * 16 + 40);

impl Shard {
    pub(super) fn admit_status(
        &mut self,
        index: u32,
        consumed: usize,
        request: &lockstep_nbd::Request,
    ) -> Next {
        let Self { clients, resources, scratch, .. } = self;
        let Some(client) = clients.get_mut(index) else { return Next::Wait };
        if client.outbox.waiting_head_bytes() > WAITING_BYTES_MAX {
            client.starved = true;
            return Next::Wait;
        }
        let Phase::Serving(serving) = &client.phase else { return Next::Wait };
        let entry = &resources[usize::from(serving.resource)];
        let to = ReplyTo::new(serving.framing, request);
        scratch.clear();
        match entry.node.as_ref().filter(|node| node.export() == ExportState::Open) {
            Some(node) => {
                let disk = entry.storage.disk.as_ref();
                if describe_all(request, &to, serving, (node, disk), scratch).is_err() {
                    scratch.clear();
                    let why = "the checkpoint is not complete any more, or gone";
                    let refusal = to.result(request.command, Err(NbdError::Io), why);
                    scratch.extend_from_slice(refusal.as_bytes());
                }
            }
            None => {
                let refusal = to.result(request.command, Err(NbdError::Shutdown), "the export is closed");
                scratch.extend_from_slice(refusal.as_bytes());
            }
        }
        client.inbox.consume(consumed);
        client.unsent += 1;
        let answer = std::mem::take(&mut self.scratch);
        self.answer(index, &answer);
        self.scratch = answer;
        Next::Again
    }
}

/// Appends one chunk for each context that is asked about.
fn describe_all(
    request: &lockstep_nbd::Request,
    to: &ReplyTo,
    serving: &Serving,
    (node, disk): (&Node, Option<&Disk>),
    out: &mut Vec<u8>,
) -> Result<(), NotComplete> {
    let mut extents = Extents::new(request.length, request.req_one);
    let mut left = request.contexts.positions().count();
    for position in request.contexts.positions() {
        let context = serving.contexts.get(position).copied().flatten().ok_or(NotComplete)?;
        extents.restart(request.length, request.req_one);
        context.describe(node, disk, request.offset, &mut extents)?;
        left -= 1;
        put_status(to, position, &extents, left == 0, out);
    }
    Ok(())
}
