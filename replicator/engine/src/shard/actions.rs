//! Feeding a core one event, and executing what it answers.

use lockstep_core::{
    Action, CommandId, DiskError, Done, Event, ExportState, Frame, LinkId, LinkLoss, Notice, Refusal, SlotId,
};

use super::Shard;
use super::resource::Stage;
use crate::disk;
use crate::link::Phase;
use crate::slots::Span;

impl Shard {
    /// One event, then all actions. Slots in the event were given to the core before. A core that is gone
    /// gives its slots back.
    pub(super) fn feed(&mut self, resource: usize, event: Event<'_>) {
        let now = self.clock.now();
        let Some(node) = &mut self.resources[resource].node else {
            if let Event::Payload { slot, .. }
            | Event::DiskDone { slot: Some(slot), .. }
            | Event::DiskInspected { slot: Some(slot), .. }
            | Event::Frame { slot: Some(slot), .. } = event
            {
                self.release_from_core(slot);
            }
            return;
        };
        node.handle(now, event);
        self.run_actions(resource);
    }

    /// Executes what the core asks for.
    pub(super) fn run_actions(&mut self, resource: usize) {
        self.resources[resource].deadline = None;
        while let Some(action) = self.resources[resource].node.as_mut().and_then(|node| node.poll_action()) {
            self.execute(resource, action);
        }
    }

    fn execute(&mut self, resource: usize, action: Action) {
        let Self { io: Some(io), resources, scratch, .. } = self else { return };
        let entry = &mut resources[resource];
        match action {
            Action::DiskRead { op, req, offset, len } => {
                let target = req.and_then(|req| entry.requests.get(req.0)?.slot_at(offset));
                assert!(
                    target.is_some() || req.is_none(),
                    "a read for a request that has no slot at {offset}"
                );
                entry.storage.read(io, op, offset, len, target);
            }
            Action::DiskInspect { op, offset, len, digests } => {
                entry.storage.inspect(io, op, offset, len, digests.then_some(entry.digest_key));
            }
            Action::DiskFill { op, slot, offset, len, granule_bytes } => {
                entry.storage.fill(io, op, (slot, offset, len), granule_bytes);
            }
            Action::DiskWrite { op, offset, len, slot, fua } => {
                entry.storage.write(io, op, offset, len, slot, fua)
            }
            Action::DiskZero { op, offset, len, punch, fua } => {
                entry.storage.zero(io, op, offset, len, punch, fua)
            }
            Action::DiskFlush { op } => entry.storage.flush(io, op),
            Action::MetaWrite { op, page } => {
                let Some(node) = &mut entry.node else { return };
                entry.storage.write_meta(io, op, |bytes| node.render_meta(page, bytes));
            }
            Action::Send { link, frame, slot } => {
                scratch.clear();
                if frame.has_control_body()
                    && let Some(node) = &mut entry.node
                {
                    node.render_body(&frame, scratch);
                }
                self.send(resource, link, &frame, slot);
            }
            Action::RecordFailure { op, record } => {
                let path = &self.config.resources[resource].failed_record;
                let recorded = disk::failed::record(path, &record);
                if let Err(error) = &recorded {
                    tracing::error!(
                        "{}: cannot write {}: {error}. Nothing records now that this copy failed: replace its disk, \
                         or reboot this machine, before the daemon is started again",
                        entry.name,
                        path.display()
                    );
                }
                let result = recorded.map_err(|_| DiskError::Io);
                entry.events.push_back(Event::MetaDone { op, result });
            }
            Action::CloseDisk { op } => entry.storage.close(op),
            Action::Dial => self.dial(resource),
            Action::CloseLink { link, reason } => {
                tracing::debug!("{}: closing link {link}: {reason:?}", entry.name);
                self.close_link(resource, link);
            }
            Action::Supply { req, offset, len, slot } => {
                let target = entry.requests.get(req.0).and_then(|request| request.slot_at(offset));
                if let Some((own, first)) = target {
                    let target = Span::of_volume_from(own, first, offset, len);
                    io.arena().copy(Span::of_volume(slot, offset, len), target);
                }
                self.release_from_core(slot);
            }
            Action::ReleaseSlot { slot } => self.release_from_core(slot),
            Action::Reply { req, result, at } => self.reply(resource, req.0, result, at),
            Action::Export { state } => {
                self.exports_changed = true;
                if state == ExportState::Open {
                    let entry = &mut self.resources[resource];
                    entry.opened_in = entry.node.as_ref().map(|node| node.status().term);
                } else {
                    self.close_clients(resource);
                }
            }
            Action::CommandDone { id, result } => self.command_done(resource, id, result),
            Action::Notice(notice) => self.log(resource, notice),
        }
    }

