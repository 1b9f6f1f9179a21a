//! One watch of the API server: what is there, then what changes.
//!
//! What is there comes as a stream of objects where the API server has streaming
//! lists (on by default since 1.34): neither it nor the agent then holds the whole
//! list in memory. Elsewhere it comes as one list. Both come from the API server's watch
//! cache and are no older than what was seen before, so that etcd is not read.
//!
//! A watch that ends is resumed where it was, without a list. Only when the API
//! server has forgotten that version are the objects listed again.

use std::vec;

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use kube::{
    Resource, ResourceExt as _,
    core::{Status, WatchEvent},
};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};
use tracing::debug;

use super::pacing::Pacing;

/// Seconds that a watch may last, the least and the most; the API server ends it then.
const WATCH_SECONDS: (u32, u32) = (200, 290);
/// A watch that ends before its time by no more than this has lasted.
const MARGIN: Duration = Duration::from_secs(2);
/// A watch that ends sooner has failed.
const SHORTEST: Duration = Duration::from_secs(1);
/// A watch that was open for so long works.
const WORKS_AFTER: Duration = Duration::from_secs(5);
/// A watch that was open for so long makes up for the failures before.
const FORGIVEN_AFTER: Duration = Duration::from_mins(1);

const GONE: u16 = 410;
const NOT_FOUND: u16 = 404;

/// The annotation of the bookmark after the last object there is.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// News of a watch.
#[derive(Debug)]
pub enum Event<K> {
    /// A list begins.
    Init,
    /// An object of the list.
    InitApply(K),
    /// The list is complete.
    InitDone,
    /// An object is new or has changed.
    Apply(K),
    Delete(K),
    /// The watch works again after an error.
    Recovered,
}

