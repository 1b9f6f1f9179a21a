//! Every field of every kind with every sort of value, in lists and in events.

use std::fmt;

use serde_json::{Value, json};

use super::{
    list_text, objects::Complete, paths, pattern, problems, read_event, read_list, remove,
};
use crate::model::{
    EndpointSlice, Node, ObjectKey, Parsed, Service, ServiceCidr, State, api::JsonType,
};

/// Stands for a value that is nested too deep for a tree of values.
const DEEP: &str = "@deep@";

/// Values of every type.
fn values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-7),
        json!(u64::MAX),
        json!(1.5),
        json!(""),
        json!("text\n\u{1b}"),
        json!("x".repeat(20_000)),
        json!([]),
        json!([null, [1], {"a": []}]),
        json!({}),
        json!({"name": {"port": ["x"]}, "": null}),
        json!(DEEP),
    ]
}

fn text(value: &Value) -> String {
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    value.to_string().replace(&format!("\"{DEEP}\""), &deep)
}

/// The type of a value, as far as the API tells them apart; none for null.
fn type_of(value: &Value) -> Option<JsonType> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => JsonType::Boolean,
        Value::Number(number) if number.is_i64() => JsonType::Integer,
        Value::Number(_) => JsonType::Number,
        Value::String(text) if text == DEEP => JsonType::List,
        Value::String(text) if text.len() > 4096 => JsonType::LongText,
        Value::String(_) => JsonType::Text,
        Value::Array(_) => JsonType::List,
        Value::Object(_) => JsonType::Object,
    })
}

/// The complete object under another name.
fn named<T: Complete>(name: &str) -> String {
    let mut object = T::complete();
    object["metadata"]["name"] = name.into();
    object.to_string()
}

/// Reads an object among others and alone. Neither fails, the others are what
/// they are, and both say the same.
fn read<T: Complete + fmt::Debug>(object: &str, what: &str) -> Parsed<T> {
    let (before, after) = (named::<T>("before"), named::<T>("after"));
    let mut list = read_list::<T>(&list_text(&[&before, object, &after]));
    assert_eq!(list.len(), 3, "{what}");
    let neighbours = [list.remove(0), list.remove(1)];
    for (name, neighbour) in ["before", "after"].iter().zip(neighbours) {
        assert_eq!(neighbour.key.name(), *name, "{what}");
        assert!(matches!(neighbour.state, State::Usable(_)), "{what}");
        assert_eq!(problems(&neighbour), [""; 0], "{what}");
    }
    let parsed = list.remove(0);
    assert_eq!(read_event::<T>(object), parsed, "{what}");
    for problem in problems(&parsed) {
        assert!(problem.len() < 500, "{what}: {} bytes", problem.len());
        assert!(!problem.contains(['\n', '\u{1b}']), "{what}: {problem}");
    }
    parsed
}

fn every_field_may_be_anything<T: Complete>() {
    let complete = T::complete();
    let whole = read::<T>(&complete.to_string(), "complete");
    assert!(matches!(whole.state, State::Usable(_)));
    assert_eq!(problems(&whole), [""; 0]);
    let all = paths(&complete);
    for used in T::USED.iter().chain(T::FATAL).chain(T::QUIET) {
        assert!(all.iter().any(|path| pattern(path) == **used), "{used}");
    }
    for path in all {
        let pattern = pattern(&path);
        let used = T::USED.contains(&&*pattern);
        let mut removed = complete.clone();
        remove(&mut removed, &path);
        let without = read::<T>(&text(&removed), &pattern);
        if !used {
            assert_eq!(without, whole, "without {pattern}");
        }
        for value in values() {
            let mut object = complete.clone();
            let place = super::at(&mut object, &path);
            let (old, new) = (type_of(place), type_of(&value));
            *place = value;
            let what = format!("{pattern} as {new:?}");
            let parsed = read::<T>(&text(&object), &what);
            if !used {
                assert_eq!(parsed, whole, "{what}");
            } else if new.is_none() && !pattern.ends_with(']') {
                assert_eq!(parsed, without, "{what}");
            } else if new.is_some() && new != old {
                let unreadable = matches!(parsed.state, State::Unreadable);
                assert_eq!(unreadable, T::FATAL.contains(&&*pattern), "{what}");
                let quiet = T::QUIET.contains(&&*pattern);
                assert_eq!(parsed.problems.is_empty(), quiet, "{what}: {parsed:?}");
            }
        }
    }
}

