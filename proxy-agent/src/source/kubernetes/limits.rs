//! How often the API server is asked: no more than agreed, and not before it says.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{Request, Response, header::RETRY_AFTER};
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service};

use super::pacing::Chance;

/// The longest wait that the API server may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// Requests to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Time between two requests in the long run.
    pub interval: Duration,
    /// Requests at once.
    pub burst: u32,
}

impl Default for RateLimit {
    /// kube-proxy's: 5 requests a second, 10 at once (S99).
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(200),
            burst: 10,
        }
    }
}

impl RateLimit {
    /// So many requests a second and at once. Without a number a second, the usual; below
    /// zero, any number, as kube-proxy has it.
    pub fn of(per_second: f32, burst: u32) -> Self {
        let usual = Self::default();
        Self {
            interval: if per_second == 0.0 {
                usual.interval
            } else {
                Duration::try_from_secs_f32(per_second.recip()).unwrap_or_default()
            },
            burst: if burst == 0 { usual.burst } else { burst },
        }
    }
}

/// The times of requests. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Limits(Arc<Mutex<Times>>);

#[derive(Debug)]
struct Times {
    limit: RateLimit,
    /// The time at which the burst is as large as it may be again.
    rested: Instant,
    /// The time before which the API server wants no requests.
    refused_until: Instant,
    chance: Chance,
}

impl Limits {
    pub(super) fn new(limit: RateLimit, chance: Chance) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(Times {
            limit,
            rested: now,
            refused_until: now,
            chance,
        })))
    }

    /// Takes the place of one request; returns when it may be sent.
    pub(super) fn reserve(&self) -> Instant {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let RateLimit { interval, burst } = times.limit;
        times.rested = times.rested.max(now) + interval;
        let by_rate = times.rested.checked_sub(interval * burst.max(1));
        by_rate.unwrap_or(now).max(now).max(times.refused_until)
    }

    /// The API server wants no request for so long. Others are told the same, so that
    /// up to half as much is added by chance.
    pub(super) fn refuse_for(&self, wait: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = wait.min(LONGEST_WAIT);
        let wait = wait + times.chance.part_of(wait / 2);
        times.refused_until = times.refused_until.max(Instant::now() + wait);
    }
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            limits: self.clone(),
        }
    }
}

/// Sends requests when it is their time.
#[derive(Clone, Debug)]
pub(super) struct Limited<S> {
    inner: S,
    limits: Limits,
}

impl<S, B, R> Service<Request<B>> for Limited<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that is ready goes; its clone has to become so.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let limits = self.limits.clone();
        Box::pin(async move {
            sleep_until(limits.reserve()).await;
            let response = inner.call(request).await?;
            if let Some(wait) = retry_after(&response) {
                limits.refuse_for(wait);
            }
            Ok(response)
        })
    }
}

/// Returns how long the API server wants to be left alone, if it says so.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    if response.status().is_success() {
        return None;
    }
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(per_second: u32, burst: u32) -> Limits {
        let limit = RateLimit {
            interval: SECOND / per_second,
            burst,
        };
        Limits::new(limit, Chance::seeded(1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_goes_at_once_and_more_at_the_rate() {
        let limits = limits(5, 3);
        let start = Instant::now();
        let waits: Vec<_> = (0..6).map(|_| limits.reserve() - start).collect();
        let expected = [0, 0, 0, 200, 400, 600].map(Duration::from_millis);
        assert_eq!(waits, expected);
        tokio::time::advance(10 * SECOND).await;
        let start = Instant::now();
        let waits: Vec<_> = (0..4).map(|_| limits.reserve() - start).collect();
        assert_eq!(waits, [0, 0, 0, 200].map(Duration::from_millis));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_sent_before_the_server_wants_it() {
        let limits = limits(5, 3);
        limits.refuse_for(7 * SECOND);
        let wait = limits.reserve() - Instant::now();
        assert!(wait >= 7 * SECOND && wait <= 11 * SECOND, "{wait:?}");
        limits.refuse_for(Duration::MAX);
        assert!(limits.reserve() - Instant::now() <= LONGEST_WAIT * 3 / 2);
    }

    #[test]
    fn only_refusals_ask_to_wait() {
        let response = |status: u16, after: &str| {
            let response = Response::builder().status(status);
            response.header(RETRY_AFTER, after).body(()).expect("valid")
        };
        assert_eq!(retry_after(&response(429, "7")), Some(7 * SECOND));
        assert_eq!(retry_after(&response(503, " 1 ")), Some(SECOND));
        assert_eq!(retry_after(&response(200, "7")), None);
        assert_eq!(retry_after(&response(429, "-1")), None);
        assert_eq!(
            retry_after(&response(429, "Fri, 31 Dec 1999 23:59:59 GMT")),
            None
        );
    }
}
