//! An API server that says what it is told to.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Body;
use futures::{FutureExt as _, StreamExt as _, channel::mpsc, stream};
use hyper::{
    HeaderMap, Request, Response, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::Config;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::source::kubernetes::{ApiServer, limits::RateLimit};

/// A server on the loopback. Ends when dropped.
pub(super) struct FakeApi {
    url: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// The objects of each kind, by the last part of the path: `services`.
    kinds: BTreeMap<String, Objects>,
    asked: Vec<Asked>,
    /// A bearer token that all requests must have.
    token: Option<String>,
    streams_no_lists: bool,
}

#[derive(Default)]
struct Objects {
    listed: Vec<String>,
    watches: Vec<mpsc::UnboundedSender<String>>,
    /// Answers to the next requests, in the place of objects.
    refusals: VecDeque<Refusal>,
    /// The answer to all requests.
    refusal: Option<Refusal>,
}

/// An answer in the place of objects.
#[derive(Clone)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) retry_after: Option<u32>,
}

impl Refusal {
    pub(super) fn status(status: u16) -> Self {
        Self {
            status,
            retry_after: None,
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) kind: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
}

impl FakeApi {
    /// A server that has nothing, on an address of the loopback.
    pub(super) async fn start(host: &str) -> Self {
        let listener = TcpListener::bind(format!("{host}:0")).await;
        let listener = listener.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let state = Arc::<Mutex<State>>::default();
        let server = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self { url, state, server }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The server as a source knows it.
    pub(super) fn server(&self) -> ApiServer {
        let config = Config::new(self.url.parse().expect("a URL"));
        let read = move || futures::future::ready(Ok(vec![config.clone()])).boxed();
        let rate = RateLimit {
            interval: Duration::from_millis(1),
            burst: 100,
        };
        let server = ApiServer::new(read, rate).now_or_never();
        server.expect("nothing to wait for").expect("a client")
    }

    /// Sets the list of objects of a kind.
    pub(super) fn list(&self, kind: &str, objects: &[&str]) {
        let listed = objects.iter().map(|&object| object.to_owned()).collect();
        self.objects(kind, |objects| objects.listed = listed);
    }

    /// Returns whether somebody watches a kind.
    pub(super) fn is_watched(&self, kind: &str) -> bool {
        self.objects(kind, |objects| {
            objects.watches.retain(|watch| !watch.is_closed());
            !objects.watches.is_empty()
        })
    }

    /// Sends an event to all who watch a kind. Returns whether there was anybody.
    pub(super) fn send(&self, kind: &str, event: &str, object: &str) -> bool {
        let line = format!("{{\"type\":\"{event}\",\"object\":{object}}}\n");
        self.objects(kind, |objects| {
            objects
                .watches
                .retain(|watch| watch.unbounded_send(line.clone()).is_ok());
            !objects.watches.is_empty()
        })
    }

    /// Ends all watches of a kind as one that is begun at an unknown version is, which
    /// begins them anew with a list.
    pub(super) fn expire(&self, kind: &str) {
        let gone = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;
        self.send(kind, "ERROR", gone);
        self.close(kind);
    }

    /// Ends all watches of a kind without a word.
    pub(super) fn close(&self, kind: &str) {
        self.objects(kind, |objects| objects.watches.clear());
    }

    /// Answers all requests for a kind so, until told otherwise.
    pub(super) fn refuse(&self, kind: &str, refusal: Option<Refusal>) {
        self.objects(kind, |objects| objects.refusal = refusal);
    }

    /// Answers the next request for a kind so.
    pub(super) fn refuse_once(&self, kind: &str, refusal: Refusal) {
        self.objects(kind, |objects| objects.refusals.push_back(refusal));
    }

    /// Refuses all requests without this bearer token.
    pub(super) fn require_token(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Is a server without streaming lists.
    pub(super) fn stream_no_lists(&self) {
        self.lock().streams_no_lists = true;
    }

    /// The requests for a kind so far.
    pub(super) fn asked(&self, kind: &str) -> Vec<Asked> {
        let asked = self.lock().asked.clone();
        asked
            .into_iter()
            .filter(|asked| asked.kind == kind)
            .collect()
    }

    fn objects<T>(&self, kind: &str, with: impl FnOnce(&mut Objects) -> T) -> T {
        with(self.lock().kinds.entry(kind.to_owned()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let service = service_fn(move |request| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let response = state.answer(&request);
            async { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl State {
    fn answer(&mut self, request: &Request<Incoming>) -> Response<Body> {
        let kind = request.uri().path().rsplit('/').next().unwrap_or_default();
        let query = request.uri().query().unwrap_or_default();
        self.asked.push(Asked {
            at: Instant::now(),
            kind: kind.to_owned(),
            query: query.to_owned(),
            headers: request.headers().clone(),
        });
        if let Some(token) = &self.token
            && request.headers().get("authorization") != Some(&bearer(token))
        {
            return refusal(kind, &Refusal::status(401));
        }
        let objects = self.kinds.entry(kind.to_owned()).or_default();
        if let Some(refused) = objects.refusals.pop_front().or(objects.refusal.clone()) {
            return refusal(kind, &refused);
        }
        let streams_list = query.contains("sendInitialEvents=true");
        if streams_list && self.streams_no_lists {
            return refusal(kind, &Refusal::status(422));
        }
        Response::new(if query.contains("watch=true") {
            let (sender, receiver) = mpsc::unbounded();
            objects.watches.push(sender);
            let initial = if streams_list {
                initial_events(&objects.listed)
            } else {
                Vec::new()
            };
            let lines = stream::iter(initial).chain(receiver);
            Body::from_stream(lines.map(Ok::<_, Infallible>))
        } else {
            let items = objects.listed.join(",");
            Body::from(format!(
                r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"1"}},"items":[{items}]}}"#
            ))
        })
    }
}

fn bearer(token: &str) -> hyper::header::HeaderValue {
    format!("Bearer {token}").try_into().expect("a token")
}

/// The objects there are, and the mark after the last of them.
fn initial_events(listed: &[String]) -> Vec<String> {
    let added = listed
        .iter()
        .map(|object| format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n"));
    let end = concat!(
        r#"{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":"#,
        r#"{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
        "\n"
    );
    added.chain([end.to_owned()]).collect()
}

fn refusal(kind: &str, refusal: &Refusal) -> Response<Body> {
    let status = refusal.status;
    let mut response = Response::builder().status(status);
    if let Some(seconds) = refusal.retry_after {
        response = response.header("retry-after", seconds);
    }
    let message = format!("{kind}: refused");
    let body = format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"{message}","code":{status}}}"#
    );
    response.body(Body::from(body)).expect("a response")
}
