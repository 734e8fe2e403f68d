//! Tells systemd how far the daemon is: one datagram, if `NOTIFY_SOCKET` asks for it.
//!
//! Without the variable, or when nobody listens, nothing happens: the daemon runs without systemd as well.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Send a state, for example `READY=1`.
pub(crate) fn send(state: &str) {
    if let Some(target) = std::env::var_os("NOTIFY_SOCKET") {
        let target = target.to_string_lossy();
        if let Err(error) = send_to(&target, state) {
            tracing::warn!("NOTIFY_SOCKET {target}: {error}");
        }
    }
}

fn send_to(target: &str, state: &str) -> std::io::Result<()> {
    let address = match target.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(target)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_paths_and_abstract_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("lockstep-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, target) in
            [(by_path, path.to_string_lossy().into_owned()), (by_name, format!("@{name}"))]
        {
            send_to(&target, "READY=1").unwrap();
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(send_to("/nowhere/notify", "READY=1").is_err());
    }
}
