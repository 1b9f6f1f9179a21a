//! Events of the API: what `kubectl describe` says of the node and of Services (S93).
//!
//! Pure, but for the channel: [`Recorder`] takes events in and never waits, [`Aggregator`]
//! decides what is written of them. `source::kubernetes::events` writes it.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::model::ObjectKey;

/// Events that wait to be written. Those for which there is no room are lost.
const ROOM: usize = 64;
/// Repeated events are one for as long as they are not further apart, as in client-go.
const SERIES: Duration = Duration::from_mins(6);
/// Least time between two reports of one series.
const REPORT_EVERY: Duration = Duration::from_mins(1);
/// New events that may be written at once, and the time until one more may.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(10);
/// Longest time that the end of the agent waits for its last event.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regarding {
    /// This node.
    Node,
    Service(ObjectKey),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something to tell. Equal ones make a series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    pub regarding: Regarding,
    pub severity: Severity,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
}

impl Event {
    /// The start of an agent on this node.
    pub fn starting() -> Self {
        Self {
            regarding: Regarding::Node,
            severity: Severity::Normal,
            reason: "Starting",
            action: "StartKubeProxy",
            note: format!("Tandem {} serves Services here", env!("CARGO_PKG_VERSION")),
        }
    }

    /// A server of this agent that cannot listen, which ends it.
    pub fn failed_to_start(reason: &'static str, error: &anyhow::Error) -> Self {
        Self {
            regarding: Regarding::Node,
            severity: Severity::Warning,
            reason,
            action: "StartKubeProxy",
            note: format!("{error:#}"),
        }
    }

    /// A health check port that cannot be listened on.
    pub fn failed_health_check(node: &str, service: &ObjectKey, port: u16, error: &str) -> Self {
        Self {
            regarding: Regarding::Service(service.clone()),
            severity: Severity::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: format!(
                "node {node} failed to start healthcheck \"{service}\" on port {port}: {error}"
            ),
        }
    }
}

/// What the channel carries.
#[derive(Debug)]
pub enum Message {
    Event(Event),
    /// All before this has been written.
    Flush(oneshot::Sender<()>),
}

/// Takes events in. Clones are of the same channel.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<mpsc::Sender<Message>>);

impl Recorder {
    /// A recorder, and the receiving end for whoever writes.
    pub fn new() -> (Self, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        (Self(Some(sender)), receiver)
    }

    /// Notes an event, if there is room. Never waits.
    pub fn record(&self, event: Event) {
        if let Some(sender) = &self.0 {
            // Events are a courtesy.
            let _ = sender.try_send(Message::Event(event));
        }
    }

    /// Waits until what was noted is written, though not for long.
    pub async fn flush(&self) {
        let Some(sender) = &self.0 else { return };
        let (done, wait) = oneshot::channel();
        let written = async {
            if sender.send(Message::Flush(done)).await.is_ok() {
                let _ = wait.await;
            }
        };
        let _ = timeout(LAST_WORDS, written).await;
    }
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A new event.
    Create(Event),
    /// An event that is written already has been seen so often.
    Report { event: Event, count: u32 },
}

#[derive(Debug)]
struct Series {
    count: u32,
    reported: u32,
    last_seen: Instant,
    last_written: Instant,
}

/// Decides which events are written.
#[derive(Debug)]
pub struct Aggregator {
    series: BTreeMap<Event, Series>,
    tokens: u32,
    refilled: Instant,
}

impl Aggregator {
    pub fn new(now: Instant) -> Self {
        Self {
            series: BTreeMap::new(),
            tokens: BURST,
            refilled: now,
        }
    }

    /// Takes an event in. Returns what is to be written at once.
    pub fn take(&mut self, event: Event, now: Instant) -> Option<Write> {
        self.series
            .retain(|_, series| now.duration_since(series.last_seen) <= SERIES);
        if let Some(series) = self.series.get_mut(&event) {
            series.count += 1;
            series.last_seen = now;
            return report(&event, series, now);
        }
        self.refill(now);
        self.tokens = self.tokens.checked_sub(1)?;
        let series = Series {
            count: 1,
            reported: 1,
            last_seen: now,
            last_written: now,
        };
        self.series.insert(event.clone(), series);
        Some(Write::Create(event))
    }

    /// Returns a report that waited for its time, if there is one.
    pub fn due(&mut self, now: Instant) -> Option<Write> {
        let mut series = self.series.iter_mut();
        series.find_map(|(event, series)| report(event, series, now))
    }

    /// The time of the next report that waits.
    pub fn next(&self) -> Option<Instant> {
        let waiting = self.series.values().filter(|it| it.count > it.reported);
        waiting.map(|it| it.last_written + REPORT_EVERY).min()
    }

    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && now.duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
    }
}

fn report(event: &Event, series: &mut Series, now: Instant) -> Option<Write> {
    let is_due = now.duration_since(series.last_written) >= REPORT_EVERY;
    if series.count == series.reported || !is_due {
        return None;
    }
    series.reported = series.count;
    series.last_written = now;
    Some(Write::Report {
        event: event.clone(),
        count: series.count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(note: &str) -> Event {
        Event {
            note: note.to_owned(),
            ..Event::starting()
        }
    }

    fn later(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// A repeated event is one with a count, told of once a minute at most.
    #[test]
    fn repeated_events_are_one() {
        let start = Instant::now();
        let mut events = Aggregator::new(start);
        let report = |count| {
            let event = event("a");
            Some(Write::Report { event, count })
        };
        assert_eq!(
            events.take(event("a"), start),
            Some(Write::Create(event("a")))
        );
        assert_eq!(events.next(), None);
        assert_eq!(events.take(event("a"), later(start, 5)), None);
        assert_eq!(events.take(event("a"), later(start, 10)), None);
        assert_eq!(events.next(), Some(later(start, 60)));
        assert_eq!(events.due(later(start, 59)), None);
        assert_eq!(events.due(later(start, 60)), report(3));
        assert_eq!(events.due(later(start, 1000)), None, "told already");
        assert_eq!(events.take(event("a"), later(start, 130)), report(4));
        // Too long ago to be the same.
        let again = events.take(event("a"), later(start, 1000));
        assert_eq!(again, Some(Write::Create(event("a"))));
    }

    /// Many different events do not flood the API server.
    #[test]
    fn new_events_are_limited() {
        let start = Instant::now();
        let mut events = Aggregator::new(start);
        let written = |events: &mut Aggregator, name: &str, count: u32, at| {
            let names = (0..count).map(|number| format!("{name}-{number}"));
            names
                .filter(|name| events.take(event(name), at).is_some())
                .count()
        };
        assert_eq!(written(&mut events, "a", 100, start), 25);
        assert_eq!(written(&mut events, "b", 100, later(start, 30)), 3);
        assert_eq!(written(&mut events, "c", 100, later(start, 10_000)), 25);
    }

    /// Nobody waits for events: what there is no room for is lost.
    #[tokio::test(start_paused = true)]
    async fn recording_never_waits() {
        let (recorder, mut receiver) = Recorder::new();
        for number in 0..ROOM + 10 {
            recorder.record(event(&number.to_string()));
        }
        assert_eq!(receiver.len(), ROOM);
        let start = Instant::now();
        recorder.flush().await;
        assert_eq!(start.elapsed(), LAST_WORDS, "nobody writes");
        receiver.close();
        recorder.flush().await;
        Recorder::default().record(event("a"));
    }
}
