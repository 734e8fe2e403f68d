//! QEMU's control protocol, as much of it as starting a mirror takes.

use crate::wait_for;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A control connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    /// Names of events that came while an answer was awaited.
    events: Vec<String>,
}

impl Qmp {
    /// Connects and agrees on the protocol.
    pub fn open(socket: &Path) -> Qmp {
        // QEMU makes its sockets one after the other.
        let stream = wait_for("QMP", ANSWER_LIMIT, || UnixStream::connect(socket).map_err(|e| e.to_string()));
        stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("read time-out");
        let lines = BufReader::new(stream.try_clone().expect("duplicate a socket"));
        let mut qmp = Qmp { stream, lines, events: Vec::new() };
        let greeting = qmp.receive();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.call("qmp_capabilities", &json!({}));
        qmp
    }

    /// Executes a command; panics if it fails.
    pub fn call(&mut self, command: &str, arguments: &Value) {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{request}").expect("send to QMP");
        loop {
            let message = self.receive();
            match message["event"].as_str() {
                Some(event) => self.events.push(event.to_string()),
                None => return assert!(message.get("return").is_some(), "{command}: {message}"),
            }
        }
    }

    /// Until this event came, if it did not come already.
    pub fn wait_event(&mut self, name: &str) {
        while !self.events.iter().any(|event| event == name) {
            let message = self.receive();
            self.events.extend(message["event"].as_str().map(str::to_string));
        }
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("QMP answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QMP said {line:?}: {error}"))
    }
}
