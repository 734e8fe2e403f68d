//! Golden texts of `status`, and the stable names of its JSON.

use super::*;
use lockstep_bitmap::{Generation, GenerationId, NodeId, Origin};
use lockstep_core::{
    ConnectionState, DiskState, Moved, PeerStatus, ReplicationState, ResyncStatus, Role, Status,
};
use lockstep_engine::{ClientInfo, MemoryReport, ResourceReport};
use std::time::{Duration, UNIX_EPOCH};

const NOW_UNIX_MS: u64 = 1_767_264_000_000; // 2026-01-01T10:40:00Z

fn place() -> Place {
    Place {
        names: vec!["alpha".to_owned(), "beta".to_owned()],
        node: 0,
        addresses: vec!["10.0.0.1:7800".to_owned(), "10.0.0.2:7800".to_owned()],
        uris: vec![vec!["nbd+unix:///{}?socket=/s".to_owned()], vec!["nbd://10.0.0.2:10809/{}".to_owned()]],
    }
}

fn peer() -> PeerStatus {
    PeerStatus {
        node: NodeId(1),
        connection: ConnectionState::Connected,
        replication: ReplicationState::Established,
        role: Some(Role::Secondary),
        disk: Some(DiskState::UpToDate),
        out_of_sync_bytes: 0,
        resync: None,
        resynced_bytes_total: 0,
        alone_since_unix_ms: None,
        peer_alone_since_unix_ms: None,
        peer_out_of_sync_bytes: None,
        since_ms: 60_000,
    }
}

fn status(peer: PeerStatus) -> Status {
    Status {
        node: NodeId(0),
        role: Role::Primary,
        disk: DiskState::UpToDate,
        generation: Some(Generation {
            id: GenerationId(0xab << 120),
            ordinal: 7,
            parent: None,
            node: NodeId(0),
            began_unix_ms: 0,
            origin: Origin::Created,
        }),
        term: 3,
        unclean: false,
        changing_role: false,
        suspended: false,
        sync_paused: false,
        sync_rate: None,
        sync_least: None,
        protected: false,
        clients: 0,
        requests: 2,
        hot_regions: 1,
        hot_regions_max: 16,
        size_bytes: 11 << 30,
        undurable_writes: 0,
        peers: vec![peer],
        checkpoints: Vec::new(),
        next_deadline: Some("heartbeat"),
    }
}

fn report(status: Option<Status>) -> ResourceReport {
    ResourceReport {
        name: "r0".to_owned(),
        status,
        error: None,
        clients: Vec::new(),
        disk: "/dev/vdb".into(),
        disk_mode: None,
        meta: "/var/lib/lockstep/r0.0.meta".into(),
        nbd_uris: Vec::new(),
        peer: None,
        memory: MemoryReport::default(),
        link_error: None,
    }
}

fn text(report: &ResourceReport) -> String {
    let doc = StatusDoc {
        schema: SCHEMA,
        version: "0".to_owned(),
        cluster: "c".to_owned(),
        node: "alpha".to_owned(),
        resources: vec![resource_doc(report, &place(), NOW_UNIX_MS)],
    };
    let json = serde_json::to_string(&doc).unwrap();
    assert_eq!(serde_json::from_str::<StatusDoc>(&json).unwrap(), doc, "the document survives the wire");
    render(&doc)
}

