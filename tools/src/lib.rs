//! Lockstep: block volumes kept in lockstep on two machines. The one binary: daemon, command line and
//! offline tools.
//!
//! Data goes to stdout, messages to stderr; each way of ending has its exit code (`failure`). A reader of
//! stdout that goes away early (`lockstep status | head`) is success.
#![forbid(unsafe_code)]

mod checkpoint;
mod cli;
mod config;
mod confirm;
mod control;
mod daemon;
mod demo;
mod failure;
pub mod fuzzing;
mod inherited;
mod offline;
mod output;
mod plain;
mod refusal;
mod secret;
mod status;
mod stdio;
mod text;
mod tls;
mod verbs;

use clap::Parser;
use cli::{Cli, ConfigVerb, Verb};
use failure::Failure;
use output::Output;
use std::process::ExitCode;

/// The program: reads its command line, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(&cli.global);
    match run(&cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: &Cli, output: &Output) -> Result<(), Failure> {
    let global = &cli.global;
    match &cli.verb {
        Verb::Daemon => daemon::run(global),
        Verb::Config(ConfigVerb::Init(args)) => offline::config_init(args, output),
        Verb::Config(ConfigVerb::Check) => offline::config_check(global, output),
        Verb::CreateMd(args) => offline::create_md(global, args, output),
        Verb::DumpMd(args) => offline::dump_md(global, args, output),
        Verb::Compare(args) => offline::compare(args, output),
        Verb::Demo(args) => demo::run(args),
        Verb::Nbd(args) => plain::run(args),
        Verb::Version => {
            let version = control::VersionDoc::current();
            output.data(&version, || format!("lockstep {}\n", version.version))
        }
        verb => verbs::run(global, verb, output),
    }
}
