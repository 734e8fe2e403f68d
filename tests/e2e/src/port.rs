//! A port of loopback that is kept for one daemon, also while that daemon does not run.
//!
//! The socket is bound and never listens. The kernel gives its port to nobody who asks for any port, nor to an
//! outgoing connection, and lets a daemon that asks for it by number have it, as often as it is started.

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, ipproto, socket, sockopt};
use std::net::SocketAddr;

/// A port, for as long as it lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _socket: OwnedFd,
}

impl Port {
    /// One that nobody has.
    #[must_use]
    pub fn reserve() -> Port {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP)).expect("a socket");
        // The daemon says the same: that is what lets both have the address.
        sockopt::set_socket_reuseaddr(&socket, true).expect("an option of a socket");
        bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port of loopback");
        let address = SocketAddr::try_from(getsockname(&socket).expect("the address of a socket"));
        Port { number: address.expect("an address of IPv4").port(), _socket: socket }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn it_is_kept_for_who_asks_for_it_and_no_two_are_equal() {
        let ports: Vec<Port> = (0..200).map(|_| Port::reserve()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ports.len());
        for port in &ports {
            for _ in 0..2 {
                let daemon = TcpListener::bind(("127.0.0.1", port.number())).expect("the reserved port");
                assert!(TcpListener::bind(("127.0.0.1", port.number())).is_err(), "two listen there");
                drop(daemon);
            }
        }
    }
}
