//! Session affinity of a Service.

use super::{ServiceProblem, fields::AffinityConfig};
use crate::model::{
    Problems,
    api::{Field, Malformed},
};

/// The API's default timeout, in seconds (S72).
pub(super) const DEFAULT_SECONDS: u32 = 10_800;
const DEFAULT_IS_USED: &str = "10800 seconds are used";

/// Returns the seconds after which a client without a new connection is forgotten;
/// `None` without session affinity.
///
/// A malformed sessionAffinity fails: without affinity clients would lose their
/// backends. A malformed timeout is treated like one that is not positive.
pub(super) fn seconds(
    affinity: Field<Box<str>>,
    config: Field<AffinityConfig>,
    problems: &mut Problems,
) -> Result<Option<u32>, Malformed> {
    match affinity.at("spec.sessionAffinity")?.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return Ok(None),
        Some(other) => {
            problems.add(ServiceProblem::SessionAffinity(other.to_owned()));
            return Ok(None);
        }
    }
    let timeout = problems.note(timeout(config), DEFAULT_IS_USED).flatten();
    let seconds = match timeout.map(|timeout| (timeout, u32::try_from(timeout))) {
        None => DEFAULT_SECONDS,
        Some((_, Ok(seconds @ 1..))) => seconds,
        Some((timeout, _)) => {
            problems.add(ServiceProblem::AffinityTimeout(timeout));
            DEFAULT_SECONDS
        }
    };
    Ok(Some(seconds))
}

fn timeout(config: Field<AffinityConfig>) -> Result<Option<i64>, Malformed> {
    let config = config.or_default("spec.sessionAffinityConfig")?;
    let client_ip = config.client_ip;
    let client_ip = client_ip.or_default("spec.sessionAffinityConfig.clientIP")?;
    let timeout = client_ip.timeout_seconds;
    timeout.at("spec.sessionAffinityConfig.clientIP.timeoutSeconds")
}
