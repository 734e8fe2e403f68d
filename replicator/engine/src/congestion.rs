//! Which congestion control a TCP connection of ours uses.
//!
//! BBR, which many hosts have as their default, paces what it sends by a timer of its own. On a link as fast as memory
//! that timer is armed for every few segments: it took a fifth of the Primary's processor time for writes of 128 KiB
//! (docs/PERFORMANCE.md). How much may be under way between two nodes is bounded by the window of payload slots
//! already, so the plain control is the better default; a long or lossy link may want another one.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::StartError;

/// What is used where nothing is configured.
const DEFAULT: &str = "cubic";

/// Tries the configured one on a socket that nobody uses: one that cannot be had is a wrong setting, and is told as
/// one before any port is opened.
///
/// # Errors
/// As for [`set`].
pub(crate) fn check(configured: Option<&str>) -> Result<(), StartError> {
    if configured.is_none() {
        return Ok(());
    }
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| StartError::System { what: "a TCP socket", error: error.into() })?;
    set(&socket, configured).map_err(|error| StartError::Config(error.to_string()))
}

/// Gives a socket its control; connections that a listening socket accepts from then on inherit it.
///
/// # Errors
/// The configured one is not there, or not permitted. A kernel without the default keeps the host's choice.
pub(crate) fn set(socket: impl AsFd, configured: Option<&str>) -> io::Result<()> {
    match (set_tcp_congestion(socket, configured.unwrap_or(DEFAULT)), configured) {
        (Err(Errno::NOENT), Some(name)) => {
            let message = format!(
                "the kernel has no congestion control {name:?}: see net.ipv4.tcp_available_congestion_control, or load \
                 the module tcp_{name}"
            );
            Err(io::Error::new(io::ErrorKind::NotFound, message))
        }
        (Err(Errno::PERM), Some(name)) => {
            let message = format!(
                "congestion control {name:?} needs CAP_NET_ADMIN, or a place in net.ipv4.tcp_allowed_congestion_control"
            );
            Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
        }
        (Err(error), Some(_)) => Err(error.into()),
        (Err(error), None) => {
            tracing::debug!("no congestion control {DEFAULT} ({error}): that of the host stays");
            Ok(())
        }
        (Ok(()), _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::tcp_congestion;

    use super::*;

    #[test]
    fn what_a_listener_has_its_connections_inherit() {
        for configured in ["reno", "cubic"] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            set(&listener, Some(configured)).unwrap();
            let _dialed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert_eq!(tcp_congestion(&accepted).unwrap(), configured);
        }
    }

    #[test]
    fn only_a_configured_one_must_be_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = check(Some("hurry")).unwrap_err();
        assert!(matches!(error, StartError::Config(_)), "{error:?}");
        let error = error.to_string();
        assert!(error.contains("hurry") && error.contains("tcp_available_congestion_control"), "{error}");
        assert_eq!(set(&listener, Some("hurry")).unwrap_err().to_string(), error);
        check(Some("reno")).unwrap();
        check(None).unwrap();
        set(&listener, None).unwrap();
        assert_eq!(tcp_congestion(&listener).unwrap(), DEFAULT);
    }
}
