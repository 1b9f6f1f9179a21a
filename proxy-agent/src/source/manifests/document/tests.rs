use rstest::rstest;

use super::*;
use crate::model::State;

/// Returns the objects found, the errors and the ignored kinds, as text.
fn summary(text: &str, format: Format) -> (Vec<String>, Vec<String>, Vec<String>) {
    let contents = read(text, format);
    (
        contents
            .objects
            .iter()
            .map(|object| {
                let (kind, key) = object.id();
                format!("{kind} {key}")
            })
            .collect(),
        contents.refused.iter().map(Refused::to_string).collect(),
        contents
            .ignored
            .into_iter()
            .map(|(kind, n)| format!("{n} {kind}"))
            .collect(),
    )
}

fn objects(text: &str) -> Vec<String> {
    let (objects, refused, _) = summary(text, Format::Yaml);
    assert_eq!(refused, [""; 0]);
    objects
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
";

#[test]
fn the_namespace_is_default_unless_given() {
    assert_eq!(objects(SERVICE), ["Service default/web"]);
    let spelled = SERVICE.replace("name: web", "name: web\n  namespace: shop");
    assert_eq!(objects(&spelled), ["Service shop/web"]);
}

#[test]
fn several_documents_are_several_objects() {
    let text = format!(
        "# comment\n---\n{SERVICE}---\n\n--- # empty\n{}\n...\n---\n{}",
        SERVICE.replace("web", "api"),
        "{apiVersion: v1, kind: Node, metadata: {name: node-0}}\n",
    );
    let expected = ["Service default/web", "Service default/api", "Node node-0"];
    assert_eq!(objects(&text), expected);
}

/// As `kubectl get … -o yaml` prints them: keys in alphabetical order, status
/// and managed fields included.
#[test]
fn lists_of_kubectl_are_their_items() {
    let text = include_str!("../../../../tests/data/kubectl-get.yaml");
    let (objects, refused, ignored) = summary(text, Format::Yaml);
    let expected = [
        "Service shop/web",
        "EndpointSlice shop/web-x2x4z",
        "Node node-0",
    ];
    assert_eq!(objects, expected);
    assert_eq!(refused, [""; 0]);
    assert_eq!(ignored, ["1 apps/v1 Deployment"]);
    for object in read(text, Format::Yaml).objects {
        let (Manifest::Service(Parsed { problems, .. })
        | Manifest::EndpointSlice(Parsed { problems, .. })
        | Manifest::Node(Parsed { problems, .. })
        | Manifest::ServiceCidr(Parsed { problems, .. })) = object;
        assert_eq!(problems, []);
    }
}

/// As the API server sends lists: items without kind.
#[rstest]
#[case("v1", "ServiceList", "Service default/x")]
#[case("v1", "NodeList", "Node x")]
#[case("discovery.k8s.io/v1", "EndpointSliceList", "EndpointSlice default/x")]
#[case("networking.k8s.io/v1", "ServiceCIDRList", "ServiceCIDR x")]
fn typed_lists_name_the_kind_of_their_items(
    #[case] version: &str,
    #[case] kind: &str,
    #[case] expected: &str,
) {
    let text = format!(
        r#"{{"apiVersion": "{version}", "kind": "{kind}", "items": [
            {{"metadata": {{"name": "x"}}, "addressType": "IPv4", "endpoints": []}}
        ]}}"#
    );
    let (objects, refused, _) = summary(&text, Format::Json);
    assert_eq!((objects, refused), (vec![expected.to_owned()], vec![]));
}

#[rstest]
#[case("serving.knative.dev/v1", "Service")]
#[case("discovery.k8s.io/v1beta1", "EndpointSlice")]
#[case("v1", "ConfigMap")]
fn other_kinds_are_ignored(#[case] version: &str, #[case] kind: &str) {
    let text = format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: x}}}}");
    let (objects, refused, ignored) = summary(&text, Format::Yaml);
    assert_eq!((objects.len(), refused.len()), (0, 0));
    assert_eq!(ignored, [format!("1 {version} {kind}")]);
}

#[test]
fn service_cidrs_have_no_namespace() {
    let text = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: x}}";
    assert_eq!(objects(text), ["ServiceCIDR x"]);
}

