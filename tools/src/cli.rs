//! The command line: one table of verbs for parser, help and man page.

use crate::config::CLIENTS_MAX;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lockstep_engine::Limits;
use std::path::PathBuf;

/// Block volumes kept in lockstep on two machines, served over NBD.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the daemon does not run (status); 4 the daemon cannot be \
reached or permission is missing; 10 configuration; 11 busy, in use or refused; 17 no UpToDate data; 20 a \
wait ran out of time.
Data goes to stdout, messages to stderr.";

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Configuration file.
    #[arg(long, global = true, env = "LOCKSTEP_CONFIG")]
    #[arg(value_name = "FILE", default_value = crate::config::DEFAULT_CONFIG)]
    pub(crate) config: PathBuf,
    /// Name of this node, if it is not what `uname -n` says.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Directory of metadata files.
    #[arg(long, global = true, value_name = "DIR", default_value = crate::config::DEFAULT_STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Control socket of the daemon.
    #[arg(long, global = true, env = "LOCKSTEP_SOCKET")]
    #[arg(value_name = "PATH", default_value = crate::config::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// Answer in JSON with a stable schema.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say nothing but errors and what was asked for.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Serve the volumes of the configuration until stopped.
    #[command(after_help = "Example:\n  lockstep --config /etc/lockstep/lockstep.toml daemon")]
    Daemon,
    /// Write or check the configuration file.
    #[command(subcommand, after_help = "Example:\n  lockstep config check")]
    Config(ConfigVerb),
    /// Create the metadata of a resource on this node (offline).
    #[command(
        after_help = "Examples:\n  lockstep create-md r0 --source   # keep and send what the disk holds\n  \
                            lockstep create-md r0            # on the other node: to be filled by the \
                            first sync"
    )]
    CreateMd(CreateMd),
    /// Open the disk of a resource and connect to the peer.
    #[command(after_help = "Example:\n  lockstep up r0")]
    Up(Resource),
    /// Leave a resource cleanly, until `up` or a restart of the daemon.
    #[command(after_help = "Example:\n  lockstep down r0")]
    Down(Down),
    /// Give up the disk of a resource that keeps running, to replace it; clients are served through the peer.
    #[command(
        after_help = "Example:\n  lockstep detach r0\n  lockstep create-md r0 --overwrite   # on the new disk\n  \
                            lockstep attach r0"
    )]
    Detach(Resource),
    /// Open the disk of a resource that runs without it; it is synchronised from the peer.
    #[command(
        after_help = "Examples:\n  lockstep attach r0\n  lockstep attach r0 --moved   # the same data on another \
                            device, or in another place"
    )]
    Attach(Attach),
    /// Show what the daemon knows, and what to do next.
    #[command(
        after_help = "Examples:\n  lockstep status\n  lockstep status r0 --watch\n  lockstep status --json"
    )]
    Status(StatusArgs),
    /// Make this node Primary: it serves clients.
    #[command(
        alias = "primary",
        after_help = "Examples:\n  lockstep promote r0\n  lockstep promote r0 --peer-is-down"
    )]
    Promote(Promote),
    /// Make this node Secondary.
    #[command(alias = "secondary", after_help = "Example:\n  lockstep demote r0")]
    Demote(Demote),
    /// Connect to the peer again after `disconnect`.
    #[command(after_help = "Example:\n  lockstep connect r0")]
    Connect(Resource),
    /// Close the connection to the peer and stay alone.
    #[command(after_help = "Example:\n  lockstep disconnect r0")]
    Disconnect(Resource),
    /// End a split brain: name the node whose changes are given up.
    #[command(after_help = "Example:\n  lockstep resolve r0 --discard beta")]
    Resolve(Resolve),
    /// Declare a copy wrong: all of it is synchronised from the other node.
    #[command(after_help = "Examples:\n  lockstep invalidate r0          # the copy of this node\n  \
                            lockstep invalidate r0 --peer   # the copy of the other node")]
    Invalidate(Invalidate),
    /// Pause, resume, limit or hasten the resync of a resource, until the daemon ends; either node may.
    #[command(
        after_help = "Examples:\n  lockstep sync r0 --pause\n  lockstep sync r0 --resume       # also \
                            tries again what could not be read\n  lockstep sync r0 --rate 50MiB   # per \
                            second; max: as fast as clients' writes allow\n  lockstep sync r0 --min-rate 200MiB   # \
                            at least, however long clients wait; 0: what they leave"
    )]
    Sync(Sync),
    /// Remember what is written from a moment on, for incremental backups.
    #[command(
        subcommand,
        after_help = "Examples:\n  lockstep checkpoint create r0 monday\n  lockstep checkpoint list r0\n  nbdinfo \
                      --map=x-lockstep:checkpoint:monday \"$(lockstep uri r0)\"\n  lockstep checkpoint delete r0 monday"
    )]
    Checkpoint(CheckpointVerb),
    /// Wait until a resource has reached a state.
    #[command(after_help = "Example:\n  lockstep wait r0 --for uptodate -t 30s")]
    Wait(Wait),
    /// Print the NBD address of the current Primary.
    #[command(after_help = "Example:\n  nbdinfo \"$(lockstep uri r0)\"")]
    Uri(Resource),
    /// Show what a metadata file records (offline).
    #[command(
        after_help = "Examples:\n  lockstep dump-md r0\n  lockstep dump-md /var/lib/lockstep/r0.0.meta --json"
    )]
    DumpMd(DumpMd),
    /// Serve one file or device over NBD, without replication.
    #[command(
        after_help = "Examples:\n  lockstep nbd disk.img --unix /tmp/nbd.sock\n  lockstep nbd disk.img --tcp \
                            127.0.0.1:10809 --read-only"
    )]
    Nbd(Nbd),
    /// Compare two images or devices and list what differs (offline).
    #[command(after_help = "Example:\n  lockstep compare /dev/vdb /mnt/copy.img")]
    Compare(Compare),
    /// Show two nodes on this machine: a volume, a failover, a resync.
    #[command(after_help = "Example:\n  lockstep demo")]
    Demo(crate::demo::DemoArgs),
    /// Print the version.
    #[command(after_help = "Example:\n  lockstep version --json")]
    Version,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Write a first configuration and a new secret; nothing is overwritten.
    #[command(
        after_help = "Example:\n  lockstep config init r0 alpha=10.0.0.1 beta=10.0.0.2 --disk /dev/vdb"
    )]
    Init(ConfigInit),
    /// Check the configuration file and what it names: the secret, the files of TLS, groups and hosts.
    #[command(after_help = "Example:\n  lockstep --config ./lockstep.toml config check")]
    Check,
}

