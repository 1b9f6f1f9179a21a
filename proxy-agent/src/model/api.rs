//! API objects as they come from the API server or from a manifest, as far as
//! the proxy reads them.
//!
//! The types here name the fields that are used and no others. Everything else
//! is skipped without being looked at, so it cannot be wrong, and the managed
//! fields, mostly the larger part of an object, cost no memory. A used field
//! that is not of the API's type is a [`Field::Wrong`] rather than an error:
//! decoding an object, or a list of them, fails only where the text is not JSON.
//! The code that reads the object decides what a wrong field means.

mod field;
mod fields;
mod metadata;

use std::{borrow::Cow, fmt};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, Deserializer};

pub(crate) use self::fields::api_fields;
pub use self::{
    field::{Field, FromJson, JsonType, List, Malformed},
    fields::read_entry,
    metadata::{Metadata, Wanted},
};
use super::ObjectKey;

/// The fields that are read of one kind of object.
pub trait ApiFields: FromJson + Clone + fmt::Debug + Default + Send + 'static {
    /// The whole type, which knows where the API server has such objects.
    type Resource: kube::Resource<DynamicType = ()>;
    /// True to ask the API server for the metadata only.
    const METADATA_ONLY: bool = false;

    fn metadata(&mut self) -> &mut Field<Metadata>;
}

/// An object of the API. Every JSON value can be decoded to one.
#[derive(Clone, Debug, Default)]
pub struct ApiObject<F> {
    fields: Field<F>,
    /// For the watch, which needs the version only.
    meta: ObjectMeta,
}

impl<F: ApiFields> ApiObject<F> {
    /// The object's key, its metadata, and all its fields. Fails if it cannot be
    /// told which object it is.
    pub fn open(self, is_namespaced: bool) -> Result<(ObjectKey, Metadata, F), Malformed> {
        let mut fields = self.fields.required("the object")?;
        let mut metadata = std::mem::take(fields.metadata()).or_default("metadata")?;
        let name = match std::mem::take(&mut metadata.name) {
            Field::Present(name) if name.is_empty() => Field::Absent,
            name => name,
        };
        let name = name.required("metadata.name")?;
        let namespace = if is_namespaced {
            std::mem::take(&mut metadata.namespace).or_default("metadata.namespace")?
        } else {
            Box::default()
        };
        Ok((ObjectKey::new(&*namespace, name), metadata, fields))
    }
}

impl<'de, F: ApiFields> Deserialize<'de> for ApiObject<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Field::<F>::deserialize(deserializer)?;
        let mut meta = ObjectMeta::default();
        if let Field::Present(fields) = &mut fields
            && let Field::Present(metadata) = fields.metadata()
            && let Field::Present(version) = std::mem::take(&mut metadata.resource_version)
        {
            meta.resource_version = Some(version.into());
        }
        Ok(Self { fields, meta })
    }
}

impl<F: ApiFields> kube::Resource for ApiObject<F> {
    type DynamicType = ();
    type Scope = <F::Resource as kube::Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        F::Resource::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        F::Resource::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        F::Resource::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        F::Resource::plural(&())
    }

    fn metadata_api() -> bool {
        F::METADATA_ONLY
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

api_fields! {
    /// A pod: which one it is.
    pub struct PodFields {
        metadata: Metadata = "metadata",
    }
}

impl ApiFields for PodFields {
    type Resource = Pod;
    const METADATA_ONLY: bool = true;

    fn metadata(&mut self) -> &mut Field<Metadata> {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests;
