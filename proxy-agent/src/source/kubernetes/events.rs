//! Writes events to the API server (S93).

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::events::v1::Event as ApiEvent, jiff::Timestamp};
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use super::{ApiServer, watch_log::chain};
use crate::events::{Aggregator, Event, Message, Regarding, Write};

/// Attempts at an event, and the time between them: the API server may be away when an
/// agent starts.
const ATTEMPTS: usize = 10;
const RETRY: Duration = Duration::from_secs(15);
/// Bytes of the longest note that the API takes.
const MAX_NOTE: usize = 1024;
/// Names of events that are remembered, to report a series by.
const MAX_NAMES: usize = 256;
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;

/// Writes events for as long as somebody records any. Where that is forbidden, says so
/// once and writes none.
pub async fn write(server: ApiServer, node: &str, mut messages: mpsc::Receiver<Message>) {
    let mut writer = Writer {
        client: server.client(),
        node: node.to_owned(),
        names: BTreeMap::new(),
        is_forbidden: false,
    };
    let mut events = Aggregator::new(Instant::now());
    loop {
        let due = events.next();
        let write = tokio::select! {
            message = messages.recv() => match message {
                Some(Message::Event(event)) => events.take(event, Instant::now()),
                Some(Message::Flush(done)) => {
                    // Whoever waits may have gone.
                    let _ = done.send(());
                    None
                }
                None => return,
            },
            () = wait_until(due) => events.due(Instant::now()),
        };
        if let Some(write) = write {
            writer.write(write).await;
        }
    }
}

/// Returns whether the API server may answer otherwise later.
fn is_passing(code: u16) -> bool {
    code == 429 || code >= 500
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

struct Writer {
    client: Client,
    node: String,
    /// The names of events that were written.
    names: BTreeMap<Event, String>,
    is_forbidden: bool,
}

impl Writer {
    async fn write(&mut self, write: Write) {
        for _ in 0..ATTEMPTS {
            if self.is_forbidden {
                return;
            }
            match self.try_to_write(&write).await {
                Ok(()) => return,
                Err(Error::Api(status)) if status.code == FORBIDDEN => {
                    self.is_forbidden = true;
                    warn!(
                        "no events are written, this agent may not create and patch \
                         events.events.k8s.io: {}",
                        status.message
                    );
                }
                Err(Error::Api(status)) if !is_passing(status.code) => {
                    // What it does not like now it will not like later.
                    debug!("an event was refused: {}", status.message);
                    return;
                }
                Err(error) => {
                    debug!("an event cannot be written yet: {}", chain(&error));
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_to_write(&mut self, write: &Write) -> Result<(), Error> {
        let (event, count) = match write {
            Write::Create(event) => (event, 1),
            Write::Report { event, count } => (event, *count),
        };
        let api = Api::<ApiEvent>::namespaced(self.client.clone(), namespace(event));
        let known = self.names.get(event).filter(|_| count > 1);
        if let Some(name) = known {
            let series = Patch::Merge(json!({"series": series(count)}));
            let parameters = PatchParams::default();
            match api.patch(name, &parameters, &series).await {
                // Events are kept for an hour.
                Err(Error::Api(status)) if status.code == NOT_FOUND => {}
                result => return result.map(drop),
            }
        }
        let now = Timestamp::now();
        let name = name(event, &self.node, now);
        let body = body(event, &self.node, &name, now);
        let body: ApiEvent = serde_json::from_value(body).map_err(Error::SerdeError)?;
        api.create(&PostParams::default(), &body).await?;
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        self.names.insert(event.clone(), name);
        Ok(())
    }
}

fn namespace(event: &Event) -> &str {
    match &event.regarding {
        // Where events of objects without a namespace are.
        Regarding::Node => "default",
        Regarding::Service(key) => key.namespace(),
    }
}

/// A name as client-go makes it, which is that of no other event.
fn name(event: &Event, node: &str, now: Timestamp) -> String {
    let object = match &event.regarding {
        Regarding::Node => node,
        Regarding::Service(key) => key.name(),
    };
    format!("{object}.{:x}", now.as_nanosecond())
}

fn series(count: u32) -> Value {
    json!({"count": count, "lastObservedTime": micro_time(Timestamp::now())})
}

/// A time with the digits that the API wants.
fn micro_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

fn body(event: &Event, node: &str, name: &str, now: Timestamp) -> Value {
    // kube-proxy does not know the objects' UIDs either.
    let regarding = match &event.regarding {
        Regarding::Node => json!({"kind": "Node", "name": node, "uid": node}),
        Regarding::Service(key) => json!({
            "apiVersion": "v1",
            "kind": "Service",
            "namespace": key.namespace(),
            "name": key.name(),
        }),
    };
    let mut text = event.note.clone();
    text.truncate(text.floor_char_boundary(MAX_NOTE));
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace(event)},
        "eventTime": micro_time(now),
        "type": event.severity.name(),
        "reason": event.reason,
        "action": event.action,
        "note": text,
        "regarding": regarding,
        "reportingController": "tandem",
        "reportingInstance": format!("tandem-{node}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectKey;

    #[test]
    fn events_say_what_kube_proxys_say() {
        let service = ObjectKey::new("shop", "web");
        let event = Event::failed_health_check("node-1", &service, 32000, "taken");
        let now = Timestamp::from_second(1_700_000_000).expect("a time");
        let name = name(&event, "node-1", now);
        assert_eq!(name, "web.17979cfe362a0000");
        let body = body(&event, "node-1", &name, now);
        let expected = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "web.17979cfe362a0000", "namespace": "shop"},
            "eventTime": "2023-11-14T22:13:20.000000Z",
            "type": "Warning",
            "reason": "FailedToStartServiceHealthcheck",
            "action": "Listen",
            "note": "node node-1 failed to start healthcheck \"shop/web\" on port 32000: taken",
            "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web"},
            "reportingController": "tandem",
            "reportingInstance": "tandem-node-1",
        });
        assert_eq!(body, expected);
        let _: ApiEvent = serde_json::from_value(body).expect("the API's type");
    }

    #[test]
    fn notes_are_as_long_as_the_api_takes() {
        let event = Event {
            note: "ä".repeat(MAX_NOTE),
            ..Event::starting()
        };
        let body = body(&event, "node-1", "a", Timestamp::now());
        assert_eq!(body["note"].as_str().expect("text").len(), MAX_NOTE);
        assert_eq!(body["metadata"]["namespace"], "default");
        assert_eq!(body["regarding"]["uid"], "node-1");
    }
}
