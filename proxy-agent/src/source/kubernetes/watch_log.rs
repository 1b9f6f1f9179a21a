//! Says what is wrong with a watch: once when it begins, and when it is over, however
//! long it lasts.

use std::collections::BTreeSet;

use kube::Resource;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::watcher::Error;
use crate::metrics::Metrics;

/// The log of one watch.
pub(super) struct WatchLog {
    server: String,
    /// As metrics have it: `Service`.
    kind: String,
    /// As roles have it: `services`, `endpointslices.discovery.k8s.io`.
    resource: String,
    /// What does not happen while the watch fails.
    consequence: &'static str,
    metrics: Metrics,
    failing: Option<Failing>,
    /// The API server does not have the kind.
    absent: bool,
}

struct Failing {
    since: Instant,
    /// The causes that have been logged, by their HTTP status; none for those that are
    /// no answers. A cause may change: from a refused connection to a missing permission.
    causes: BTreeSet<Option<u16>>,
}

impl WatchLog {
    /// The log of a watch that nothing is wrong with yet.
    pub(super) fn of<R: Resource<DynamicType = ()>>(
        server: &str,
        consequence: &'static str,
        metrics: Metrics,
    ) -> Self {
        let mut resource = R::plural(&()).into_owned();
        if !R::group(&()).is_empty() {
            resource = format!("{resource}.{}", R::group(&()));
        }
        Self {
            server: server.to_owned(),
            kind: R::kind(&()).into_owned(),
            resource,
            consequence,
            metrics,
            failing: None,
            absent: false,
        }
    }

    /// The watch failed.
    pub(super) fn failed(&mut self, error: &Error) {
        self.metrics.watch_error(&self.kind);
        if let Some(news) = self.news(error) {
            warn!(server = self.server, "{news}");
        } else {
            debug!(
                server = self.server,
                "cannot watch {}: {error}", self.resource
            );
        }
    }

    /// Returns what is to be said of a failure, if it is news.
    fn news(&mut self, error: &Error) -> Option<String> {
        let (kind, metrics) = (&self.kind, &self.metrics);
        let failing = self.failing.get_or_insert_with(|| {
            metrics.watch_failing(kind, true);
            Failing {
                since: Instant::now(),
                causes: BTreeSet::new(),
            }
        });
        if !failing.causes.insert(error.code()) {
            return None;
        }
        Some(format!(
            "cannot watch {}, trying again; {}: {}",
            self.resource,
            self.consequence,
            describe(error, &self.resource)
        ))
    }

    /// The API server does not have a kind that some versions do not have.
    pub(super) fn not_served(&mut self) {
        self.over();
        if !std::mem::replace(&mut self.absent, true) {
            info!(
                server = self.server,
                "the API server has no {}", self.resource
            );
        }
    }

    /// The watch works.
    pub(super) fn works(&mut self) {
        self.absent = false;
        if let Some(failing) = self.over() {
            let seconds = failing.since.elapsed().as_secs();
            info!(
                server = self.server,
                seconds, "watching {} again", self.resource
            );
        }
    }

    fn over(&mut self) -> Option<Failing> {
        self.metrics.watch_failing(&self.kind, false);
        self.failing.take()
    }
}

/// One line, with what the operator may do where that is clear.
fn describe(error: &Error, resource: &str) -> String {
    let text = match error {
        Error::List(source) | Error::Begin(source) | Error::BrokeOff(source) => {
            text_of(source, resource)
        }
        Error::Status(status) => advise(status.code, &status.message, resource),
        Error::NoVersion | Error::TooShort | Error::Incomplete => error.to_string(),
    };
    if text.is_empty() {
        // Whatever it is, it says nothing: its type says more.
        return format!("{error:?}");
    }
    text
}

fn text_of(error: &kube::Error, resource: &str) -> String {
    match error {
        kube::Error::Api(status) => advise(status.code, &status.message, resource),
        kube::Error::Service(cause) => chain(&**cause),
        other => chain(other),
    }
}

