//! The cable between the two nodes: a TCP relay in this process that can be cut and mended.
//!
//! Invariants: a link that was cut stays dead (what it swallowed is lost, as in a pulled cable; neither end
//! is told), and only links made after `mend` carry bytes. The end of one side ends the other, unless the
//! cable is cut. Tolerates that either end dies at any moment.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A relay from an address of its own to one target. It ends when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    cable: Arc<Cable>,
    accepting: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Cable {
    cut: AtomicBool,
    ended: AtomicBool,
    carried_bytes: AtomicU64,
    /// Both sockets of each link, to be shut when the cable is mended or the relay ends.
    links: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens on a free port of the loopback address and relays to `target`.
    pub(crate) fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let cable = Arc::new(Cable::default());
        let shared = Arc::clone(&cable);
        let accepting = thread::spawn(move || accept(&listener, target, &shared));
        Ok(Proxy { address, cable, accepting: Some(accepting) })
    }

    /// Where to dial.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Pulls the cable: nothing passes any more, and neither end is told. New connections are closed at once.
    pub(crate) fn cut(&self) {
        self.cable.cut.store(true, Ordering::SeqCst);
    }

    /// Plugs the cable in again. Links of before are closed; new ones work.
    pub(crate) fn mend(&self) {
        self.cable.shut_links();
        self.cable.cut.store(false, Ordering::SeqCst);
    }

    /// Bytes carried so far, in both directions.
    pub(crate) fn carried_bytes(&self) -> u64 {
        self.cable.carried_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cable.ended.store(true, Ordering::SeqCst);
        self.cable.shut_links();
        // Wakes the accepting thread, which then sees that it is over.
        if TcpStream::connect(self.address).is_ok()
            && let Some(accepting) = self.accepting.take()
        {
            let _ = accepting.join();
        }
    }
}

impl Cable {
    fn shut_links(&self) {
        for socket in self.links.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // An error says that the socket is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, cable: &Arc<Cable>) {
    for dialler in listener.incoming() {
        if cable.ended.load(Ordering::SeqCst) {
            return;
        }
        // A connection that could not be made is the dialler's to try again.
        if let Ok(dialler) = dialler
            && !cable.is_cut()
        {
            let _ = connect(dialler, target, cable);
        }
    }
}

fn connect(dialler: TcpStream, target: SocketAddr, cable: &Arc<Cable>) -> io::Result<()> {
    let target = TcpStream::connect(target)?;
    for socket in [&dialler, &target] {
        socket.set_nodelay(true)?;
    }
    let kept = [dialler.try_clone()?, target.try_clone()?];
    cable.links.lock().unwrap_or_else(PoisonError::into_inner).extend(kept);
    for (from, to) in [(dialler.try_clone()?, target.try_clone()?), (target, dialler)] {
        let cable = Arc::clone(cable);
        thread::spawn(move || relay(from, to, &cable));
    }
    Ok(())
}

/// Carries one direction until either end is gone.
fn relay(mut from: TcpStream, mut to: TcpStream, cable: &Cable) {
    let mut buffer = vec![0; 256 << 10];
    let mut lost = false;
    while let Ok(length_bytes @ 1..) = from.read(&mut buffer) {
        // A hole in the stream must never be followed by what came later.
        lost |= cable.is_cut();
        if lost {
            continue;
        }
        cable.carried_bytes.fetch_add(length_bytes as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..length_bytes]).is_err() {
            break;
        }
    }
    // Through a pulled cable the other end does not hear that this one went; `mend` closes it.
    if !lost && !cable.is_cut() {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn link(proxy: &Proxy, far: &TcpListener) -> (TcpStream, TcpStream) {
        let near = TcpStream::connect(proxy.address()).unwrap();
        let (far, _) = far.accept().unwrap();
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        (near, far)
    }

    #[test]
    fn cut_is_silent_and_mend_ends_what_was_cut() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let (mut near, mut far) = link(&proxy, &listener);
        let mut byte = [0];
        near.write_all(b"a").unwrap();
        far.read_exact(&mut byte).unwrap();
        far.write_all(b"b").unwrap();
        near.read_exact(&mut byte).unwrap();
        assert_eq!((byte, proxy.carried_bytes()), (*b"b", 2));

        proxy.cut();
        near.write_all(b"lost").unwrap();
        far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert_eq!(far.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        assert!(matches!(refused.read(&mut byte), Ok(0) | Err(_)), "a new connection got through");

        proxy.mend();
        assert!(matches!(far.read(&mut byte), Ok(0) | Err(_)), "the old link lives on");
        let (mut near, mut far) = link(&proxy, &listener);
        near.write_all(b"c").unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!((byte, proxy.carried_bytes()), (*b"c", 3));
    }

    #[test]
    fn end_of_one_side_ends_the_other() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
        let (near, mut far) = link(&proxy, &listener);
        drop(near);
        assert!(matches!(far.read(&mut [0]), Ok(0) | Err(_)));
        drop(proxy);
    }
}
