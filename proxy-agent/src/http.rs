//! A small HTTP server: a connection is for one question.

use std::{error::Error, sync::Arc, time::Duration};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::debug;

/// Maximum duration of a connection, whatever its client does.
pub const CONNECTION: Duration = Duration::from_secs(5);

/// Answers whoever asks, until polled no more. Anybody may connect, and the
/// agent needs file descriptors for other things: so many connections are
/// served at the same time, and of the others each listener accepts one.
pub async fn serve<S, B>(listener: TcpListener, connections: Arc<Semaphore>, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!("cannot accept a connection: {error}");
                // Out of file descriptors, perhaps.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Asked for when there is a connection: those that only listen, which
        // may be more than connections are allowed, must not keep any from
        // others. It is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let service = service.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever asks in another way than HTTP gets no answer.
            let _ = timeout(CONNECTION, connection).await;
            drop(permit);
        });
    }
}
