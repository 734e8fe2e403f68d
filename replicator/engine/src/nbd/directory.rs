//! The exports of this node, as they are at the moment a client asks, and as far as it may know of them.
//!
//! Which exports there are, and who may open them, every shard knows; the rest only the shard of an export. A client
//! that names one of another shard is told to wait, and whoever holds the client takes it there.

use lockstep_core::{ExportState, Role};
use lockstep_nbd::{BlockSizes, ExportDirectory, ExportInfo, Lookup};

use super::REQUEST_BYTES_MAX;
use crate::access::Admission;
use crate::fleet::ShardId;

/// One resource as clients may see it.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    pub(crate) name: String,
    /// Who can answer for it, if that is another shard: all of this but name and admission is unknown then.
    pub(crate) other_shard: Option<ShardId>,
    /// `None`: the resource is down.
    pub(crate) state: Option<(ExportState, Role)>,
    /// The peer is Primary, or its promotion is what comes next: whoever comes here is at the wrong address.
    pub(crate) is_elsewhere: bool,
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    /// Whether this client may open it.
    pub(crate) admission: Admission,
    /// Name of the peer, for advice.
    pub(crate) peer: Option<String>,
    /// A zeroed range may cost no more than a note of the file system.
    pub(crate) fast_zero: bool,
    pub(crate) is_rotational: bool,
    /// How its copies are, for people.
    pub(crate) condition: String,
    /// What can be asked about its ranges.
    pub(crate) contexts: Vec<String>,
}

/// All resources.
pub(crate) struct Directory {
    pub(crate) exports: Vec<Export>,
    pub(crate) node_name: String,
    /// The client, for the log.
    pub(crate) client: String,
    /// Whether a client may be kept waiting for a role change: it has not waited too long, and not too many
    /// do.
    pub(crate) may_hold: bool,
    /// Whether the daemon goes down.
    pub(crate) is_stopping: bool,
}

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<String> {
        let granted = |export: &&Export| export.admission == Admission::Granted;
        self.exports.iter().filter(granted).map(|export| export.name.clone()).collect()
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    fn find(&self, name: &str) -> Lookup {
        let Some(export) = self.export(name) else { return Lookup::Unknown };
        match &export.admission {
            Admission::Granted => {}
            Admission::NeedsTls => {
                tracing::info!("{}: client {} may not open it without TLS", export.name, self.client);
                return Lookup::TlsRequired;
            }
            Admission::Denied(why) => {
                tracing::info!("{}: client {} may not open it: {why}", export.name, self.client);
                return Lookup::Unknown;
            }
        }
        if export.other_shard.is_some() {
            return Lookup::NotReady;
        }
        match export.state {
            Some((ExportState::Open, _)) if export.size_bytes > 0 => Lookup::Found(self.info(export)),
            Some((state, _)) if self.may_hold && export.is_about_to_open(state) => Lookup::NotReady,
            _ => Lookup::Refused { reason: self.reason(export) },
        }
    }
}

impl Export {
    /// One that another shard knows.
    pub(crate) fn of_shard(shard: ShardId, name: String, admission: Admission) -> Self {
        Self {
            name,
            other_shard: Some(shard),
            state: None,
            is_elsewhere: false,
            size_bytes: 0,
            read_only: false,
            admission,
            peer: None,
            fast_zero: false,
            is_rotational: false,
            condition: String::new(),
            contexts: Vec::new(),
        }
    }

    /// A promotion is under way, or nobody is known to be Primary: the gap of every take-over, after the restart of a
    /// Primary's daemon or the death of the other node. A client that came back too early waits it out here; refused,
    /// it would back off for longer than the gap, or give up.
    fn is_about_to_open(&self, state: ExportState) -> bool {
        match state {
            ExportState::Hold => true,
            ExportState::Closed => !self.is_elsewhere,
            ExportState::Open => false,
        }
    }
}

impl Directory {
    /// The other shard that answers for the export that a client named.
    pub(crate) fn other_shard(&self, name: &str) -> Option<ShardId> {
        self.export(name)?.other_shard
    }

    /// The empty name means the only export of which this client may know.
    fn export(&self, name: &str) -> Option<&Export> {
        let mut candidates = self.exports.iter().filter(|export| match name {
            "" => !matches!(export.admission, Admission::Denied(_)),
            name => export.name == name,
        });
        let found = candidates.next()?;
        candidates.next().is_none().then_some(found)
    }

    fn info(&self, export: &Export) -> ExportInfo {
        ExportInfo {
            name: export.name.clone(),
            description: format!("{} on {}{}", export.name, self.node_name, export.condition),
            size_bytes: export.size_bytes,
            read_only: export.read_only,
            block: BlockSizes { min: 1, preferred: 4096, max: REQUEST_BYTES_MAX },
            rotational: export.is_rotational,
            multi_conn: true,
            fast_zero: export.fast_zero,
            contexts: export.contexts.clone(),
        }
    }

