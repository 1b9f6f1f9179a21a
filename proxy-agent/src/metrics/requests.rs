//! The requests to the API server, under the names that all of Kubernetes' components have
//! (S115).

use std::{sync::LazyLock, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The requests of this process, whichever client they are of.
static REQUESTS: LazyLock<Requests> = LazyLock::new(Requests::default);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    code: String,
    host: String,
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Took {
    host: String,
    verb: String,
}

#[derive(Clone, Debug, Default)]
struct Requests {
    answered: Family<Answered, Counter>,
    took: Durations,
}

/// In the buckets of Kubernetes' components.
#[derive(Clone, Debug)]
struct Durations(Family<Took, Histogram>);

impl Default for Durations {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| {
            Histogram::new([
                0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0,
            ])
        }))
    }
}

/// Registers the requests of this process.
pub(super) fn register(registry: &mut Registry) {
    registry.register(
        "requests",
        "Requests to the API server, by status, method and host",
        REQUESTS.answered.clone(),
    );
    registry.register_with_unit(
        "request_duration",
        "Time until the API server answers, by verb and host",
        Unit::Seconds,
        REQUESTS.took.0.clone(),
    );
}

/// A request was answered with a status, or failed without one.
pub fn note(host: &str, method: &str, code: Option<u16>, duration: Duration) {
    let answered = Answered {
        // As client-go has it.
        code: code.map_or_else(|| "<error>".to_owned(), |code| code.to_string()),
        host: host.to_owned(),
        method: method.to_owned(),
    };
    REQUESTS.answered.get_or_create(&answered).inc();
    let took = Took {
        host: host.to_owned(),
        verb: method.to_owned(),
    };
    let took = REQUESTS.took.0.get_or_create(&took);
    took.observe(duration.as_secs_f64());
}
