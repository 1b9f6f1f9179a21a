//! The `proxy-agent` command.

use std::process::ExitCode;

use proxy_agent::{cli, commands};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match commands::execute(cli) {
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