/// `checkpoint ...`.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointVerb {
    /// Begin a checkpoint: from now on every write is remembered under its name, on both nodes (on the Primary).
    #[command(after_help = "Example:\n  lockstep checkpoint create r0 monday")]
    Create(NamedCheckpoint),
    /// List the checkpoints of a resource, and what was written since each.
    #[command(after_help = "Example:\n  lockstep checkpoint list r0 --json")]
    List(Resource),
    /// Forget a checkpoint, on both nodes (on the Primary); one that does not exist is deleted already.
    #[command(after_help = "Example:\n  lockstep checkpoint delete r0 monday")]
    Delete(NamedCheckpoint),
}

/// A checkpoint by name.
#[derive(Debug, Args)]
pub(crate) struct NamedCheckpoint {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// Name of the checkpoint: letters, digits, '-', '_' and '.', at most 64.
    #[arg(value_name = "NAME", value_parser = checkpoint_name)]
    pub(crate) name: String,
}

fn checkpoint_name(text: &str) -> Result<String, String> {
    let rule = "1 to 64 letters, digits, '-', '_' or '.', the first one a letter or a digit";
    lockstep_core::CheckpointName::new(text).map(|_| text.to_owned()).ok_or_else(|| rule.to_owned())
}

/// `config init`.
#[derive(Debug, Args)]
pub(crate) struct ConfigInit {
    /// Name of the resource.
    pub(crate) resource: String,
    /// Both nodes: NAME=ADDRESS or NAME=ADDRESS:PORT; names as `uname -n` says them.
    #[arg(num_args = 2, required = true, value_name = "NAME=ADDRESS")]
    pub(crate) nodes: Vec<String>,
    /// Device or file that holds the volume, on both nodes.
    #[arg(long, value_name = "PATH")]
    pub(crate) disk: String,
    /// Size of the file that `create-md` shall create, for example 10GiB.
    #[arg(long)]
    pub(crate) size: Option<String>,
    /// Directory of both files.
    #[arg(long, value_name = "DIR", default_value = "/etc/lockstep")]
    pub(crate) dir: PathBuf,
}

