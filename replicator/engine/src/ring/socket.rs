//! A socket address in the form that the kernel reads.
#![allow(unsafe_code)]

use std::mem;
use std::net::SocketAddr;

/// An IPv4 or IPv6 address and port.
pub(crate) struct SocketAddress {
    storage: Storage,
    original: SocketAddr,
}

enum Storage {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl std::fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.original.fmt(f)
    }
}

impl SocketAddress {
    /// Converts.
    pub(crate) fn new(original: SocketAddr) -> Self {
        let storage = match original {
            SocketAddr::V4(address) => {
                // SAFETY: all-zero bytes are a valid sockaddr_in.
                let mut raw: libc::sockaddr_in = unsafe { mem::zeroed() };
                raw.sin_family = libc::AF_INET as libc::sa_family_t;
                raw.sin_port = address.port().to_be();
                raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
                Storage::V4(raw)
            }
            SocketAddr::V6(address) => {
                // SAFETY: all-zero bytes are a valid sockaddr_in6.
                let mut raw: libc::sockaddr_in6 = unsafe { mem::zeroed() };
                raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.sin6_port = address.port().to_be();
                raw.sin6_flowinfo = address.flowinfo();
                raw.sin6_addr.s6_addr = address.ip().octets();
                raw.sin6_scope_id = address.scope_id();
                Storage::V6(raw)
            }
        };
        Self { storage, original }
    }

    /// Pointer and length; valid as long as `self` is not moved.
    pub(super) fn as_raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match &self.storage {
            Storage::V4(raw) => (std::ptr::from_ref(raw).cast(), mem::size_of_val(raw) as libc::socklen_t),
            Storage::V6(raw) => (std::ptr::from_ref(raw).cast(), mem::size_of_val(raw) as libc::socklen_t),
        }
    }
}
