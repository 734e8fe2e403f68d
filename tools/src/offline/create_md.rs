//! `create-md`: makes the metadata file of a resource on this node, and the data file where the
//! configuration asks.
//!
//! Invariants: nothing that a daemon or a mount holds is touched; existing metadata and recognisable content
//! are only given up when the operator typed so; the data itself is never written. No generation made here
//! can be held by another node: `--source` makes a random one, anything else makes none.

use super::signature::recognise;
use crate::cli::{CreateMd, Global};
use crate::config::{Config, ResourceEntry};
use crate::daemon::this_node;
use crate::failure::Failure;
use crate::output::Output;
use crate::secret::random;
use crate::status::SCHEMA;
use crate::text;
use lockstep_bitmap::{
    Base, CreateParams, DEFAULT_REGION_SHIFT, DeviceIdentity, Generation, GenerationId, GenerationLog,
    Geometry, Identity, MetaPage, NodeId, Origin, PeerCopy, PeerRecord,
};
use lockstep_engine::{AttachError, DeviceFacts, create_metadata, device_facts, read_metadata};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde_json::json;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

const BLOCK_SHIFT: u8 = 12;

/// Execute it.
pub(crate) fn create_md(global: &Global, args: &CreateMd, output: &Output) -> Result<(), Failure> {
    let config = Config::load(&global.config)?;
    let node = this_node(global, &config)?;
    let resource = config.known_resource(&args.resource)?;
    let meta = resource.meta_path(node, &global.state_dir);
    if meta.exists() && !args.overwrite {
        return Err(exists(&meta));
    }
    let disk = resource.disk_path(node);
    let created = create_data_file(resource, disk)?;
    let held = hold(disk, resource)?;
    check_content(&held, disk, args)?;
    let facts = device_facts(disk).map_err(|error| named(disk, &error))?;
    let size_bytes = volume_bytes(resource, disk, &facts)?;
    if let Some(dir) = meta.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| named(dir, &error))?;
    }
    if facts.is_ambiguous {
        output.message(&format!(
            "warning: {} has no serial number or UUID that tells it from another such disk: a mix-up would go \
             unnoticed. A partition table of type GPT gives it a UUID",
            disk.display()
        ));
    }
    let params = params(&config, resource, node, (facts.identity, size_bytes), args)?;
    create_metadata(&meta, params, args.overwrite).map_err(|error| match error {
        AttachError::Exists(path) => exists(&path),
        AttachError::InUse(_) => Failure::refused(format!("{error}; first: lockstep down {}", resource.name)),
        error => Failure::generic(error.to_string()),
    })?;
    if args.clean {
        declare_clean(&meta)?;
    }
    let size = text::bytes(size_bytes);
    let file = if created { format!("created {} and ", disk.display()) } else { String::new() };
    let next = if args.source {
        "this copy is UpToDate and will be sent to the peer"
    } else if args.clean {
        "declared equal to the peer's, which must be declared so as well"
    } else {
        "this copy waits for the first sync from the peer"
    };
    let doc = json!({
        "schema": SCHEMA,
        "resource": resource.name,
        "metadata": meta,
        "disk": disk,
        "size_bytes": size_bytes,
        "source": args.source,
    });
    output.done(&doc, &format!("{}: {file}wrote {} for {size}; {next}", resource.name, meta.display()))
}

/// Creates the (sparse) data file if there is none and the configuration has its size.
fn create_data_file(resource: &ResourceEntry, disk: &Path) -> Result<bool, Failure> {
    if disk.exists() {
        return Ok(false);
    }
    let Some(size_bytes) = resource.size_bytes else {
        return Err(Failure::config(format!(
            "there is no disk at {}; for a file that create-md shall create give its size in the \
            configuration",
            disk.display()
        )));
    };
    // A name below /dev that is missing is a missing device, not a file to be made in memory.
    if disk.starts_with("/dev") && !disk.starts_with("/dev/shm") {
        return Err(Failure::config(format!("there is no device {}", disk.display())));
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(disk);
    let made = file.and_then(|file| {
        file.set_len(size_bytes)?;
        file.sync_all()
    });
    made.map_err(|error| named(disk, &error))?;
    Ok(true)
}

/// Opens the disk so that nobody else can use it meanwhile, as the daemon does.
fn hold(disk: &Path, resource: &ResourceEntry) -> Result<File, Failure> {
    let in_use = || {
        Failure::refused(format!(
            "{} is in use: a daemon, a mount or another program holds it. If it is the daemon: lockstep \
             down {}",
            disk.display(),
            resource.name
        ))
    };
    let is_block =
        std::fs::metadata(disk).map_err(|error| named(disk, &error))?.file_type().is_block_device();
    let exclusive = if is_block { OFlags::EXCL } else { OFlags::empty() };
    let file = rustix::fs::open(disk, OFlags::RDWR | OFlags::CLOEXEC | exclusive, Mode::empty());
    let file = match file {
        Err(rustix::io::Errno::BUSY) => return Err(in_use()),
        file => File::from(file.map_err(|error| named(disk, &error.into()))?),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use()),
        locked => locked.map(|()| file).map_err(|error| named(disk, &error.into())),
    }
}

