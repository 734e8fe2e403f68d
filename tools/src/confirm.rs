//! Asking once more before acknowledged writes may be given up.
//!
//! Whoever sits at a terminal types the name of the resource, so that a line taken from the history does not
//! promote the wrong copy. A script means what it says: without a terminal nothing is asked.

use crate::failure::Failure;
use std::io::{BufRead, IsTerminal, Write};

/// Asks for the resource's name, if there is somebody to ask. `lost` says what is at stake.
pub(crate) fn confirm(resource: &str, lost: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    let mut stderr = std::io::stderr().lock();
    let asked = write!(stderr, "{resource}: {lost}\nType the name of the resource to go on: ");
    let mut answer = String::new();
    asked
        .and_then(|()| stderr.flush())
        .and_then(|()| std::io::stdin().lock().read_line(&mut answer))
        .map_err(|error| Failure::generic(format!("terminal: {error}")))?;
    judge(resource, &answer)
}

fn judge(resource: &str, answer: &str) -> Result<(), Failure> {
    if answer.trim() == resource {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "\"{}\" is not {resource}: nothing was changed (scripts say --yes)",
        answer.trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_itself_confirms() {
        assert_eq!(judge("r0", "r0\n"), Ok(()));
        assert_eq!(judge("r0", " r0 \r\n"), Ok(()));
        for answer in ["", "\n", "y\n", "yes\n", "R0\n", "r\n", "r00\n", "r0 r0\n"] {
            assert_eq!(judge("r0", answer).unwrap_err().code, crate::failure::REFUSED, "{answer:?}");
        }
    }
}
