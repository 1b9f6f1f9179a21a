//! Asks the program `stale_socket` whether a socket is connected to a UDP
//! backend that serves no more.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use proxy_common::socket::SocketQuery;

use crate::dataplane::pins::Pins;

/// The program's name.
pub const PROGRAM: &str = "stale_socket";
/// Offset of `ifindex` in `struct __sk_buff`.
const IFINDEX: usize = 40;
/// The query stands behind an Ethernet header, which the kernel wants.
const QUERY: usize = 14;
const FRAME: usize = QUERY + size_of::<SocketQuery>();

/// Sockets cannot be asked about.
#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    #[error("open pinned program {PROGRAM}")]
    Open(#[source] ProgramError),
    #[error("run program {PROGRAM}")]
    Run(#[source] ProgramError),
}

/// The program, ready to be asked from any thread.
pub struct StaleSockets {
    program: SchedClassifier,
}

impl StaleSockets {
    /// Opens the program where the agent has pinned it.
    pub fn open(pins: &Pins) -> Result<Self, StaleError> {
        let program = SchedClassifier::from_pin(pins.programs().join(PROGRAM));
        Ok(Self {
            program: program.map_err(StaleError::Open)?,
        })
    }

    /// Returns whether the socket that `query` names, of the calling thread's network
    /// namespace, is connected to a UDP backend that serves no more (S77).
    /// `interface` is the one that the socket is bound to, or 0.
    pub fn is_stale(&self, query: &SocketQuery, interface: u32) -> Result<bool, StaleError> {
        let mut frame = [0; FRAME];
        frame[QUERY..].copy_from_slice(&bytes(query));
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&interface.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = self.program.test_run(options).map_err(StaleError::Run)?;
        Ok(result.return_value == 1)
    }
}

/// The query as the program reads it.
fn bytes(query: &SocketQuery) -> [u8; size_of::<SocketQuery>()] {
    let mut bytes = [0; size_of::<SocketQuery>()];
    bytes[..8].copy_from_slice(&query.cookie.to_ne_bytes());
    bytes[8..24].copy_from_slice(&query.local_addr.octets);
    bytes[24..40].copy_from_slice(&query.peer_addr.octets);
    bytes[40..42].copy_from_slice(&query.local_port.to_bits().to_ne_bytes());
    bytes[42..44].copy_from_slice(&query.peer_port.to_bits().to_ne_bytes());
    bytes
}
