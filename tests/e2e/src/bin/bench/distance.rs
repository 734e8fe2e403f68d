//! A wire of some length: each byte takes so long on its way, and any number of them are under way at the same time.
//!
//! The kernel of the host need not have a queue that delays packets (`sch_netem`), so this is a proxy between the
//! daemons. One thread reads and notes when each byte is due, another one sends what is due: nothing but time is
//! between them, no bandwidth is taken away. The kernel's TCP window does not take part in it, since either
//! connection ends at the proxy: what a daemon itself keeps under way is what is seen.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 256 << 10;
/// Thread sleeps end up to 50 us late by default.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::MIN;
const ECHOES: usize = 64;

/// A proxy. Its threads end with the connections, and the last one with the process.
pub(crate) struct Distance {
    port: u16,
}

impl Distance {
    /// In front of a port of loopback, which need not listen yet.
    pub(crate) fn new(target_port: u16, round_trip: Duration) -> Distance {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen as proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        spawn(move || {
            for client in listener.incoming() {
                let target = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target_port)));
                // A target that does not listen looks like a closed connection.
                if let (Ok(client), Ok(target)) = (client, target) {
                    join(&client, &target, round_trip / 2).expect("set up a proxied connection");
                }
            }
        });
        Distance { port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How long a byte takes to come back over such a wire: with the proxy's own share, which `round_trip` has not.
    pub(crate) fn measured(round_trip: Duration) -> Duration {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen for echoes");
        let target_port = listener.local_addr().expect("an address").port();
        let wire = Distance::new(target_port, round_trip);
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, wire.port())).expect("the wire");
        near.set_nodelay(true).expect("an option of a socket");
        let (mut far, _) = listener.accept().expect("the other end");
        far.set_nodelay(true).expect("an option of a socket");
        let echo = spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
        });
        let mut times: Vec<Duration> = (0..ECHOES)
            .map(|_| {
                let begin = Instant::now();
                near.write_all(&[1]).and_then(|()| near.read_exact(&mut [0])).expect("an echo");
                begin.elapsed()
            })
            .collect();
        drop(near);
        echo.join().expect("the echo ends with its connection");
        times.sort_unstable();
        times[times.len() / 2]
    }
}

fn join(client: &TcpStream, target: &TcpStream, delay: Duration) -> std::io::Result<()> {
    for (from, to) in [(client, target), (target, client)] {
        to.set_nodelay(true)?;
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (sender, receiver) = channel();
        spawn(move || take(from, delay, &sender));
        spawn(move || deliver(to, &receiver));
    }
    Ok(())
}

/// Reads until the connection ends; then its queue ends too.
fn take(mut from: TcpStream, delay: Duration, queue: &Sender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if queue.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}

fn deliver(mut to: TcpStream, queue: &Receiver<(Instant, Vec<u8>)>) {
    rustix::thread::set_current_timer_slack(Some(TIMER_SLACK_NS)).expect("precise sleeps");
    while let Ok((due, bytes)) = queue.recv() {
        sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // Both ways end when one does. An end that is closed already is as good.
    drop(to.shutdown(Shutdown::Both));
}