fn lines(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn protected() {
    let mut report = report(Some(Status { protected: true, ..status(peer()) }));
    let since = UNIX_EPOCH + Duration::from_secs(1);
    report.clients = ["10.0.0.9:4", "/s pid 12"]
        .map(|addr| ClientInfo { addr: addr.to_owned(), export: "r0".to_owned(), since })
        .to_vec();
    assert_eq!(
        text(&report),
        lines(&[
            "r0  Primary on alpha   generation 7   PROTECTED",
            concat!(
                "  alpha (this node)  Primary    UpToDate       clients 2 (10.0.0.9:4, /s pid 12)",
                "   held I/O 0   11 GiB"
            ),
            concat!(
                "  beta               Secondary  UpToDate       Connected Established",
                "   since 2026-01-01 10:39:00 UTC"
            ),
        ])
    );
}

#[test]
fn memory() {
    let mut report = report(Some(Status { hot_regions_max: 2048, ..status(peer()) }));
    report.memory =
        MemoryReport { reserved_bytes: 160 << 20, bitmaps_bytes: 352 << 10, ..Default::default() };
    let line =
        "      memory: payloads 160 MiB, bitmaps 352 KiB at most; a crash resync looks at 8 GiB at most\n";
    let text = text(&report);
    assert!(text.contains(line), "{text}");
}

#[test]
fn resync() {
    let resync = ResyncStatus {
        total_bytes: 11 << 30,
        left_bytes: 5_583_457_484,
        rate_bytes_per_s: 222_298_112,
        eta_s: Some(25),
        running_ms: 30_000,
        limit_bytes_per_s: None,
        paused_by_peer: false,
        moved: Moved { copied_bytes: 6 << 30, zero_bytes: 0, equal_bytes: 4096 },
        unreadable_bytes: 0,
        unreadable: vec![],
        incomplete: false,
    };
    let peer = PeerStatus {
        replication: ReplicationState::SyncSource,
        disk: Some(DiskState::Inconsistent),
        out_of_sync_bytes: 5_583_457_484,
        resync: Some(resync),
        ..peer()
    };
    assert_eq!(
        text(&report(Some(status(peer.clone())))),
        lines(&[
            "r0  Primary on alpha   generation 7   NOT PROTECTED: beta is resynchronising",
            "  alpha (this node)  Primary    UpToDate       clients 0   held I/O 0   11 GiB",
            concat!(
                "  beta               Secondary  Inconsistent   Connected SyncSource",
                "   since 2026-01-01 10:39:00 UTC"
            ),
            concat!(
                "      resync alpha -> beta  [##########..........]  52.7 %   5.2 GiB of 11 GiB left",
                "   212 MiB/s   ETA 0:25   since 2026-01-01 10:39:30 UTC"
            ),
            "        copied 6 GiB, equal 4 KiB, zero 0 B",
        ])
    );
    let mut target = PeerStatus { replication: ReplicationState::SyncTarget, ..peer };
    if let Some(resync) = &mut target.resync {
        (resync.unreadable_bytes, resync.unreadable) = (12288, vec![(4096, 8192)]);
        resync.incomplete = true;
    }
    let text = text(&report(Some(status(target))));
    assert!(text.contains("INCOMPLETE: beta cannot read 12 KiB of its disk, at 4096+8192, ..."), "{text}");
    assert!(text.contains("resync beta -> alpha") && text.contains("alpha is resynchronising"), "{text}");
}

#[test]
fn split_brain() {
    let peer = PeerStatus {
        replication: ReplicationState::SplitBrain,
        role: Some(Role::Primary),
        out_of_sync_bytes: 1_288_490_189,
        alone_since_unix_ms: Some(NOW_UNIX_MS - 5_000_000),
        peer_alone_since_unix_ms: Some(NOW_UNIX_MS - 4_000_000),
        peer_out_of_sync_bytes: Some(4096),
        ..peer()
    };
    assert_eq!(
        text(&report(Some(status(peer)))),
        lines(&[
            "r0  Primary on alpha   generation 7   NOT PROTECTED: split brain with beta",
            "  alpha (this node)  Primary    UpToDate       clients 0   held I/O 0   11 GiB",
            concat!(
                "  beta               Primary    UpToDate       Connected SplitBrain",
                "   since 2026-01-01 10:39:00 UTC   out of sync 1.2 GiB"
            ),
            concat!(
                "      SPLIT BRAIN  alpha wrote 1.2 GiB since 2026-01-01 09:16:40 UTC",
                ", beta wrote 4 KiB since 2026-01-01 09:33:20 UTC"
            ),
            concat!(
                "      -> choose whose changes are given up (first, there: lockstep demote r0)",
                ": lockstep resolve r0 --discard alpha|beta"
            ),
        ])
    );
}

#[test]
fn diskless_and_down_say_what_to_type() {
    let away = PeerStatus {
        connection: ConnectionState::Connecting,
        replication: ReplicationState::Off,
        role: None,
        disk: None,
        ..peer()
    };
    let diskless = Status {
        role: Role::Secondary,
        disk: DiskState::Diskless,
        generation: None,
        size_bytes: 0,
        ..status(away)
    };
    let mut broken = report(Some(diskless));
    broken.error = Some("there is no metadata at /m; create it: lockstep create-md r0".to_owned());
    broken.link_error = Some("connection refused".to_owned());
    assert_eq!(
        text(&broken),
        lines(&[
            "r0  no Primary   generation none   NOT PROTECTED: beta is away",
            "  alpha (this node)  Secondary  Diskless       clients 0   held I/O 0",
            "      there is no metadata at /m; create it: lockstep create-md r0",
            "  beta               -          -              Connecting   since 2026-01-01 10:39:00 UTC",
            "      connection refused",
        ])
    );
    assert_eq!(
        text(&report(None)),
        lines(&[
            "r0  down on alpha   generation none   NOT PROTECTED: the resource is down on this node",
            "  alpha (this node)  down",
            "      -> bring it up: lockstep up r0",
        ])
    );
}

#[test]
fn states_that_do_not_end_have_advice() {
    let link = |replication| PeerStatus { replication, ..peer() };
    let away = PeerStatus {
        connection: ConnectionState::Connecting,
        replication: ReplicationState::Off,
        role: None,
        ..peer()
    };
    let stand_alone = PeerStatus { connection: ConnectionState::StandAlone, ..away.clone() };
    let secondary = |disk, peer| Status { role: Role::Secondary, disk, ..status(peer) };
    for (status, words) in [
        (secondary(DiskState::UpToDate, peer()), "lockstep promote r0"),
        (secondary(DiskState::Consistent, away.clone()), "lockstep promote r0 --peer-is-down"),
        (Status { unclean: true, ..secondary(DiskState::Consistent, away.clone()) }, "r0 --accept-data-loss"),
        (secondary(DiskState::Outdated, away.clone()), "bring beta back"),
        (
            secondary(DiskState::Inconsistent, link(ReplicationState::NoSource)),
            "promote r0 --accept-data-loss",
        ),
        (
            Status {
                generation: None,
                ..secondary(DiskState::Inconsistent, link(ReplicationState::NoSource))
            },
            "create-md r0 --source",
        ),
        (status(link(ReplicationState::Unrelated)), "create-md r0 --overwrite"),
        (status(link(ReplicationState::TargetIsPrimary)), "on alpha: lockstep demote r0"),
        (status(stand_alone), "lockstep connect r0"),
        (
            Status { sync_paused: true, ..status(link(ReplicationState::PausedSource)) },
            "on alpha: lockstep sync r0",
        ),
        (status(link(ReplicationState::PausedTarget)), "on beta: lockstep sync r0 --resume"),
        (Status { suspended: true, ..status(away) }, "held until beta returns"),
    ] {
        let text = text(&report(Some(status)));
        assert!(text.contains("      -> ") && text.contains(words), "{text}: lacks {words}");
    }
}

#[test]
fn names_of_the_json_are_stable() {
    let resync = ResyncStatus {
        total_bytes: 10,
        left_bytes: 4,
        rate_bytes_per_s: 2,
        eta_s: None,
        running_ms: 1000,
        limit_bytes_per_s: None,
        paused_by_peer: false,
        moved: Moved { copied_bytes: 3, zero_bytes: 1, equal_bytes: 2 },
        unreadable_bytes: 4,
        unreadable: vec![(6, 4)],
        incomplete: true,
    };
    let peer = PeerStatus { resync: Some(resync), replication: ReplicationState::SyncSource, ..peer() };
    let value =
        serde_json::to_value(resource_doc(&report(Some(status(peer))), &place(), NOW_UNIX_MS)).unwrap();
    assert_eq!(value["generation"]["id"], "ab000000000000000000000000000000");
    assert_eq!(value["uris"][0], "nbd+unix:///r0?socket=/s");
    assert_eq!(value["peers"][0]["uris"][0], "nbd://10.0.0.2:10809/r0");
    assert_eq!(
        value["peers"][0]["resync"],
        serde_json::json!({
            "source": "alpha", "target": "beta", "done_bytes": 6, "total_bytes": 10, "rate": 2, "eta_s": null,
            "since": "2026-01-01T10:39:59Z", "limit": null, "paused_by_peer": false,
            "copied_bytes": 3, "equal_bytes": 2, "zero_bytes": 1,
            "unreadable_bytes": 4, "unreadable": [{"offset": 6, "length": 4}], "incomplete": true
        })
    );
    for key in
        ["role", "disk", "protected", "suspended", "clients", "size_bytes", "term", "not_protected_reason"]
    {
        assert!(value.get(key).is_some(), "{key}");
    }
}

/// Whatever `status` may show as a state is explained to operators.
#[test]
fn every_state_is_in_the_runbook() {
    const RUNBOOK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/RUNBOOK.md"));
    let disks = (0..u8::MAX).map_while(DiskState::from_code).map(|state| state.to_string());
    let links = (0..u8::MAX).map_while(ConnectionState::from_code).map(|state| state.to_string());
    let uses = (0..u8::MAX).map_while(ReplicationState::from_code).map(|state| state.to_string());
    let words: Vec<String> = disks.chain(links).chain(uses).collect();
    assert!(words.len() > 15, "{words:?}");
    for word in words {
        let cell = format!("`{word}`");
        let shown = RUNBOOK.lines().any(|line| {
            line.starts_with("| ") && line.split(" | ").next().is_some_and(|first| first.contains(&cell))
        });
        assert!(shown, "docs/RUNBOOK.md does not explain {word}");
    }
}