/// A resource by name.
#[derive(Debug, Args)]
pub(crate) struct Resource {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
}

/// `create-md`.
#[derive(Debug, Args)]
pub(crate) struct CreateMd {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// Keep what the disk holds and send it to the peer: this copy is the source of the first sync.
    #[arg(long, conflicts_with = "clean")]
    pub(crate) source: bool,
    /// Give up existing metadata, and what the disk holds.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Both disks are known to be equal (said on both nodes): skip the first sync.
    #[arg(long)]
    pub(crate) clean: bool,
    /// Room for so many checkpoints; each takes 32 MiB of metadata and memory per TiB of volume.
    #[arg(long, value_name = "N", default_value_t = lockstep_bitmap::DEFAULT_CHECKPOINTS)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=lockstep_bitmap::CHECKPOINTS_MAX as i64))]
    pub(crate) checkpoints: u8,
}

/// `attach`.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// The disk is not the one that the metadata knows, but holds this data: all of it is compared with the peer's.
    #[arg(long)]
    pub(crate) moved: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this resource.
    #[arg(value_name = "R")]
    pub(crate) resource: Option<String>,
    /// Show it again every second.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// `promote`.
#[derive(Debug, Args)]
pub(crate) struct Promote {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// I assert that the peer is down; what it acknowledged alone is given up.
    #[arg(long)]
    pub(crate) peer_is_down: bool,
    /// Take this copy although it may lack acknowledged writes (includes --peer-is-down).
    #[arg(long)]
    pub(crate) accept_data_loss: bool,
    /// Do not ask for the resource's name on a terminal when one of these flags is given.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `demote`.
#[derive(Debug, Args)]
pub(crate) struct Demote {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// Close connected clients; I/O that is held ends with an error.
    #[arg(long)]
    pub(crate) force: bool,
}

/// `down`.
#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// Close connected clients; I/O that is held ends with an error.
    #[arg(long)]
    pub(crate) force: bool,
}

/// `resolve`.
#[derive(Debug, Args)]
pub(crate) struct Resolve {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// The node whose changes since the split are given up.
    #[arg(long, value_name = "NODE")]
    pub(crate) discard: String,
}

/// `invalidate`.
#[derive(Debug, Args)]
pub(crate) struct Invalidate {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// The peer's copy, not the one of this node.
    #[arg(long)]
    pub(crate) peer: bool,
}

/// `sync`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("order").required(true).args(["pause", "resume", "rate", "min_rate"]))]
pub(crate) struct Sync {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// Copy nothing more for now; clients are served and mirrored as before.
    #[arg(long)]
    pub(crate) pause: bool,
    /// Go on.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Bytes per second at most, for example 50MiB; `max` or 0: no limit but what clients' writes need.
    #[arg(long, value_name = "SIZE", value_parser = sync_rate)]
    pub(crate) rate: Option<u64>,
    /// Bytes per second at least, however long clients wait, for example 200MiB; 0: what clients leave.
    #[arg(long, value_name = "SIZE", value_parser = crate::config::parse_size)]
    pub(crate) min_rate: Option<u64>,
}

fn sync_rate(text: &str) -> Result<u64, String> {
    if text == "max" { Ok(0) } else { crate::config::parse_size(text) }
}

/// `wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Name of the resource.
    #[arg(value_name = "R")]
    pub(crate) resource: String,
    /// The state.
    #[arg(long = "for", value_name = "STATE")]
    pub(crate) state: WaitFor,
    /// How long at most: 30s, 500ms, 2min; a plain number is seconds.
    #[arg(short, long, value_name = "TIME", default_value = "30s", value_parser = wait_time)]
    pub(crate) timeout: std::time::Duration,
}

