//! Everything changes, for as long as one likes, under traffic that must not
//! notice: `cargo xtask soak` runs it.

mod churn;
mod run;
mod samples;
mod traffic;

use std::{process::ExitCode, time::Duration};

use proxy_tests::interrupt;

const USAGE: &str = "soak MINUTES";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let minutes: Option<f64> = arguments.next().and_then(|minutes| minutes.parse().ok());
    let time = minutes.and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok());
    let (Some(time), None) = (time, arguments.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match interrupt::watch().and_then(|()| run::run(time)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
