//! Counts the requests of a client, and how long they take.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use hyper::{Request, Response};
use tower::Service;

use crate::metrics::requests;

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub(super) struct Measured<S>(pub(super) S);

impl<S, Q, A> Service<Request<Q>> for Measured<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let authority = request.uri().authority();
        let host = authority.map_or_else(String::new, ToString::to_string);
        let method = request.method().to_string();
        let start = Instant::now();
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|it| it.status().as_u16());
            requests::note(&host, &method, code, start.elapsed());
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use prometheus_client::encoding::text::encode;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn requests_are_counted() {
        let server = service_fn(|request: Request<()>| async move {
            let status = if request.uri().path() == "/there" {
                200
            } else {
                404
            };
            Ok::<_, Infallible>(Response::builder().status(status).body(()).expect("valid"))
        });
        for path in ["there", "there", "elsewhere"] {
            let request = Request::get(format!("http://counted:1/{path}"));
            let request = request.body(()).expect("valid");
            Measured(server).oneshot(request).await.expect("an answer");
        }
        let mut text = String::new();
        encode(&mut text, &Metrics::new().1).expect("encode");
        for line in [
            r#"rest_client_requests_total{code="200",host="counted:1",method="GET"} 2"#,
            r#"rest_client_requests_total{code="404",host="counted:1",method="GET"} 1"#,
            r#"rest_client_request_duration_seconds_count{host="counted:1",verb="GET"} 3"#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
