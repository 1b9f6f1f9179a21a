//! Tandem at work: two nodes, some pods and a Service, in network namespaces
//! of this machine. `cargo xtask demo` runs it.

mod narrator;
mod publisher;
mod stage;
mod story;
mod web;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use proxy_tests::interrupt::{self, Interrupted};

const USAGE: &str = "\
demo [--keep] [--kubernetes]
  --keep        leave everything up at the end, until Enter or Ctrl-C
  --kubernetes  with a real API server and kubectl instead of manifests";

/// The options of the demo.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    keep: bool,
    kubernetes: bool,
}

fn main() -> ExitCode {
    let mut options = Options::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--keep" => options.keep = true,
            "--kubernetes" => options.kubernetes = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ => {
                complain(&format!("{argument}: not known\n{USAGE}"));
                return ExitCode::from(2);
            }
        }
    }
    // Everything is removed when this returns, however it does.
    match interrupt::watch().and_then(|()| story::play(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() || interrupt::requested() => {
            complain("Interrupted; everything is removed.");
            ExitCode::from(130)
        }
        Err(error) => {
            complain(&format!("demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints an error on standard error, if that is still open.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "\n{text}");
}
