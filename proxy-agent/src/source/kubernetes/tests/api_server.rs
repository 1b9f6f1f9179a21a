//! An API server that says what it is told to.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::body::Body;
use futures::{StreamExt as _, channel::mpsc};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::Config;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::source::kubernetes::{ApiServer, client};

/// A server on the loopback. Ends when dropped.
pub(super) struct FakeApi {
    url: String,
    kinds: Arc<Kinds>,
    server: JoinHandle<()>,
}

/// The objects of each kind, by the last part of the path: `services`.
#[derive(Default)]
struct Kinds(Mutex<BTreeMap<String, Objects>>);

#[derive(Default)]
struct Objects {
    listed: Vec<String>,
    watches: Vec<mpsc::UnboundedSender<String>>,
}

impl Kinds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Objects>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeApi {
    /// A server that has nothing, on an address of the loopback.
    pub(super) async fn start(host: &str) -> Self {
        let listener = TcpListener::bind(format!("{host}:0")).await;
        let listener = listener.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let kinds = Arc::<Kinds>::default();
        let server = tokio::spawn(serve(listener, Arc::clone(&kinds)));
        Self { url, kinds, server }
    }

    /// The server as a source knows it.
    pub(super) fn server(&self) -> ApiServer {
        let config = Config::new(self.url.parse().expect("a URL"));
        ApiServer {
            client: client::of(config).expect("a client"),
            url: self.url.clone(),
        }
    }

    /// Sets the list of objects of a kind.
    pub(super) fn list(&self, kind: &str, objects: &[&str]) {
        let listed = objects.iter().map(|&object| object.to_owned()).collect();
        self.kinds.lock().entry(kind.to_owned()).or_default().listed = listed;
    }

    /// Returns whether somebody watches a kind.
    pub(super) fn is_watched(&self, kind: &str) -> bool {
        let mut kinds = self.kinds.lock();
        let watches = &mut kinds.entry(kind.to_owned()).or_default().watches;
        watches.retain(|watch| !watch.is_closed());
        !watches.is_empty()
    }

    /// Sends an event to all who watch a kind. Returns whether there was anybody.
    pub(super) fn send(&self, kind: &str, event: &str, object: &str) -> bool {
        let mut kinds = self.kinds.lock();
        let objects = kinds.entry(kind.to_owned()).or_default();
        let line = format!("{{\"type\":\"{event}\",\"object\":{object}}}\n");
        objects
            .watches
            .retain(|watch| watch.unbounded_send(line.clone()).is_ok());
        !objects.watches.is_empty()
    }

    /// Ends all watches of a kind, which begins them anew with a list.
    pub(super) fn expire(&self, kind: &str) {
        let gone = r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#;
        self.send(kind, "ERROR", gone);
        let mut kinds = self.kinds.lock();
        kinds.entry(kind.to_owned()).or_default().watches.clear();
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, kinds: Arc<Kinds>) {
    while let Ok((stream, _)) = listener.accept().await {
        let kinds = Arc::clone(&kinds);
        let service = service_fn(move |request| {
            let response = answer(&kinds, &request);
            async { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(kinds: &Kinds, request: &Request<Incoming>) -> Response<Body> {
    let kind = request.uri().path().rsplit('/').next().unwrap_or_default();
    let query = request.uri().query().unwrap_or_default();
    let mut kinds = kinds.lock();
    let objects = kinds.entry(kind.to_owned()).or_default();
    Response::new(if query.contains("watch=true") {
        let (sender, receiver) = mpsc::unbounded();
        objects.watches.push(sender);
        Body::from_stream(receiver.map(Ok::<_, Infallible>))
    } else {
        let items = objects.listed.join(",");
        Body::from(format!(
            r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"1"}},"items":[{items}]}}"#
        ))
    })
}
