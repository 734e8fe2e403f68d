//! What people and programs write for the daemon: its configuration, and requests to its control API.
//!
//! The assertions stand in the program's own `fuzzing.rs`; here it is held that checking takes memory in proportion to
//! the text.

use lockstep_counting::measure;

use crate::input::Input;

/// Any text.
pub(crate) fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let ((), usage) = measure(|| lockstep::fuzzing::config(&text));
    assert!(usage.peak_bytes <= (1 << 18) + 200 * text.len() as u64, "{usage:?} for {} bytes", text.len());
}

/// One of the verbs, or any word, and any body.
pub(crate) fn control(data: &[u8]) {
    let mut input = Input::new(data);
    let verbs = [
        "promote",
        "demote",
        "connect",
        "disconnect",
        "invalidate",
        "sync",
        "resolve",
        "up",
        "attach",
        "detach",
        "down",
        "Promote",
        "",
    ];
    let (verb, body) = (input.one_of(&verbs), input.rest());
    let ((), usage) = measure(|| lockstep::fuzzing::control(verb, body));
    assert!(usage.peak_bytes <= (1 << 16) + 100 * body.len() as u64, "{usage:?} for {} bytes", body.len());
}
