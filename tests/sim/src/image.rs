//! Images: data and metadata of a machine as they were at a moment, put back later as if nothing had happened since.
//!
//! Only what the guarantees speak of: the machine has met the other one since the image was taken (a session lies
//! between), and the other copy is whole and lacks nothing that was acknowledged. The restored machine cannot know
//! what it is until it meets the other one, so the operator promotes nobody there before.

use crate::host::{Host, Stop};
use crate::world::World;
use lockstep_bitmap::{PeerCopy, Store};
use lockstep_core::Command;

/// What an image holds.
pub(crate) struct Image {
    tags: Vec<u64>,
    meta: Vec<u8>,
    session_offered: u64,
}

impl World {
    /// Takes an image of a machine, running or not.
    pub(crate) fn take_image(&mut self, n: usize) {
        if self.hosts[n].restored {
            return;
        }
        // One without a generation is as good as a new disk, which waits for a source that knows what it is.
        let found = self.recovered(n).ok().filter(|(store, _)| store.superblock.log.current().is_some());
        if let Some((store, _)) = found {
            self.say(format_args!("n{n} IMAGE taken"));
            let session_offered = store.superblock.peers[0].session_offered;
            let tags = self.hosts[n].disk.visible().to_vec();
            let meta = self.hosts[n].meta.bytes().to_vec();
            self.hosts[n].image = Some(Image { tags, meta, session_offered });
        }
    }

    /// Puts back the image of a machine, if there is one and the guarantees speak of that.
    pub(crate) fn restore_image(&mut self, n: usize) {
        self.power_off(n);
        let (Ok((mine, _)), Ok((theirs, _))) = (self.recovered(n), self.recovered(1 - n)) else { return };
        let Some(image) = self.hosts[n].image.take_if(|image| is_spare(image, &mine, &theirs)) else {
            return;
        };
        if self.hosts[1 - n].restored || self.hosts[1 - n].declared_wrong {
            return;
        }
        // Nor while somebody waits for a promotion of the other one, which may come to have no disk.
        let waits = |host: &Host| {
            host.commands.values().any(|asked| matches!(asked.command, Command::Promote { .. }))
        };
        if self.setup.faults.disk && waits(&self.hosts[1 - n]) {
            return;
        }
        self.say(format_args!("n{n} IMAGE restored"));
        self.hosts[n].disk.put(image.tags);
        self.hosts[n].meta.put(0, &image.meta);
        (self.hosts[n].restored, self.hosts[n].declared_wrong) = (true, true);
        self.hosts[n].stopped = Stop::Power;
        // Whatever it held is as good as lost with power.
        let seq = self.next_seq();
        (self.failures.power[n], self.failures.unclean[n]) = (seq, seq);
        let known = |log: &lockstep_bitmap::GenerationLog| log.current().map(|generation| generation.id);
        let image_now = self.recovered(n).ok().and_then(|(store, _)| known(&store.superblock.log));
        // A history that the other one gave up comes back.
        self.split_allowed |= image_now.is_some_and(|id| !theirs.superblock.log.contains(id));
    }
}

/// The session gap is there to be found, and this copy is not the only one of anything.
fn is_spare(image: &Image, mine: &Store, theirs: &Store) -> bool {
    let (mine, theirs) = (&mine.superblock, &theirs.superblock);
    let gap = image.session_offered < theirs.peers[0].session_used;
    let other_is_whole = theirs.inconsistent.is_none() && theirs.log.current().is_some();
    let holds_all = mine.peers[0].copy == PeerCopy::MayHold
        && mine.log.current().is_none_or(|generation| theirs.log.contains(generation.id));
    gap && other_is_whole && holds_all
}
