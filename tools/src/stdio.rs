//! One client on standard input and output: as inetd, ssh and libnbd's `connect_command` start a server, and fuzzers.
//!
//! The server has a listening socket that nobody else knows, and two threads carry bytes between it and the standard
//! streams. The end of the input is that of the client; when the server has closed the connection, all of its last
//! bytes were written, or their reader is gone.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use tokio::sync::oneshot;

/// Where the server waits for its only client.
pub(crate) struct Stdio {
    path: PathBuf,
    listener: UnixListener,
}

impl Stdio {
    /// In a directory that nobody else may enter.
    pub(crate) fn bind(dir: &Path) -> io::Result<Self> {
        let path = dir.join("stdio");
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    /// For the server to listen on.
    pub(crate) fn listener(&self) -> io::Result<OwnedFd> {
        self.listener.try_clone().map(OwnedFd::from)
    }

    /// Connects the standard streams; `ended` hears of the end of the connection. The server need not listen yet.
    pub(crate) fn connect(&self, ended: oneshot::Sender<()>) -> io::Result<()> {
        let mut inward = UnixStream::connect(&self.path)?;
        let mut outward = inward.try_clone()?;
        // Raw streams: the buffered ones of the standard library would keep answers back. A thread that still waits for
        // input when the process ends goes with it.
        let mut input = file_of(&io::stdin())?;
        let mut output = file_of(&io::stdout())?;
        thread::Builder::new().name("lockstep-stdin".into()).spawn(move || {
            let _ = io::copy(&mut input, &mut inward);
            let _ = inward.shutdown(Shutdown::Write);
        })?;
        thread::Builder::new().name("lockstep-stdout".into()).spawn(move || {
            let _ = io::copy(&mut outward, &mut output);
            let _ = ended.send(());
        })?;
        Ok(())
    }
}

/// The file behind a standard stream.
fn file_of(stream: &impl AsFd) -> io::Result<File> {
    stream.as_fd().try_clone_to_owned().map(File::from)
}