fn check_content(file: &File, disk: &Path, args: &CreateMd) -> Result<(), Failure> {
    // `--clean` keeps what both disks hold.
    if args.source || args.overwrite || args.clean {
        return Ok(());
    }
    match recognise(file).map_err(|error| named(disk, &error))? {
        None => Ok(()),
        Some(what) => Err(Failure::refused(format!(
            "{} holds {what}, and the first sync from the peer would overwrite it. To keep and send it: \
             lockstep create-md {1} --source. To give it up: lockstep create-md {1} --overwrite",
            disk.display(),
            args.resource
        ))),
    }
}

/// Size of the volume: what the configuration says, which a device may exceed, or all of the disk.
fn volume_bytes(resource: &ResourceEntry, disk: &Path, facts: &DeviceFacts) -> Result<u64, Failure> {
    match resource.size_bytes {
        Some(size_bytes)
            if size_bytes == facts.size_bytes || facts.is_block && size_bytes < facts.size_bytes =>
        {
            Ok(size_bytes)
        }
        Some(size_bytes) => Err(Failure::config(format!(
            "{} has {} bytes, the configuration says {size_bytes}",
            disk.display(),
            facts.size_bytes
        ))),
        None => Ok(facts.size_bytes),
    }
}

fn params(
    config: &Config,
    resource: &ResourceEntry,
    node: u8,
    (device, size_bytes): (DeviceIdentity, u64),
    args: &CreateMd,
) -> Result<CreateParams, Failure> {
    let (region_shift, source) = (DEFAULT_REGION_SHIFT, args.source);
    let geometry = Geometry::new(size_bytes, BLOCK_SHIFT, region_shift)
        .map_err(|error| Failure::config(format!("{}: {error}", resource.disk_path(node).display())))?;
    let mut log = GenerationLog::new();
    if source {
        let first = Generation {
            id: GenerationId(u128::from_le_bytes(random()?)),
            ordinal: 1,
            parent: None,
            node: NodeId(node),
            began_unix_ms: text::unix_ms_now(),
            origin: Origin::Created,
        };
        log.push(first, &[]);
    }
    // The source knows that nobody else has its generation, and owes the peer every block.
    let (base, copy) =
        if source { (Base::NoGeneration, PeerCopy::NoGeneration) } else { (Base::Unset, PeerCopy::MayHold) };
    let peer = |(id, _)| PeerRecord {
        node: NodeId(id),
        base,
        copy,
        session_offered: 0,
        session_used: 0,
        may_be_primary: false,
        slot_epoch: 1,
        slot_filled: source,
    };
    let identity = Identity {
        resource: resource.name.clone(),
        volume: 0,
        node: NodeId(node),
        node_name: config.nodes[usize::from(node)].name.clone(),
        device,
    };
    let peers = (0_u8..).zip(&config.nodes).filter(|(id, _)| *id != node).map(peer).collect();
    Ok(CreateParams {
        file_id: u64::from_le_bytes(random()?),
        identity,
        geometry,
        log,
        peers,
        checkpoints: args.checkpoints,
    })
}

/// Records that the operator says this disk equals the peer's. If this is cut short, the metadata is plain,
/// and the first sync is not skipped.
fn declare_clean(meta: &Path) -> Result<(), Failure> {
    let (mut store, _) = read_metadata(meta).map_err(|error| Failure::generic(error.to_string()))?;
    store.superblock.declared_clean = true;
    let mut bytes = Vec::new();
    let places = store.render(MetaPage::Superblock, &mut bytes);
    let write = || {
        let file = File::options().write(true).open(meta)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        places.iter().try_for_each(|offset| file.write_all_at(&bytes, offset))?;
        file.sync_all()
    };
    write().map_err(|error: io::Error| named(meta, &error))
}