fn advise(code: u16, message: &str, resource: &str) -> String {
    let message = match message.trim() {
        // What the client makes of a line that it cannot read.
        "" if code == 0 => return "it sent something that is no event of a watch".to_owned(),
        "" => "it gives no reason",
        message => message,
    };
    match code {
        401 => format!("{message} (are the credentials valid?)"),
        403 => {
            format!("{message} (the agent's ClusterRole must allow list and watch of {resource})")
        }
        429 => format!("{message} (status 429: it has too much to do)"),
        _ => format!("{message} (status {code})"),
    }
}

/// An error and its causes in one line, none of them twice: many repeat their
/// source.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let first_line = |error: &dyn std::error::Error| {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| !line.is_empty());
        line.unwrap_or_default().to_owned()
    };
    let mut text = String::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        let line = first_line(error);
        if text.is_empty() {
            text = line;
        } else if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
    use kube::core::Status;
    use rstest::rstest;

    use super::*;

    fn api_error(code: u16) -> Error {
        Error::Status(Box::new(Status::failure("no", "Because").with_code(code)))
    }

    fn silent(code: u16) -> Box<Status> {
        Box::new(Status::failure("", "").with_code(code))
    }

    fn refused() -> Error {
        Error::Begin(kube::Error::Service("connection refused".into()))
    }

    fn log() -> WatchLog {
        WatchLog::of::<Service>("https://api.example.com", "all stays", Metrics::default())
    }

    /// Has nothing to say.
    #[derive(Debug, thiserror::Error)]
    #[error("\n \n")]
    struct Blank(#[source] Option<std::io::Error>);

    /// Nothing at all, and what the client makes of an event that it cannot
    /// read: a status of which nothing is set.
    #[rstest]
    #[case(
        Error::BrokeOff(kube::Error::Api(Box::default())),
        "it sent something that is no event of a watch"
    )]
    #[case(Error::Status(silent(500)), "it gives no reason (status 500)")]
    #[case(
        Error::Status(silent(401)),
        "it gives no reason (are the credentials valid?)"
    )]
    #[case(
        Error::List(kube::Error::Service(Box::new(Blank(None)))),
        "List(Service(Blank(None)))"
    )]
    #[case(
        Error::List(kube::Error::Service(Box::new(Blank(Some(std::io::Error::other(
            "cut"
        )))))),
        "cut"
    )]
    fn no_error_is_silent(#[case] error: Error, #[case] expected: &str) {
        assert_eq!(describe(&error, "services"), expected);
    }

    #[rstest]
    #[case(
        api_error(403),
        "no (the agent's ClusterRole must allow list and watch of services)"
    )]
    #[case(api_error(401), "no (are the credentials valid?)")]
    #[case(api_error(429), "no (status 429: it has too much to do)")]
    #[case(api_error(500), "no (status 500)")]
    #[case(
        Error::BrokeOff(kube::Error::ReadEvents(std::io::Error::other("cut"))),
        "Error reading events stream: cut"
    )]
    #[case(refused(), "connection refused")]
    #[case(Error::Incomplete, "the list broke off")]
    fn errors_are_one_line(#[case] error: Error, #[case] expected: &str) {
        assert_eq!(describe(&error, "services"), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_news_once_however_long_it_lasts() {
        let mut log = log();
        let news = log.news(&refused()).expect("news");
        assert_eq!(
            news,
            "cannot watch services, trying again; all stays: connection refused"
        );
        for _ in 0..1000 {
            tokio::time::advance(std::time::Duration::from_mins(1)).await;
            assert_eq!(log.news(&refused()), None);
        }
        assert!(log.news(&api_error(403)).is_some(), "another cause");
        assert!(log.news(&api_error(403)).is_none() && log.news(&refused()).is_none());
        log.works();
        assert!(log.failing.is_none() && log.news(&refused()).is_some());
    }

    #[test]
    fn permissions_are_named_as_roles_name_them() {
        let log = WatchLog::of::<EndpointSlice>("https://api.example.com", "", Metrics::default());
        assert_eq!(log.resource, "endpointslices.discovery.k8s.io");
    }

    #[test]
    fn a_kind_that_is_not_served_is_no_failure() {
        let mut log = log();
        assert!(log.news(&api_error(503)).is_some());
        log.not_served();
        assert!(log.failing.is_none() && log.absent);
        log.works();
        assert!(!log.absent);
    }
}