/// P9: what is wrong with a document is said in one line, and the others count.
#[rstest]
#[case::syntax("kind: [Service", "document 2: ")]
#[case::hidden_separator("kind: \"unclosed", "document 2: ")]
#[case::no_object(
    "just text",
    "document 2: invalid type: string \"just text\", expected an object"
)]
#[case::no_kind("metadata: {name: x}", "document 2: it has no kind")]
#[case::no_name(
    "{apiVersion: v1, kind: Service, spec: {}}",
    "document 2 (Service): metadata.name is missing"
)]
#[case::empty_name(
    "{apiVersion: v1, kind: Service, metadata: {name: ''}}",
    "document 2 (Service): metadata.name is missing"
)]
#[case::name_of_another_type(
    "{apiVersion: v1, kind: Node, metadata: {name: 7}}",
    "document 2 (Node): metadata.name is an integer instead of a string"
)]
#[case::namespace_of_another_type(
    "{apiVersion: v1, kind: Service, metadata: {name: x, namespace: 7}}",
    "document 2 (Service): metadata.namespace is an integer instead of a string"
)]
#[case::no_list(
    "{apiVersion: v1, kind: ServiceList, items: 5}",
    "document 2: invalid type: integer `5`, expected a list"
)]
fn a_bad_document_leaves_the_others(#[case] bad: &str, #[case] reason: &str) {
    let text = format!(
        "{SERVICE}---\n{bad}\n---\n{}",
        SERVICE.replace("web", "api")
    );
    let (objects, refused, _) = summary(&text, Format::Yaml);
    assert_eq!(objects, ["Service default/web", "Service default/api"]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with(reason), "{}", refused[0]);
    assert!(!refused[0].contains('\n'), "{}", refused[0]);
}

/// As from the API server: the object keeps the state that is known of it.
#[rstest]
#[case("Service", "{ports: 80}")]
#[case("Service", "80")]
#[case("Node", "80")]
fn an_object_that_cannot_be_read_is_none_that_is_gone(#[case] kind: &str, #[case] spec: &str) {
    let text = format!("{{apiVersion: v1, kind: {kind}, metadata: {{name: x}}, spec: {spec}}}");
    let text = text.replace("{ports", "{clusterIP: 10.96.0.10, ports");
    let contents = read(&text, Format::Yaml);
    assert_eq!(contents.refused, []);
    match &contents.objects[..] {
        [
            Manifest::Service(Parsed {
                state, problems, ..
            }),
        ] => {
            assert_eq!((state, problems.len()), (&State::Unreadable, 1));
        }
        [
            Manifest::Node(Parsed {
                state, problems, ..
            }),
        ] => {
            assert_eq!((state, problems.len()), (&State::Unreadable, 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bad_item_leaves_the_others() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": []}, "spec": 1},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}}
    ]}"#;
    let (objects, refused, _) = summary(text, Format::Json);
    assert_eq!(objects, ["Service default/b"]);
    assert_eq!(refused.len(), 1);
}

/// The list may say what its items are before or after them.
#[rstest]
#[case::before(r#"{"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"a"}}]}"#)]
#[case::after(r#"{"apiVersion":"v1","items":[{"metadata":{"name":"a"}}],"kind":"ServiceList"}"#)]
fn the_kind_of_a_list_may_follow_its_items(#[case] text: &str) {
    let (objects, refused, _) = summary(text, Format::Json);
    assert_eq!(
        (objects, refused),
        (vec!["Service default/a".to_owned()], vec![])
    );
}

#[rstest]
#[case(r#"{"apiVersion":"v1","kind":"List","items":null}"#)]
#[case(r#"{"apiVersion":"v1","kind":"List","items":[]}"#)]
#[case(r#"{"apiVersion":"v1","kind":"List"}"#)]
fn a_list_may_be_empty(#[case] text: &str) {
    let (objects, refused, ignored) = summary(text, Format::Json);
    assert_eq!((objects.len(), refused.len(), ignored.len()), (0, 0, 0));
}

/// Items of something that is no list of ours are not ours.
#[test]
fn items_of_other_kinds_are_ignored() {
    let text = r#"{"apiVersion": "example.com/v1", "kind": "Bundle", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}
    ]}"#;
    let (objects, refused, ignored) = summary(text, Format::Json);
    assert_eq!((objects.len(), refused.len()), (0, 0));
    assert_eq!(ignored, ["1 example.com/v1 Bundle"]);
}

#[test]
fn json_may_hold_several_documents() {
    let one = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}}"#;
    let text = format!("{one}\n{}\n{{", one.replace("\"a\"", "\"b\""));
    let (objects, refused, _) = summary(&text, Format::Json);
    assert_eq!(objects, ["Service default/a", "Service default/b"]);
    assert_eq!(refused.len(), 1);
}

#[rstest]
#[case("y")]
#[case("on")]
#[case("no")]
fn words_are_no_booleans(#[case] name: &str) {
    let text = SERVICE.replace("web", name);
    assert_eq!(objects(&text), [format!("Service default/{name}")]);
}

/// A separator counts at the start of a line only.
#[test]
fn dashes_elsewhere_separate_nothing() {
    let text = SERVICE.replace(
        "  name: web",
        "  name: web\n  annotations:\n    note: |\n      a\n      ---\n      b\n    dashes: '---'",
    );
    assert_eq!(objects(&text), ["Service default/web"]);
}

#[rstest]
#[case("")]
#[case("\n\n")]
#[case("---\n---\n")]
#[case("%YAML 1.2\n---\n# nothing\n...\n")]
fn an_empty_file_holds_nothing(#[case] text: &str) {
    assert_eq!(objects(text), [""; 0]);
}