fn wait_time(text: &str) -> Result<std::time::Duration, String> {
    let plain_seconds = text.parse::<u32>().map(|seconds| std::time::Duration::from_secs(seconds.into()));
    plain_seconds.or_else(|_| crate::config::parse_duration(text))
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitFor {
    /// The peer is connected and the handshake ended.
    Connected,
    /// This node's copy is UpToDate.
    Uptodate,
    /// This node is Primary.
    Primary,
    /// This node is Secondary.
    Secondary,
    /// Both copies are UpToDate and mirrored.
    Synced,
}

/// `dump-md`.
#[derive(Debug, Args)]
pub(crate) struct DumpMd {
    /// A resource of the configuration, or a metadata file (a path with a slash).
    #[arg(value_name = "R|FILE")]
    pub(crate) target: String,
}

/// `nbd`.
#[derive(Debug, Args)]
pub(crate) struct Nbd {
    /// File or block device to be served; its size is a multiple of 512 bytes.
    pub(crate) file: PathBuf,
    /// Name of the export [default: the name of the file]; the empty name always works.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Serve one client on standard input and output, and end with it.
    #[arg(long, conflicts_with_all = ["unix", "tcp"])]
    pub(crate) stdio: bool,
    /// Listen on a unix socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,
    /// Listen on a TCP port, for example 127.0.0.1:10809; other addresses than those of loopback need TLS.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) tcp: Option<std::net::SocketAddr>,
    /// Offer TLS with this certificate (PEM); clients that come from other machines must use it.
    #[arg(long, value_name = "PEM", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM, mode 0600).
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// In TLS, serve only clients with a certificate that one of these has signed (PEM).
    #[arg(long, value_name = "PEM", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Refuse everything that changes data.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Serve so many clients at the same time.
    #[arg(
        long,
        value_name = "N",
        default_value_t = Limits::CLIENTS_MAX,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=CLIENTS_MAX as u64)
    )]
    pub(crate) max_clients: usize,
    /// Write the process id there as soon as clients are served.
    #[arg(long, value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,
}

/// `compare`.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// First image or device.
    pub(crate) a: PathBuf,
    /// Second image or device.
    pub(crate) b: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn table_is_sound_and_every_verb_has_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", verb.get_name());
        }
    }

    #[test]
    fn times_of_wait() {
        for (text, ms) in [("30", 30_000), ("30s", 30_000), ("250ms", 250)] {
            let cli = Cli::try_parse_from(["lockstep", "wait", "r0", "--for", "synced", "-t", text]).unwrap();
            let Verb::Wait(wait) = cli.verb else { panic!("another verb") };
            assert_eq!((wait.timeout.as_millis(), wait.state), (ms, WaitFor::Synced));
        }
        assert!(Cli::try_parse_from(["lockstep", "wait", "r0", "--for", "synced", "-t", "soon"]).is_err());
    }

    #[test]
    fn one_order_for_sync() {
        let parse = |args: &[&str]| {
            let args = ["lockstep", "sync", "r0"].iter().chain(args);
            Cli::try_parse_from(args).map(|cli| match cli.verb {
                Verb::Sync(sync) => (sync.pause, sync.resume, sync.rate.or(sync.min_rate)),
                _ => panic!("another verb"),
            })
        };
        assert_eq!(parse(&["--pause"]).unwrap(), (true, false, None));
        assert_eq!(parse(&["--rate", "50M"]).unwrap(), (false, false, Some(50 << 20)));
        assert_eq!(parse(&["--rate", "max"]).unwrap(), (false, false, Some(0)));
        assert_eq!(parse(&["--min-rate", "200MiB"]).unwrap(), (false, false, Some(200 << 20)));
        assert_eq!(parse(&["--min-rate", "0"]).unwrap(), (false, false, Some(0)));
        assert!(parse(&["--rate", "1M", "--min-rate", "1M"]).is_err());
        assert!(parse(&[]).is_err() && parse(&["--pause", "--resume"]).is_err());
        assert!(parse(&["--rate", "fast"]).is_err() && parse(&["--rate", "5MB"]).is_err());
    }

    #[test]
    fn global_options_go_before_and_after_and_aliases_work() {
        let cli = Cli::try_parse_from(["lockstep", "--node", "beta", "primary", "r0", "--json"]).unwrap();
        assert!(cli.global.json && cli.global.node.as_deref() == Some("beta"));
        assert!(matches!(cli.verb, Verb::Promote(_)));
    }
}
