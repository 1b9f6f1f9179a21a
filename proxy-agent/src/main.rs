//! The `proxy-agent` command.

use std::process::ExitCode;

use proxy_agent::{
    cli::{self, Cli, Command},
    commands::{check, cleanup, completions, explain, get, man, run},
    config::Config,
    sys, telemetry,
};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            if cli::is_wrong_usage(&error) {
                cli::WRONG_USAGE.into()
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the one line that says why a command failed"
)]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    // The answer is what counts, not how it came about.
    let usual = match cli.command {
        Command::Explain(_) => "warn",
        _ => "info",
    };
    telemetry::init(&cli.log.into(), usual)?;
    match cli.command {
        Command::Run(args) => {
            sys::memory::share_memory_among_threads();
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
