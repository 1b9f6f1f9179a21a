//! Objects with anything in them.

mod fuzz;
mod mutations;
mod objects;
mod speed;

use std::fmt;

use kube::core::{ObjectList, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ApiFields, ApiObject};
use crate::model::{Object, Parsed};

/// Returns the API server's JSON for a list of these objects.
fn list_text(items: &[&str]) -> String {
    let items = items.join(",");
    format!(
        r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"7"}},"items":[{items}]}}"#
    )
}

/// Returns the parsed items of a list.
fn read_list<T: Object>(text: &str) -> Vec<Parsed<T>> {
    let list: ObjectList<ApiObject<T::Fields>> = must(text);
    list.items.into_iter().map(T::from_api).collect()
}

/// Returns the parsed object of a watch event.
fn read_event<T: Object>(object: &str) -> Parsed<T> {
    let text = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
    let WatchEvent::Modified(object) = must::<WatchEvent<ApiObject<T::Fields>>>(&text) else {
        panic!("another event: {text}");
    };
    T::from_api(object)
}

fn must<V: DeserializeOwned>(text: &str) -> V {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:.2000}"))
}

fn problems<T>(parsed: &Parsed<T>) -> Vec<String> {
    parsed.problems.iter().map(ToString::to_string).collect()
}

/// A field of an object: names, and places in lists.
type Path = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    At(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, ".{name}"),
            Self::At(_) => f.write_str("[]"),
        }
    }
}

/// `.spec.ports[].port`: the same for all items of a list.
fn pattern(path: &[Step]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// The paths of all values below a value.
fn paths(value: &Value) -> Vec<Path> {
    fn walk(value: &Value, path: &mut Path, found: &mut Vec<Path>) {
        let children: Vec<(Step, &Value)> = match value {
            Value::Object(fields) => {
                let fields = fields.iter();
                fields
                    .map(|(name, v)| (Step::Name(name.clone()), v))
                    .collect()
            }
            Value::Array(items) => {
                let items = items.iter().enumerate();
                items.map(|(at, v)| (Step::At(at), v)).collect()
            }
            _ => Vec::new(),
        };
        for (step, child) in children {
            path.push(step);
            found.push(path.clone());
            walk(child, path, found);
            path.pop();
        }
    }
    let mut found = Vec::new();
    walk(value, &mut Vec::new(), &mut found);
    found
}

/// The value at a path.
fn at<'v>(value: &'v mut Value, path: &[Step]) -> &'v mut Value {
    path.iter().fold(value, |value, step| match step {
        Step::Name(name) => value.get_mut(name).expect("a field"),
        Step::At(at) => value.get_mut(*at).expect("an item"),
    })
}

/// Takes the value at a path out.
fn remove(value: &mut Value, path: &[Step]) {
    let (last, parent) = path.split_last().expect("a path");
    match (at(value, parent), last) {
        (Value::Object(fields), Step::Name(name)) => drop(fields.remove(name)),
        (Value::Array(items), Step::At(at)) => drop(items.remove(*at)),
        (other, step) => panic!("no {step} in {other}"),
    }
}

#[test]
fn every_value_is_an_object() {
    fn check<F: ApiFields>() {
        for text in [
            "null", "5", "1e99", "true", "[]", "\"text\"", "{}", "[[[{}]]]",
        ] {
            let object: ApiObject<F> = must(text);
            assert!(object.open(true).is_err(), "{text}");
        }
    }
    check::<super::PodFields>();
    check::<crate::model::service::ServiceFields>();
    check::<crate::model::endpoint_slice::EndpointSliceFields>();
}