/// A reason why a watch does not go on. It is tried again by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot list: {0}")]
    List(#[source] kube::Error),
    #[error("cannot begin to watch: {0}")]
    Begin(#[source] kube::Error),
    #[error("the watch broke off: {0}")]
    BrokeOff(#[source] kube::Error),
    /// What the API server sent instead of an event.
    #[error("the watch was ended: {0}")]
    Status(Box<Status>),
    #[error("the list has no resourceVersion")]
    NoVersion,
    #[error("the watch was ended as soon as it began")]
    TooShort,
    #[error("the list broke off")]
    Incomplete,
}

impl Error {
    /// Returns what the API server said, if it said anything.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::List(kube::Error::Api(status))
            | Self::Begin(kube::Error::Api(status))
            | Self::BrokeOff(kube::Error::Api(status))
            | Self::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Returns the HTTP status, if there is one.
    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// Returns whether the API server does not have the kind that was asked for.
    pub fn is_absence(&self) -> bool {
        let asked = matches!(self, Self::List(_) | Self::Begin(_));
        asked && self.code() == Some(NOT_FOUND)
    }

    /// Returns whether the API server no longer knows the version to go on from.
    fn is_expiry(&self) -> bool {
        self.code() == Some(GONE)
    }
}

pub(super) type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

/// A list, and the version it is of.
pub(super) struct Listed<K> {
    pub(super) objects: Vec<K>,
    pub(super) version: Option<String>,
}

/// The requests for one kind of object.
pub(super) trait Requests {
    type Object: Resource;

    /// Asks for all objects, of a version that is not older than this.
    async fn list(&mut self, version: &str) -> kube::Result<Listed<Self::Object>>;

    /// Asks for all objects, as a stream that goes on with changes.
    async fn stream(&mut self, version: &str, seconds: u32) -> kube::Result<Events<Self::Object>>;

    /// Asks for the changes since a version.
    async fn watch(&mut self, version: &str, seconds: u32) -> kube::Result<Events<Self::Object>>;

    /// Something failed: the connection may be to be made anew.
    async fn failed(&mut self, error: &Error);
}

/// The stream of a watch's news. It never ends.
pub(super) fn events<R: Requests>(
    requests: R,
    pacing: Pacing,
) -> impl Stream<Item = Result<Event<R::Object>, Error>> {
    let watcher = Watcher {
        requests,
        pacing,
        state: State::Empty,
        not_before: None,
        streams: true,
        failing: false,
        seen: None,
        known: 0,
    };
    stream::unfold(watcher, |mut watcher| async {
        let news = watcher.next().await;
        Some((news, watcher))
    })
}

struct Watcher<R: Requests> {
    requests: R,
    pacing: Pacing,
    state: State<R::Object>,
    /// The time of the next request, if it has to wait.
    not_before: Option<Instant>,
    /// False once the API server has said that it streams no lists.
    streams: bool,
    /// Whether an error has been reported that is not over.
    failing: bool,
    /// The latest version seen.
    seen: Option<String>,
    /// Objects of the last list.
    known: usize,
}

enum State<K> {
    /// Nothing is known, or not what has changed since.
    Empty,
    /// Objects of a list that are to be passed on.
    Listing(vec::IntoIter<K>),
    /// The objects there are come as a stream.
    Streaming(Events<K>, u32),
    /// All is known up to the version seen last.
    Listed,
    Watching(Watch<K>),
}

struct Watch<K> {
    events: Events<K>,
    opened: Instant,
    seconds: u32,
    works: bool,
}

impl<K> Watch<K> {
    fn new(events: Events<K>, seconds: u32) -> Self {
        Self {
            events,
            opened: Instant::now(),
            seconds,
            works: false,
        }
    }

    /// Returns whether the API server ended it when it was due.
    fn has_lasted(&self) -> bool {
        self.opened.elapsed() + MARGIN >= Duration::from_secs(self.seconds.into())
    }
}

type News<K> = Option<Result<Event<K>, Error>>;

impl<R: Requests> Watcher<R> {
    async fn next(&mut self) -> Result<Event<R::Object>, Error> {
        loop {
            if let Some(news) = self.step().await {
                return news;
            }
        }
    }

    /// Does one thing; returns what it was if that is news.
    async fn step(&mut self) -> News<R::Object> {
        match std::mem::replace(&mut self.state, State::Empty) {
            State::Empty => {
                self.wait().await;
                if self.streams {
                    self.begin_stream().await
                } else {
                    self.list().await
                }
            }
            State::Listing(mut objects) => {
                let Some(object) = objects.next() else {
                    self.state = State::Listed;
                    return Some(Ok(Event::InitDone));
                };
                self.state = State::Listing(objects);
                Some(Ok(Event::InitApply(object)))
            }
            State::Streaming(events, seconds) => self.take_initial(events, seconds).await,
            State::Listed => {
                self.wait().await;
                self.begin_watch().await
            }
            State::Watching(watch) => self.take_change(watch).await,
        }
    }

    async fn wait(&mut self) {
        if let Some(at) = self.not_before.take() {
            sleep_until(at).await;
        }
    }

    async fn begin_stream(&mut self) -> News<R::Object> {
        let version = self.seen.clone().unwrap_or_else(|| "0".to_owned());
        let seconds = self.watch_seconds();
        match self.requests.stream(&version, seconds).await {
            Ok(events) => {
                self.known = 0;
                self.state = State::Streaming(events, seconds);
                Some(Ok(Event::Init))
            }
            Err(error) if streams_nothing(&error) => {
                debug!("the API server streams no lists: {error}");
                self.streams = false;
                None
            }
            Err(error) => self.failed_to_list(error).await,
        }
    }

    async fn list(&mut self) -> News<R::Object> {
        let version = self.seen.clone().unwrap_or_else(|| "0".to_owned());
        match self.requests.list(&version).await {
            Ok(Listed { objects, version }) => {
                let Some(version) = version else {
                    return self.failed(Error::NoVersion).await;
                };
                self.seen = Some(version);
                self.known = objects.len();
                self.state = State::Listing(objects.into_iter());
                Some(Ok(Event::Init))
            }
            Err(error) => self.failed_to_list(error).await,
        }
    }

    async fn failed_to_list(&mut self, error: kube::Error) -> News<R::Object> {
        // The version may be one that the API server will never have: etcd may have been
        // restored to an earlier time.
        self.seen = None;
        self.failed(Error::List(error)).await
    }

    async fn take_initial(
        &mut self,
        mut events: Events<R::Object>,
        seconds: u32,
    ) -> News<R::Object> {
        let error = match events.next().await {
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                self.known += 1;
                self.state = State::Streaming(events, seconds);
                return Some(Ok(Event::InitApply(object)));
            }
            Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                if !bookmark
                    .metadata
                    .annotations
                    .contains_key(INITIAL_EVENTS_END)
                {
                    self.state = State::Streaming(events, seconds);
                    return None;
                }
                self.seen = Some(bookmark.metadata.resource_version);
                self.state = State::Watching(Watch::new(events, seconds));
                return Some(Ok(Event::InitDone));
            }
            Some(Ok(WatchEvent::Deleted(_))) => {
                self.state = State::Streaming(events, seconds);
                return None;
            }
            Some(Ok(WatchEvent::Error(status))) => Error::Status(status.boxed()),
            Some(Err(error)) => Error::BrokeOff(error),
            None => Error::Incomplete,
        };
        self.failed(error).await
    }

    async fn begin_watch(&mut self) -> News<R::Object> {
        let version = self.seen.clone()?;
        let seconds = self.watch_seconds();
        match self.requests.watch(&version, seconds).await {
            Ok(events) => {
                self.state = State::Watching(Watch::new(events, seconds));
                None
            }
            Err(error) => self.watch_failed(Error::Begin(error)).await,
        }
    }

    async fn take_change(&mut self, mut watch: Watch<R::Object>) -> News<R::Object> {
        let works_at = watch.opened + WORKS_AFTER;
        let next = if watch.works {
            watch.events.next().await
        } else if let Ok(next) = timeout_at(works_at, watch.events.next()).await {
            next
        } else {
            watch.works = true;
            self.state = State::Watching(watch);
            return std::mem::take(&mut self.failing).then_some(Ok(Event::Recovered));
        };
        if watch.opened.elapsed() >= FORGIVEN_AFTER {
            self.pacing.succeeded();
        }
        match next {
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                self.go_on(watch, &object);
                Some(Ok(Event::Apply(object)))
            }
            Some(Ok(WatchEvent::Deleted(object))) => {
                self.go_on(watch, &object);
                Some(Ok(Event::Delete(object)))
            }
            Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                self.see(bookmark.metadata.resource_version);
                self.state = State::Watching(watch);
                None
            }
            Some(Ok(WatchEvent::Error(status))) => {
                self.watch_failed(Error::Status(status.boxed())).await
            }
            // A line that is none of a watch: what comes after it may be.
            Some(Err(error @ (kube::Error::SerdeError(_) | kube::Error::Api(_)))) => {
                self.failing = true;
                let Watch {
                    events, seconds, ..
                } = watch;
                self.state = State::Watching(Watch::new(events, seconds));
                Some(Err(Error::BrokeOff(error)))
            }
            Some(Err(error)) => self.watch_failed(Error::BrokeOff(error)).await,
            None if watch.has_lasted() => {
                self.state = State::Listed;
                None
            }
            None if watch.opened.elapsed() < SHORTEST => self.watch_failed(Error::TooShort).await,
            // The API server or what is before it was stopped, for all agents.
            None => {
                self.state = State::Listed;
                self.postpone();
                None
            }
        }
    }

    /// Goes on after an object. Not every one says its version, if an API server is broken.
    fn go_on(&mut self, watch: Watch<R::Object>, object: &R::Object) {
        self.see(object.resource_version().unwrap_or_default());
        self.state = State::Watching(watch);
    }

    fn see(&mut self, version: String) {
        if !version.is_empty() {
            self.seen = Some(version);
        }
    }

    fn watch_seconds(&mut self) -> u32 {
        let (least, most) = WATCH_SECONDS;
        self.pacing.watch_seconds(least, most)
    }

    /// A watch of a list that is known does not go on.
    async fn watch_failed(&mut self, error: Error) -> News<R::Object> {
        if error.is_expiry() {
            debug!("the watch's version is too old, listing again");
            self.state = State::Empty;
            self.not_before = Some(Instant::now() + self.pacing.before_relist(self.known));
            return None;
        }
        self.state = State::Listed;
        self.failed(error).await
    }

    async fn failed(&mut self, error: Error) -> News<R::Object> {
        self.failing = true;
        if error.is_absence() {
            self.not_before = Some(Instant::now() + self.pacing.after_absence());
        } else {
            self.postpone();
        }
        self.requests.failed(&error).await;
        Some(Err(error))
    }

    fn postpone(&mut self) {
        self.not_before = Some(Instant::now() + self.pacing.after_failure());
    }
}

/// Returns whether an API server refused to stream a list because it does not know how
/// to, or is told not to.
fn streams_nothing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 422))
}

#[cfg(test)]
mod tests;
