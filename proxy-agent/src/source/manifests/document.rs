//! The text of a manifest file, taken apart into objects.
//!
//! Documents are parsed one by one: an error in one leaves the others.
//! The items of a list become domain objects as they are read, so that a large
//! list is never in memory as a whole.

mod list;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use self::list::Document;
use crate::{
    model::{EndpointSlice, Kind, Node, Object, ObjectKey, Parsed, Problem, Service, ServiceCidr},
    yaml,
};

/// The contents of a file.
#[derive(Debug, Default)]
pub struct Contents {
    pub objects: Vec<Manifest>,
    /// Documents, and items of lists, that could not be read.
    pub refused: Vec<Refused>,
    /// Kinds that a proxy does not read, with the number of objects of each.
    pub ignored: BTreeMap<String, usize>,
}

/// An object of a kind the proxy reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    Service(Parsed<Service>),
    EndpointSlice(Parsed<EndpointSlice>),
    Node(Parsed<Node>),
    ServiceCidr(Parsed<ServiceCidr>),
}

impl Manifest {
    /// Returns the object's kind, namespace and name.
    pub fn id(&self) -> ObjectId {
        let (kind, key) = match self {
            Self::Service(parsed) => (Kind::Service, &parsed.key),
            Self::EndpointSlice(parsed) => (Kind::EndpointSlice, &parsed.key),
            Self::Node(parsed) => (Kind::Node, &parsed.key),
            Self::ServiceCidr(parsed) => (Kind::ServiceCidr, &parsed.key),
        };
        (kind, key.clone())
    }
}

/// Kind, namespace and name of an object.
pub type ObjectId = (Kind, ObjectKey);

/// A document that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}{object}: {reason}")]
pub struct Refused {
    /// Counted from 1.
    pub document: usize,
    /// ` (Service default/web)`, if that much is known.
    object: String,
    pub reason: String,
}

/// The syntax of a file's documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
}

/// Takes a file apart.
pub fn read(text: &str, format: Format) -> Contents {
    let mut contents = Contents::default();
    match format {
        Format::Yaml => {
            for (number, text) in yaml::documents(text).enumerate() {
                contents.add_document(number + 1, parse_yaml(text));
            }
        }
        Format::Json => {
            let documents = serde_json::Deserializer::from_str(text).into_iter();
            for (number, document) in documents.enumerate() {
                contents.add_document(number + 1, document.map_err(|e| e.to_string()));
            }
        }
    }
    contents
}

fn parse_yaml(text: &str) -> Result<Document, String> {
    let options = serde_saphyr::options! {
        // The files are the operator's own: no limits against hostile ones.
        budget: None,
        with_snippet: false,
        // A Service may be called `on`, a zone `no`.
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

impl Contents {
    fn add_document(&mut self, number: usize, document: Result<Document, String>) {
        let mut contents = Self::default();
        match document {
            Ok(document) => contents.add(document),
            Err(reason) => contents.refuse(String::new(), &reason),
        }
        for refused in &mut contents.refused {
            refused.document = number;
        }
        self.merge(contents);
    }

    fn merge(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.refused.extend(other.refused);
        for (kind, count) in other.ignored {
            *self.ignored.entry(kind).or_default() += count;
        }
    }

    fn refuse(&mut self, object: String, reason: &str) {
        self.refused.push(Refused {
            document: 0,
            object,
            // One line in the log.
            reason: reason.split_whitespace().collect::<Vec<_>>().join(" "),
        });
    }

    /// Adds an object, or the items of a list.
    fn add(&mut self, document: Document) {
        let (version, kind) = (document.field("apiVersion"), document.field("kind"));
        match (version, kind) {
            _ if document.is_empty() => {}
            (_, "") => self.refuse(String::new(), "it has no kind"),
            ("v1", "List" | "ServiceList" | "NodeList")
            | ("discovery.k8s.io/v1", "EndpointSliceList")
            | ("networking.k8s.io/v1", "ServiceCIDRList") => self.merge(document.into_items()),
            ("v1", "Service") => self.parse(document.fields, Manifest::Service),
            ("v1", "Node") => self.parse(document.fields, Manifest::Node),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.parse(document.fields, Manifest::EndpointSlice);
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.parse(document.fields, Manifest::ServiceCidr);
            }
            _ => *self.ignored.entry(format!("{version} {kind}")).or_default() += 1,
        }
    }

    fn parse<T: Object>(
        &mut self,
        mut object: Map<String, Value>,
        manifest: fn(Parsed<T>) -> Manifest,
    ) {
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        if let Some(metadata) = metadata {
            let namespace = metadata.entry("namespace").or_insert(Value::Null);
            if namespace.is_null() || namespace == "" {
                *namespace = "default".into();
            }
        }
        let kind = format!(" ({})", T::KIND);
        match serde_json::from_value(Value::Object(object)).map(T::from_api) {
            Ok(parsed) if parsed.is_named() => self.objects.push(manifest(parsed)),
            Ok(parsed) => {
                let problems: Vec<_> = parsed.problems.iter().map(Problem::to_string).collect();
                self.refuse(kind, &problems.join(", "));
            }
            Err(error) => self.refuse(kind, &error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
