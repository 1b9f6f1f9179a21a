//! The metadata that all objects have.

use serde::de::{IgnoredAny, MapAccess};

use super::{Field, FromJson, JsonType, Malformed, api_fields, read_entry};
use crate::model::{
    endpoint_slice::{HEADLESS_LABEL, SERVICE_NAME_LABEL, TRIGGER_TIME_ANNOTATION},
    node::ZONE_LABEL,
    service::PROXY_NAME_LABEL,
};

/// The labels and annotations that are read.
const WANTED: [&str; 5] = [
    PROXY_NAME_LABEL,
    HEADLESS_LABEL,
    SERVICE_NAME_LABEL,
    ZONE_LABEL,
    TRIGGER_TIME_ANNOTATION,
];

api_fields! {
    /// The metadata that identifies an object, and its labels and annotations.
    pub struct Metadata {
        name: Box<str> = "name",
        namespace: Box<str> = "namespace",
        uid: Box<str> = "uid",
        resource_version: Box<str> = "resourceVersion",
        deletion_timestamp: Box<str> = "deletionTimestamp",
        labels: Wanted = "labels",
        annotations: Wanted = "annotations",
    }
}

/// Those labels or annotations of an object that are read.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Vec<(&'static str, Field<Box<str>>)>);

impl Wanted {
    /// Returns whether one is there, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The value of a label; `None` if the object does not have it.
    pub fn label(&self, name: &str) -> Result<Option<&str>, Malformed> {
        let value = self.find(name).map_or(Field::Absent, Field::as_ref);
        let value = value.at(format_args!("metadata.labels[{name:?}]"))?;
        Ok(value.map(|value| &**value))
    }

    /// The value of an annotation that does no harm if it cannot be read.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        match self.find(name)? {
            Field::Present(value) => Some(value),
            Field::Absent | Field::Wrong(_) => None,
        }
    }

    fn find(&self, name: &str) -> Option<&Field<Box<str>>> {
        let mut found = self.0.iter().rev();
        let (_, value) = found.find(|(wanted, _)| *wanted == name)?;
        Some(value)
    }
}

impl FromJson for Wanted {
    const TYPE: JsonType = JsonType::Object;

    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        let mut found = Self::default();
        let wanted = |name: &str| WANTED.into_iter().find(|wanted| *wanted == name);
        while let Some(wanted) = read_entry(&mut object, wanted)? {
            match wanted {
                Some(name) => found.0.push((name, object.next_value()?)),
                None => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Some(found))
    }
}