    fn release_from_core(&mut self, slot: SlotId) {
        let arena = self.io().arena();
        arena.take_from_core(slot);
        arena.release(slot);
    }

    fn send(&mut self, resource: usize, id: LinkId, frame: &Frame, slot: Option<SlotId>) {
        let Self { io: Some(io), resources, links, scratch, .. } = self else { return };
        let link = resources[resource].link.and_then(|index| links.get_mut(index));
        let Some(link) = link.filter(|link| matches!(link.phase, Phase::Up(up) if up == id)) else { return };
        let payload =
            frame.payload().zip(slot).map(|((offset, len), slot)| io.arena().span(slot, offset, len));
        if let Some(payload) = payload {
            io.arena().retain(payload.slot);
        }
        link.queue(io.arena(), frame, scratch, payload);
    }

    pub(super) fn command_done(&mut self, resource: usize, id: CommandId, result: Result<Done, Refusal>) {
        let entry = &mut self.resources[resource];
        if entry.leaving == Some(id) {
            entry.leaving = None;
            match result {
                Ok(_) => self.left(resource, result),
                Err(refusal) => tracing::debug!("{}: leaving: {refusal}; asking again", entry.name),
            }
            return;
        }
        let Some(position) = entry.commands.iter().position(|(waiting, _)| *waiting == id) else { return };
        let (_, reply) = entry.commands.swap_remove(position);
        reply(result);
    }

    /// The core has left: nothing runs afterwards but what is on its way.
    pub(super) fn left(&mut self, resource: usize, result: Result<Done, Refusal>) {
        let since = match self.resources[resource].stage {
            Stage::Leaving { since } => since,
            _ => self.clock.now(),
        };
        self.resources[resource].stage = Stage::Closing { since, result };
        self.want_sweep();
    }

    /// One line per change.
    fn log(&mut self, resource: usize, notice: Notice) {
        let entry = &self.resources[resource];
        let (name, node) = (&entry.name, &self.config.node_name);
        let why = || entry.link_error.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        match notice {
            Notice::Role { old, new } => tracing::info!("{name} {node}: role {old} -> {new}"),
            Notice::Disk { old, new } => tracing::info!("{name} {node}: disk {old} -> {new}"),
            Notice::Connection { old, new } => {
                tracing::info!("{name} {node}: connection {old} -> {new}{}", why())
            }
            Notice::Replication { old, new } => tracing::info!("{name} {node}: replication {old} -> {new}"),
            // It repeats with every dial; the reason is in the report.
            Notice::LinkLost { loss: loss @ LinkLoss::Unreachable } => {
                tracing::debug!("{name} {node}: {loss:?}")
            }
            Notice::LinkLost { loss } => tracing::info!("{name} {node}: link lost: {loss:?}{}", why()),
            Notice::Closing { reason } => tracing::info!("{name} {node}: closing the link: {reason:?}"),
            Notice::Generation { id, ordinal } => {
                tracing::info!("{name} {node}: generation {ordinal} ({id})")
            }
            Notice::SplitBrain => tracing::error!("{name} {node}: split brain: both copies were written"),
            Notice::DiskFailed { what, offset, error } => {
                tracing::error!("{name} {node}: disk: {what:?} failed at byte {offset}: {error:?}");
            }
            other => tracing::warn!("{name} {node}: {other:?}"),
        }
    }
}
