//! Says what is wrong with the watches: once when it begins, from time to time
//! while it goes on, and when it is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::runtime::watcher::Error;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{metrics::Metrics, model::Kind};

/// An error that persists is logged this often.
const REPEAT: Duration = Duration::from_mins(5);
/// The status of a watch that began at a version the API server no longer
/// knows. Happens to every watch that was silent for long.
const GONE: u16 = 410;
/// The status of a kind that the API server does not know.
const NOT_FOUND: u16 = 404;

/// The log of one API server's watches.
pub struct ErrorLog {
    server: String,
    metrics: Metrics,
    /// Kinds whose watch failed and has not succeeded since.
    failing: BTreeSet<Kind>,
    /// Messages, each with the time it was logged. One cause often hits all watches.
    logged: BTreeMap<String, Instant>,
    /// Kinds that the API server does not have.
    absent: BTreeSet<Kind>,
}

impl ErrorLog {
    /// A log in which nothing is wrong yet.
    pub fn new(server: String, metrics: Metrics) -> Self {
        Self {
            server,
            metrics,
            failing: BTreeSet::new(),
            logged: BTreeMap::new(),
            absent: BTreeSet::new(),
        }
    }

    /// A watch failed.
    pub fn failed(&mut self, kind: Kind, error: &Error, now: Instant) {
        if is_expired(error) {
            debug!(%kind, "watch expired, listing again");
            return;
        }
        self.failing.insert(kind);
        self.metrics.watch_error(&kind);
        let message = describe(error);
        if self.is_news(&message, now) {
            warn!(
                server = self.server,
                "cannot watch {kind}s, trying again; the last state stays in force: {message}"
            );
            self.logged.insert(message, now);
        }
    }

    /// The API server does not have a kind that some versions do not have.
    pub fn not_served(&mut self, kind: Kind) {
        self.failing.remove(&kind);
        if self.absent.insert(kind) {
            info!(server = self.server, "the API server has no {kind}s");
        }
    }

    /// A watch works.
    pub fn works(&mut self, kind: Kind) {
        self.absent.remove(&kind);
        if self.failing.remove(&kind) && self.failing.is_empty() {
            info!(server = self.server, "watching the API server again");
            self.logged.clear();
        }
    }

    fn is_news(&self, message: &str, now: Instant) -> bool {
        let logged = self.logged.get(message);
        logged.is_none_or(|at| now.duration_since(*at) >= REPEAT)
    }
}

fn is_expired(error: &Error) -> bool {
    match error {
        Error::WatchError(status) | Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == GONE
        }
        _ => false,
    }
}

/// Returns whether the API server does not know the kind that was asked for.
pub(super) fn is_not_found(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status)) => status.code == NOT_FOUND,
        _ => false,
    }
}

/// One line, with what the operator may do where that is clear.
fn describe(error: &Error) -> String {
    let text = text_of(error);
    if text.is_empty() {
        // Whatever it is, it says nothing: its type says more.
        return format!("{error:?}");
    }
    text
}

fn text_of(error: &Error) -> String {
    let source = match error {
        Error::InitialListFailed(source)
        | Error::WatchStartFailed(source)
        | Error::WatchFailed(source) => source,
        Error::WatchError(status) => return advise(status.code, &status.message),
        Error::NoResourceVersion => return error.to_string(),
    };
    match source {
        kube::Error::Api(status) => advise(status.code, &status.message),
        kube::Error::Service(cause) => chain(&**cause),
        other => chain(other),
    }
}

