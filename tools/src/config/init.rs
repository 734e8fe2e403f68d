//! `config init`: writes the first configuration and the shared secret, never over existing files.

use super::{Config, ConfigError, HostPort, is_name};
use crate::failure::Failure;
use crate::secret;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const REPLICATION_PORT: u16 = 7800;

/// What to write.
#[derive(Debug, Clone)]
pub(crate) struct InitPlan {
    /// Name of the resource.
    pub(crate) resource: String,
    /// `NAME=ADDRESS[:PORT]` of both nodes.
    pub(crate) nodes: Vec<String>,
    /// Device or file, the same path on both nodes.
    pub(crate) disk: String,
    /// Size of the file to be created, as written.
    pub(crate) size: Option<String>,
    /// Directory of both files.
    pub(crate) dir: PathBuf,
}

/// Write both files; the answer is the text that tells what comes next.
pub(crate) fn init(plan: &InitPlan) -> Result<String, Failure> {
    if !is_name(&plan.resource) {
        return Err(Failure::usage(format!("\"{}\" cannot be the name of a resource", plan.resource)));
    }
    let dir = std::path::absolute(&plan.dir).map_err(|error| Failure::generic(error.to_string()))?;
    let config_file = dir.join("lockstep.toml");
    let secret_file = dir.join("secret");
    let nodes = plan.nodes.iter().map(|text| parse_node(text)).collect::<Result<Vec<_>, _>>()?;
    let text = render(plan, &nodes, &secret_file);
    // The same checks as for a file written by hand, before anything is written.
    Config::parse(&config_file, &text).map_err(|ConfigError { message, .. }| {
        Failure::usage(format!("the answer would be wrong: {message}"))
    })?;
    for file in [&config_file, &secret_file] {
        if file.exists() {
            let message = format!("{} exists and is not overwritten; remove it first", file.display());
            return Err(Failure::config(message));
        }
    }
    std::fs::create_dir_all(&dir).map_err(|e| Failure::generic(format!("{}: {e}", dir.display())))?;
    write_new(&secret_file, secret::generate()?.as_bytes(), 0o600)?;
    write_new(&config_file, text.as_bytes(), 0o644)?;
    Ok(next_steps(plan, &nodes, &config_file, &secret_file))
}

fn parse_node(text: &str) -> Result<(String, HostPort), Failure> {
    let wrong = || Failure::usage(format!("\"{text}\" is not NAME=ADDRESS, for example alpha=10.0.0.1"));
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    let address = HostPort::parse(address)
        .or_else(|| HostPort::parse(&format!("{address}:{REPLICATION_PORT}")))
        .or_else(|| HostPort::parse(&format!("[{address}]:{REPLICATION_PORT}")))
        .ok_or_else(wrong)?;
    is_name(name).then(|| (name.to_owned(), address)).ok_or_else(wrong)
}

fn render(plan: &InitPlan, nodes: &[(String, HostPort)], secret_file: &Path) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = String::new();
    let secret = quoted(&secret_file.to_string_lossy());
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# The same file on all nodes; check it with: lockstep config check");
    let _ = writeln!(text, "cluster = {}", quoted(&format!("{}-cluster", plan.resource)));
    let _ = writeln!(text, "secret-file = {secret}    # mode 0600, the same on all nodes");
    for (name, address) in nodes {
        // A name with a dot would be two keys.
        let name = if name.contains('.') { quoted(name) } else { name.clone() };
        let _ = writeln!(text, "\n[node.{name}]\naddress = {}", quoted(&address.to_string()));
        let _ = writeln!(text, "nbd = [\"unix:{}\"]", super::DEFAULT_NBD_SOCKET);
    }
    let _ = writeln!(text, "\n[[resource]]\nname = {}", quoted(&plan.resource));
    let _ = writeln!(text, "disk = {}", quoted(&plan.disk));
    if let Some(size) = &plan.size {
        let _ = writeln!(text, "size = {}    # create-md creates the file", quoted(size));
    }
    text
}

fn write_new(file: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let name = |error: std::io::Error| Failure::generic(format!("{}: {error}", file.display()));
    let mut handle = OpenOptions::new().write(true).create_new(true).mode(mode).open(file).map_err(name)?;
    handle.write_all(bytes).and_then(|()| handle.sync_all()).map_err(name)
}

fn next_steps(plan: &InitPlan, nodes: &[(String, HostPort)], config: &Path, secret: &Path) -> String {
    let r = &plan.resource;
    let (first, second) = (&nodes[0].0, &nodes[1].0);
    format!(
        "wrote {config} and {secret}. Next:\n\
         \x20 1. copy both files to {second}, to the same place, with the same modes\n\
         \x20 2. on {first}, whose data is kept: lockstep create-md {r} --source\n\
         \x20    on {second}: lockstep create-md {r}\n\
         \x20 3. on both: lockstep daemon (or: systemctl start lockstep)\n\
         \x20 4. on {first}: lockstep promote {r}\n\
         \x20 5. attach a client: lockstep uri {r} prints the address\n",
        config = config.display(),
        secret = secret.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn plan(dir: &Path) -> InitPlan {
        InitPlan {
            resource: "r0".to_owned(),
            nodes: vec!["beta=fd00::2".to_owned(), "alpha=10.0.0.1:7900".to_owned()],
            disk: "/dev/vdb".to_owned(),
            size: None,
            dir: dir.to_owned(),
        }
    }

    #[test]
    fn writes_what_load_accepts_and_never_twice() {
        let dir = tempfile::tempdir().unwrap();
        let steps = init(&plan(dir.path())).unwrap();
        assert!(steps.contains("lockstep create-md r0 --source"), "{steps}");
        let file = dir.path().join("lockstep.toml");
        let config = Config::load(&file).unwrap();
        assert_eq!(config.node_names(), "alpha, beta");
        assert_eq!(config.nodes[0].address.to_string(), "10.0.0.1:7900");
        assert_eq!(config.nodes[1].address.to_string(), "[fd00::2]:7800");
        assert_eq!(std::fs::metadata(&config.secret_file).unwrap().permissions().mode() & 0o777, 0o600);
        secret::load(&config.secret_file).unwrap();
        let before = std::fs::read(&config.secret_file).unwrap();
        assert_eq!(init(&plan(dir.path())).unwrap_err().code, 10);
        assert_eq!(std::fs::read(&config.secret_file).unwrap(), before);
    }

    #[test]
    fn refuses_nonsense_before_writing() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = plan(dir.path());
        one.nodes.truncate(1);
        let mut relative = plan(dir.path());
        relative.disk = "vdb".to_owned();
        let mut bad_name = plan(dir.path());
        bad_name.nodes[0] = "al pha=1.2.3.4".to_owned();
        for plan in [one, relative, bad_name] {
            assert_eq!(init(&plan).unwrap_err().code, 2);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
