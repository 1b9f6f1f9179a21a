//! The programs' log.

use aya::Ebpf;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::debug;

/// Forwards the programs' log lines to the agent's log, on the current runtime. Programs
/// write any only if loaded with a log level.
pub fn forward(ebpf: &mut Ebpf) {
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(logger) => {
            tokio::spawn(async move {
                // SAFETY: the logger keeps the same descriptor open for life.
                let registered =
                    unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
                let Ok(mut logger) = registered else {
                    return;
                };
                while let Ok(mut guard) = logger.readable_mut().await {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
            });
        }
        // The programs were loaded without any log statement.
        Err(error) => debug!("no log of the datapath: {error}"),
    }
}
