//! The commands of `proxy-agent`, one file each.

pub(crate) mod check;
pub(crate) mod cleanup;
pub(crate) mod completions;
pub(crate) mod config;
pub mod explain;
pub(crate) mod get;
pub(crate) mod man;
pub(crate) mod run;
pub(crate) mod takeover;

use std::process::ExitCode;

use tracing::warn;

use crate::{
    cli::{
        CleanupArgs, Cli, Command, ConfigCommand, OneShotArgs,
        layers::{self, Configuration, Given},
    },
    sys, telemetry,
};

/// Serves, or does what is to be done once.
fn once_or_run(once: OneShotArgs, given: Given) -> anyhow::Result<()> {
    let OneShotArgs {
        write_config_to,
        init_only,
        cleanup,
    } = once;
    let mut configuration = Configuration::new(given);
    let effective = configuration.load()?;
    if let Some(path) = write_config_to {
        return config::write(&effective, &path);
    }
    if cleanup {
        return cleanup::cleanup(&CleanupArgs {
            paths: effective.args.paths,
            kube_proxy: false,
            force: false,
        });
    }
    let unknown = unknown_variables();
    if !unknown.is_empty() {
        warn!("{}", config::unknown_variables(&unknown));
    }
    effective.log();
    if init_only {
        return run::initialise(&effective.config()?);
    }
    sys::allocator::share_memory_among_threads();
    run::run(configuration, effective.config()?)
}

fn unknown_variables() -> Vec<String> {
    layers::unknown_variables(std::env::vars_os().map(|(name, _)| name))
}

/// Does what the command line says and returns how to exit.
pub fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    // The answer is what counts, not how it came about.
    let usual = match cli.command {
        Command::Explain(_) | Command::Config(_) => "warn",
        _ => "info",
    };
    telemetry::init(&cli.log.into(), usual)?;
    match cli.command {
        Command::Run(args) => {
            once_or_run(args.one_shot, cli.given)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(args) => {
            let ConfigCommand::Show(args) = args.command;
            let effective = Configuration::new(cli.given).load()?;
            config::show(&effective, &unknown_variables(), args.output)?;
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