    fn reason(&self, export: &Export) -> String {
        let (name, node) = (&export.name, &self.node_name);
        match export.state {
            None => format!("{name} is down on {node}; bring it up: lockstep up {name}"),
            Some((ExportState::Hold, _)) => format!("{name} is changing its role on {node}; try again"),
            Some((ExportState::Open, _)) => format!("{name} has no size yet on {node}; try again"),
            Some((ExportState::Closed, role)) => {
                let peer = export.peer.as_deref();
                let elsewhere = peer.map(|peer| format!(", or connect to {peer}")).unwrap_or_default();
                format!("{name} is {role} on {node}; promote it: lockstep promote {name}{elsewhere}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(states: &[Option<(ExportState, Role)>]) -> Directory {
        let export = |(index, state): (usize, &Option<_>)| Export {
            name: format!("r{index}"),
            other_shard: None,
            state: *state,
            is_elsewhere: true,
            size_bytes: 1 << 20,
            read_only: false,
            admission: Admission::Granted,
            peer: Some("beta".into()),
            fast_zero: true,
            is_rotational: false,
            condition: String::new(),
            contexts: Vec::new(),
        };
        Directory {
            exports: states.iter().enumerate().map(export).collect(),
            node_name: "alpha".into(),
            client: "a test".into(),
            may_hold: true,
            is_stopping: false,
        }
    }

    const OPEN: Option<(ExportState, Role)> = Some((ExportState::Open, Role::Primary));
    const CLOSED: Option<(ExportState, Role)> = Some((ExportState::Closed, Role::Secondary));

    #[test]
    fn the_empty_name_means_the_only_export() {
        assert!(matches!(directory(&[OPEN]).find(""), Lookup::Found(info) if info.name == "r0"));
        assert_eq!(directory(&[OPEN, OPEN]).find(""), Lookup::Unknown);
        assert!(matches!(directory(&[CLOSED, OPEN]).find("r1"), Lookup::Found(_)));
        assert_eq!(directory(&[OPEN]).find("r9"), Lookup::Unknown);
    }

    #[test]
    fn what_a_client_may_not_open_does_not_exist_for_it() {
        let mut directory = directory(&[OPEN, OPEN, CLOSED]);
        directory.exports[1].admission = Admission::Denied("it may not".into());
        directory.exports[2].admission = Admission::Denied("it may not".into());
        assert_eq!(directory.list(), ["r0"]);
        assert!(matches!(directory.find("r0"), Lookup::Found(_)));
        assert_eq!(directory.find("r1"), Lookup::Unknown);
        assert_eq!(directory.find("r2"), Lookup::Unknown, "nor is its state told");
        assert!(matches!(directory.find(""), Lookup::Found(info) if info.name == "r0"));
        directory.exports[2].admission = Admission::NeedsTls;
        assert_eq!(directory.list(), ["r0"]);
        assert_eq!(directory.find("r2"), Lookup::TlsRequired);
        assert_eq!(directory.find(""), Lookup::Unknown, "there are two of which it may know");
        directory.exports[0].admission = Admission::Denied("it may not".into());
        assert_eq!(directory.find(""), Lookup::TlsRequired);
    }

    #[test]
    fn a_refusal_says_why_and_what_to_type() {
        let Lookup::Refused { reason } = directory(&[CLOSED]).find("r0") else { panic!() };
        assert_eq!(reason, "r0 is Secondary on alpha; promote it: lockstep promote r0, or connect to beta");
        let Lookup::Refused { reason } = directory(&[None]).find("r0") else { panic!() };
        assert!(reason.contains("lockstep up r0"), "{reason}");
    }

    #[test]
    fn what_another_shard_serves_is_asked_there() {
        let mut directory = directory(&[OPEN]);
        let other = |name: &str, admission| Export::of_shard(ShardId(1), name.into(), admission);
        directory.exports.push(other("r1", Admission::Granted));
        directory.exports.push(other("r2", Admission::NeedsTls));
        directory.exports.push(other("r3", Admission::Denied("it may not".into())));
        directory.may_hold = false;
        assert_eq!(directory.list(), ["r0", "r1"]);
        assert_eq!((directory.find("r1"), directory.other_shard("r1")), (Lookup::NotReady, Some(ShardId(1))));
        assert!(matches!(directory.find("r0"), Lookup::Found(_)));
        assert_eq!(directory.other_shard("r0"), None);
        // What a client may not open it need not move for.
        assert_eq!(directory.find("r2"), Lookup::TlsRequired);
        assert_eq!(directory.find("r3"), Lookup::Unknown);
        assert_eq!(directory.find(""), Lookup::Unknown, "there are several of which it may know");
        directory.exports.remove(0);
        directory.exports.remove(1);
        assert_eq!((directory.find(""), directory.other_shard("")), (Lookup::NotReady, Some(ShardId(1))));
    }

    #[test]
    fn a_role_change_holds_the_client_while_there_is_room() {
        let mut directory = directory(&[Some((ExportState::Hold, Role::Secondary))]);
        assert_eq!(directory.find("r0"), Lookup::NotReady);
        directory.may_hold = false;
        assert!(matches!(directory.find("r0"), Lookup::Refused { .. }));
    }
}