fn exists(meta: &Path) -> Failure {
    Failure::refused(format!(
        "metadata exists in {}; to give up what it records, and to have this copy filled again: --overwrite",
        meta.display()
    ))
}

fn named(path: &Path, error: &io::Error) -> Failure {
    Failure::generic(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use lockstep_bitmap::Superblock;

    /// A directory with a configuration whose disk is a file of 8 MiB that `create-md` creates.
    struct Site(tempfile::TempDir);

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().display();
            let text = format!(
                "cluster = \"c\"\nsecret-file = \"{path}/secret\"\n[node.a]\naddress = \
                 \"127.0.0.1:1\"\n[node.b]\n address = \"127.0.0.1:2\"\n[[resource]]\nname = \"r0\"\ndisk \
                 = \"{path}/disk\"\nsize = \"8MiB\"\n"
            );
            std::fs::write(dir.path().join("lockstep.toml"), text).unwrap();
            Site(dir)
        }
        fn create(&self, node: &str, flags: &[&str]) -> Result<(), Failure> {
            let path = |name: &str| self.0.path().join(name).to_string_lossy().into_owned();
            let (config, state) = (path("lockstep.toml"), path("state"));
            let words = [
                "lockstep",
                "-q",
                "--config",
                &config,
                "--state-dir",
                &state,
                "--node",
                node,
                "create-md",
                "r0",
            ];
            let cli = crate::cli::Cli::parse_from(words.iter().chain(flags));
            let crate::cli::Verb::CreateMd(args) = &cli.verb else { panic!("another verb") };
            create_md(&cli.global, args, &Output::new(&cli.global))
        }
        fn superblock(&self) -> Superblock {
            read_metadata(&self.0.path().join("state/r0.0.meta")).unwrap().0.superblock
        }
        fn disk(&self) -> File {
            File::options().read(true).write(true).open(self.0.path().join("disk")).unwrap()
        }
    }

    #[test]
    fn plain_has_no_generation_and_source_a_random_one() {
        let site = Site::new();
        site.create("b", &[]).unwrap();
        assert_eq!(site.disk().metadata().unwrap().len(), 8 << 20);
        let plain = site.superblock();
        assert!(plain.log.entries().is_empty() && !plain.declared_clean);
        assert_eq!((plain.identity.node, plain.peers[0].node), (NodeId(1), NodeId(0)));
        assert_eq!((plain.peers[0].copy, plain.peers[0].slot_filled), (PeerCopy::MayHold, false));
        let refused = site.create("b", &["--source"]).unwrap_err();
        assert!(refused.code == 11 && refused.message.contains("--overwrite"), "{refused}");
        site.create("b", &["--source", "--overwrite"]).unwrap();
        let first = site.superblock();
        assert_eq!((first.peers[0].copy, first.peers[0].slot_filled), (PeerCopy::NoGeneration, true));
        site.create("b", &["--source", "--overwrite"]).unwrap();
        let second = site.superblock();
        assert_ne!(first.log.current().unwrap().id, second.log.current().unwrap().id);
        assert_ne!(first.file_id, second.file_id);
    }

    #[test]
    fn clean_is_recorded() {
        let site = Site::new();
        site.create("a", &["--clean"]).unwrap();
        let superblock = site.superblock();
        assert!(superblock.declared_clean && superblock.log.entries().is_empty());
    }

    #[test]
    fn content_and_users_of_the_disk_are_respected() {
        let site = Site::new();
        std::fs::write(site.0.path().join("disk"), vec![0; 8 << 20]).unwrap();
        site.disk().write_all_at(&[0x53, 0xef], 1080).unwrap();
        let refused = site.create("a", &[]).unwrap_err();
        assert!(refused.code == 11 && refused.message.contains("ext4"), "{refused}");
        assert!(!site.0.path().join("state").exists());
        let user = site.disk();
        rustix::fs::flock(&user, FlockOperation::NonBlockingLockExclusive).unwrap();
        let refused = site.create("a", &["--source"]).unwrap_err();
        assert!(refused.code == 11 && refused.message.contains("in use"), "{refused}");
        drop(user);
        site.create("a", &["--source"]).unwrap();
        site.disk().set_len(4 << 20).unwrap();
        assert_eq!(site.create("a", &["--source", "--overwrite"]).unwrap_err().code, 10);
    }
}