fn advise(code: u16, message: &str) -> String {
    let message = match message.trim() {
        // What the client makes of a line that it cannot read.
        "" if code == 0 => return "it sent something that is no event of a watch".to_owned(),
        "" => "it gives no reason",
        message => message,
    };
    match code {
        401 => format!("{message} (are the credentials valid?)"),
        403 => format!("{message} (does the ClusterRole system:node-proxier apply?)"),
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
    use kube::core::Status;
    use rstest::rstest;

    use super::*;

    fn api_error(code: u16) -> Error {
        Error::WatchError(Box::new(Status::failure("no", "Because").with_code(code)))
    }

    fn silent(code: u16) -> Box<Status> {
        Box::new(Status::failure("", "").with_code(code))
    }

    /// Has nothing to say.
    #[derive(Debug, thiserror::Error)]
    #[error("\n \n")]
    struct Blank(#[source] Option<std::io::Error>);

    /// Nothing at all, and what the client makes of an event that it cannot
    /// read: a status of which nothing is set.
    #[rstest]
    #[case(
        Error::WatchFailed(kube::Error::Api(Box::default())),
        "it sent something that is no event of a watch"
    )]
    #[case(Error::WatchError(silent(500)), "it gives no reason (status 500)")]
    #[case(
        Error::WatchError(silent(401)),
        "it gives no reason (are the credentials valid?)"
    )]
    #[case(
        Error::InitialListFailed(kube::Error::Service(Box::new(Blank(None)))),
        "InitialListFailed(Service(Blank(None)))"
    )]
    #[case(
        Error::InitialListFailed(kube::Error::Service(Box::new(Blank(Some(
            std::io::Error::other("cut")
        ))))),
        "cut"
    )]
    fn no_error_is_silent(#[case] error: Error, #[case] expected: &str) {
        assert_eq!(describe(&error), expected);
    }

    #[rstest]
    #[case(api_error(403), "no (does the ClusterRole system:node-proxier apply?)")]
    #[case(api_error(401), "no (are the credentials valid?)")]
    #[case(api_error(500), "no (status 500)")]
    #[case(
        Error::WatchFailed(kube::Error::ReadEvents(std::io::Error::other("cut"))),
        "Error reading events stream: cut"
    )]
    #[case(
        Error::InitialListFailed(kube::Error::Service("connection refused".into())),
        "connection refused"
    )]
    fn errors_are_one_line(#[case] error: Error, #[case] expected: &str) {
        assert_eq!(describe(&error), expected);
    }

    /// Once for all watches, again after a while, and anew after it was over.
    #[test]
    fn an_error_that_persists_is_logged_now_and_then() {
        let mut log = ErrorLog::new("https://api.example.com".to_owned(), Metrics::default());
        let start = Instant::now();
        let logged_at = |log: &ErrorLog| log.logged.values().max().copied();

        log.failed(Kind::Service, &api_error(500), start);
        log.failed(Kind::EndpointSlice, &api_error(500), start + REPEAT / 2);
        assert_eq!(logged_at(&log), Some(start));
        log.failed(Kind::Service, &api_error(500), start + REPEAT);
        assert_eq!(logged_at(&log), Some(start + REPEAT));
        log.failed(Kind::Service, &api_error(403), start + REPEAT * 3 / 2);
        assert_eq!(logged_at(&log), Some(start + REPEAT * 3 / 2));

        log.works(Kind::Service);
        assert_eq!(log.logged.len(), 2, "another watch still fails");
        log.works(Kind::EndpointSlice);
        assert_eq!(logged_at(&log), None);
    }

    #[test]
    fn an_expired_watch_is_no_error() {
        let mut log = ErrorLog::new("https://api.example.com".to_owned(), Metrics::default());
        log.failed(Kind::Service, &api_error(410), Instant::now());
        assert!(log.logged.is_empty() && log.failing.is_empty());
    }

    #[test]
    fn a_kind_that_is_not_served_is_no_failure() {
        let status = |code| Box::new(Status::failure("no", "Because").with_code(code));
        let list = |code| Error::InitialListFailed(kube::Error::Api(status(code)));
        assert!(is_not_found(&list(404)) && !is_not_found(&list(403)));
        assert!(!is_not_found(&api_error(404)), "an object, not its kind");

        let mut log = ErrorLog::new("https://api.example.com".to_owned(), Metrics::default());
        log.failed(Kind::ServiceCidr, &list(503), Instant::now());
        log.not_served(Kind::ServiceCidr);
        assert!(log.failing.is_empty() && log.absent.contains(&Kind::ServiceCidr));
        log.works(Kind::ServiceCidr);
        assert!(log.absent.is_empty());
    }
}
