//! The answer of a health check port (S111).

use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use serde::Serialize;

use crate::model::ObjectKey;

/// Header with the number of endpoints, for load balancers that weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Service<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Service<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// The answer to any request, whatever its path and method.
pub fn answer(service: &ObjectKey, endpoints: usize, healthy: bool) -> Response<String> {
    let body = Body {
        service: Service {
            namespace: service.namespace(),
            name: service.name(),
        },
        local_endpoints: endpoints,
        service_proxy_healthy: healthy,
    };
    let mut response = Response::new(indented(&body));
    *response.status_mut() = if endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = response.headers_mut();
    let text = HeaderValue::from_static;
    headers.insert(CONTENT_TYPE, text("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, text("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(endpoints));
    response
}

/// JSON indented with tabs.
fn indented(body: &Body<'_>) -> String {
    let mut json = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, formatter);
    // Plain fields, into memory: neither can fail.
    let _ = body.serialize(&mut serializer);
    String::from_utf8(json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(1, true, 200)]
    #[case(0, true, 503)]
    #[case(1, false, 503)]
    fn endpoints_and_a_healthy_proxy_are_needed(
        #[case] endpoints: usize,
        #[case] healthy: bool,
        #[case] status: u16,
    ) {
        let service = ObjectKey::new("shop", "web");
        assert_eq!(answer(&service, endpoints, healthy).status(), status);
    }

    #[test]
    fn looks_as_kube_proxys() {
        let response = answer(&ObjectKey::new("shop", "web"), 2, true);
        let headers: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        let expected = [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ];
        assert_eq!(headers, expected);
        assert_eq!(
            response.body(),
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
             \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
    }
}
