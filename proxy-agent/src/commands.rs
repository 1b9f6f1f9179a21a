//! The commands of `proxy-agent`, one file each.

pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod completions;
pub mod explain;
pub(crate) mod get;
pub(crate) mod man;
pub(crate) mod run;
pub(crate) mod takeover;

use std::process::ExitCode;

use crate::{
    cli::{Cli, Command},
    config::Config,
    sys, telemetry,
};

/// Does what the command line says and returns how to exit.
pub fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    // The answer is what counts, not how it came about.
    let usual = match cli.command {
        Command::Explain(_) => "warn",
        _ => "info",
    };
    telemetry::init(&cli.log.into(), usual)?;
    match cli.command {
        Command::Run(args) => {
            sys::allocator::share_memory_among_threads();
            let config = Config::try_from(args)?;
            run::run(&config)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Get(args) => {
            get::get(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Explain(args) => {
            explain::run(args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(paths) => Ok(check::check(&paths)),
        Command::Takeover(args) => takeover::run(&args),
        Command::Cleanup(args) => {
            cleanup::cleanup(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions(args) => {
            completions::print(&args);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(args) => {
            man::write(&args)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
