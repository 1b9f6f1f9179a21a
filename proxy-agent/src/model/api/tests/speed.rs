//! Measures the time to read large lists, and the memory they take up then: run with
//! `--ignored --nocapture --test-threads=1`.

use std::time::Instant;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::core::ObjectList;
use serde_json::{Value, json};

use super::{ApiObject, must, objects::Complete};
use crate::model::{EndpointSlice, Object, Service};

type List<T> = ObjectList<ApiObject<<T as Object>::Fields>>;

const OBJECTS: usize = 10_000;

fn list<T: Complete>(shape: impl Fn(&mut Value)) -> String {
    let items = (0..OBJECTS).map(|n| {
        let mut object = T::complete();
        object["metadata"]["name"] = format!("object-{n}").into();
        shape(&mut object);
        object
    });
    let items: Vec<_> = items.collect();
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items})
        .to_string()
}

fn slices() -> String {
    list::<EndpointSlice>(|slice| {
        let endpoint = slice["endpoints"][0].clone();
        let endpoints = (0..10).map(|n| {
            let mut endpoint = endpoint.clone();
            endpoint["addresses"][0] = format!("fd00::{n:x}").into();
            endpoint
        });
        slice["endpoints"] = endpoints.collect();
    })
}

/// Bytes of the heap that are in use.
fn heap() -> usize {
    // SAFETY: it only reads the allocator's counters.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

fn measure<T>(what: &str, text: &str, read: impl Fn(&str) -> T) {
    let before = heap();
    let start = Instant::now();
    let value = read(text);
    let (time, bytes) = (start.elapsed(), heap().saturating_sub(before));
    drop(value);
    println!(
        "{what}: {} KiB of text, {time:?}, {} KiB",
        text.len() / 1024,
        bytes / 1024
    );
}

#[test]
#[ignore = "a measurement"]
fn whole_types() {
    let (services, slices) = (list::<Service>(|_| {}), slices());
    measure(
        "whole Services",
        &services,
        must::<ObjectList<core::Service>>,
    );
    measure(
        "whole slices",
        &slices,
        must::<ObjectList<discovery::EndpointSlice>>,
    );
}

#[test]
#[ignore = "a measurement"]
fn partial_types() {
    let (services, slices) = (list::<Service>(|_| {}), slices());
    measure("partial Services", &services, must::<List<Service>>);
    measure("partial slices", &slices, must::<List<EndpointSlice>>);
}
