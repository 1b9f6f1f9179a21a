//! Several API servers, of which one is asked until it cannot be reached.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use tower::{BoxError, Service, ServiceExt as _};
use tracing::warn;

/// The number of the server that is asked. Clones share it, so that it outlives a client.
pub(super) type Turn = Arc<AtomicUsize>;

/// One service for each server. A request that fails is not sent again: whoever made it
/// tries again anyway, and then asks the next server.
#[derive(Clone)]
pub(super) struct Failover<S> {
    servers: Arc<[(String, S)]>,
    turn: Turn,
}

impl<S> Failover<S> {
    /// There must be a server.
    pub(super) fn new(servers: Vec<(String, S)>, turn: Turn) -> Self {
        Self {
            servers: servers.into(),
            turn,
        }
    }
}

impl<S, R> Service<R> for Failover<S>
where
    S: Service<R, Error = BoxError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Response: Send,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<S::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (servers, turn) = (Arc::clone(&self.servers), Arc::clone(&self.turn));
        Box::pin(async move {
            let asked = turn.load(Ordering::Relaxed);
            let (url, server) = &servers[asked % servers.len()];
            let answer = server.clone().oneshot(request).await;
            if let Err(error) = &answer
                && servers.len() > 1
            {
                let next = (asked + 1) % servers.len();
                // Of several requests that fail with one server, the first moves on.
                let moved =
                    turn.compare_exchange(asked, next, Ordering::Relaxed, Ordering::Relaxed);
                if moved.is_ok() {
                    warn!(
                        "the API server {url} cannot be reached, asking {}: {error}",
                        servers[next].0
                    );
                }
            }
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use tower::service_fn;

    use super::*;

    /// When a server cannot be reached, the next one is asked, and then the first again.
    #[tokio::test]
    async fn servers_take_turns_when_they_fail() {
        let up = Arc::new(AtomicUsize::new(1));
        let server = |number: usize| {
            let up = Arc::clone(&up);
            let service = service_fn(move |(): ()| {
                let is_up = up.load(Ordering::Relaxed) == number;
                async move { is_up.then_some(number).ok_or(BoxError::from("refused")) }
            });
            (number.to_string(), service)
        };
        let failover = Failover::new((0..3).map(server).collect(), Turn::default());
        let ask = || async { failover.clone().oneshot(()).await.ok() };
        assert_eq!(
            [ask().await, ask().await, ask().await],
            [None, Some(1), Some(1)]
        );
        up.store(0, Ordering::Relaxed);
        assert_eq!(
            [ask().await, ask().await, ask().await],
            [None, None, Some(0)]
        );
    }

    /// Requests that fail at the same time move on by one server, not by one each.
    #[tokio::test]
    async fn one_failure_moves_on_by_one_server() {
        let servers = (0..3).map(|number: usize| {
            let service = service_fn(move |(): ()| async move {
                tokio::task::yield_now().await;
                if number == 1 {
                    Ok(number)
                } else {
                    Err(BoxError::from("refused"))
                }
            });
            (number.to_string(), service)
        });
        let failover = Failover::new(servers.collect(), Turn::default());
        let ask = || failover.clone().oneshot(());
        let _ = tokio::join!(ask(), ask(), ask());
        assert_eq!(ask().await.ok(), Some(1));
    }
}
