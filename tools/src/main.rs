//! The binary: all of it is in the library, so that the parsers of what people write can be fuzzed.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    lockstep::main()
}
