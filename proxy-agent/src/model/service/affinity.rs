//! Session affinity of a Service.

use k8s_openapi::api::core::v1 as api;

use super::ServiceProblem;

/// What the API sets if nothing is said (S72).
pub(super) const DEFAULT_SECONDS: u32 = 10_800;

/// How long a client without a new connection is remembered; nothing if not at
/// all.
pub(super) fn seconds(spec: &api::ServiceSpec, problems: &mut Vec<ServiceProblem>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            problems.push(ServiceProblem::SessionAffinity(other.to_owned()));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let timeout = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = match timeout.map(|timeout| (timeout, u32::try_from(timeout))) {
        None => DEFAULT_SECONDS,
        Some((_, Ok(seconds @ 1..))) => seconds,
        Some((timeout, _)) => {
            problems.push(ServiceProblem::AffinityTimeout(timeout));
            DEFAULT_SECONDS
        }
    };
    Some(seconds)
}