#[test]
fn every_field_of_a_service_may_be_anything() {
    every_field_may_be_anything::<Service>();
}

#[test]
fn every_field_of_an_endpoint_slice_may_be_anything() {
    every_field_may_be_anything::<EndpointSlice>();
}

#[test]
fn every_field_of_a_node_may_be_anything() {
    every_field_may_be_anything::<Node>();
}

#[test]
fn every_field_of_a_service_cidr_may_be_anything() {
    every_field_may_be_anything::<ServiceCidr>();
}

/// Clients may write conditions without times, and the API server keeps them so.
#[test]
fn conditions_without_times_are_no_problem() {
    fn check<T: Complete>() {
        let whole = read::<T>(&T::complete().to_string(), "complete");
        let mut object = T::complete();
        object["status"]["conditions"][0]["lastTransitionTime"] = Value::Null;
        assert_eq!(read::<T>(&object.to_string(), "null"), whole);
    }
    check::<Service>();
    check::<Node>();
    check::<ServiceCidr>();
}

/// The name of a field counts once, and the last value of it, as to the API
/// server.
#[test]
fn the_last_of_equal_names_counts() {
    let text = r#"{"metadata": {"name": 5, "name": "x", "labels": 7, "labels": {}},
        "spec": [], "spec": {"clusterIP": true, "clusterIP": "10.96.0.1"}}"#;
    let parsed = read_event::<Service>(text);
    assert_eq!(
        (parsed.key.clone(), problems(&parsed)),
        (ObjectKey::new("", "x"), vec![])
    );
    assert!(matches!(parsed.state, State::Usable(_)));
}

/// The log names the field, what it is, and what that costs.
#[test]
fn problems_name_the_field() {
    fn lines<T: Complete>(path: &str, value: Value) -> Vec<String> {
        let mut object = T::complete();
        *object.pointer_mut(path).expect("a field") = value;
        problems(&read::<T>(&object.to_string(), path))
    }
    assert_eq!(
        lines::<Service>("/spec/ports/1/port", json!("http")),
        ["spec.ports[1].port is a string instead of an integer, the port is left out"]
    );
    assert_eq!(
        lines::<Service>("/spec/externalTrafficPolicy", json!(7)),
        [
            "spec.externalTrafficPolicy is an integer instead of a string; \
          what was known of the object before stays in force"
        ]
    );
    assert_eq!(
        lines::<EndpointSlice>("/endpoints/1/conditions/ready", json!("no")),
        [
            "endpoints[1].conditions.ready is a string instead of a boolean, \
          the endpoint is not used"
        ]
    );
    assert_eq!(
        lines::<Node>("/metadata/name", Value::Null),
        ["metadata.name is missing; what was known of the object before stays in force"]
    );
}

/// A range that cannot be read must not let everybody in: whoever it was meant
/// to let in is kept out, too, in families that have no other.
#[test]
fn unreadable_source_ranges_admit_nobody() {
    for (ranges, usable) in [
        (json!(7), 0),
        (json!([7]), 0),
        (json!(["everyone"]), 0),
        (json!(["192.0.2.0/24", {}]), 1),
    ] {
        let mut object = Service::complete();
        object["spec"]["loadBalancerSourceRanges"] = ranges.clone();
        let parsed = read::<Service>(&object.to_string(), "ranges");
        assert_eq!(parsed.problems.len(), 1, "{ranges}");
        let service = parsed.state.usable().expect("the rest is served");
        assert_eq!(service.source_ranges.len(), usable, "{ranges}");
        assert!(service.unusable_source_ranges, "{ranges}");
    }
}
