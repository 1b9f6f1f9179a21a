//! The fields of an object, by name.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, MapAccess, Visitor},
};

/// Declares the fields that are read of an object: their types and their names
/// in the API. Those of a whole object also say of which: `for Service`. Of a
/// name that occurs twice the last one counts, as to the API server.
macro_rules! api_fields {
    ($($(#[$attribute:meta])* $vis:vis struct $name:ident $(for $resource:ty)? {
        $($field:ident: $type:ty = $json:literal,)*
    })*) => { $(
        $(#[$attribute])*
        #[derive(Clone, Debug, Default)]
        $vis struct $name {
            $(pub $field: $crate::model::api::Field<$type>,)*
        }

        impl $crate::model::api::FromJson for $name {
            const TYPE: $crate::model::api::JsonType = $crate::model::api::JsonType::Object;

            fn from_object<'de, A: serde::de::MapAccess<'de>>(
                mut object: A,
            ) -> Result<Option<Self>, A::Error> {
                #[expect(non_camel_case_types, reason = "named like the fields")]
                enum Name { $($field,)* Other }
                let name = |name: &str| match name {
                    $($json => Name::$field,)*
                    _ => Name::Other,
                };
                let mut fields = Self::default();
                while let Some(found) = $crate::model::api::read_entry(&mut object, name)? {
                    match found {
                        $(Name::$field => fields.$field = object.next_value()?,)*
                        Name::Other => drop(object.next_value::<serde::de::IgnoredAny>()?),
                    }
                }
                Ok(Some(fields))
            }
        }

        $(impl $crate::model::api::ApiFields for $name {
            type Resource = $resource;

            fn metadata(
                &mut self,
            ) -> &mut $crate::model::api::Field<$crate::model::api::Metadata> {
                &mut self.metadata
            }
        })?
    )* };
}
pub(crate) use api_fields;

/// Reads the next name of an object, and tells what it stands for.
pub fn read_entry<'de, A: MapAccess<'de>, N>(
    object: &mut A,
    name: impl FnOnce(&str) -> N,
) -> Result<Option<N>, A::Error> {
    object.next_key_seed(NameSeed(name))
}

struct NameSeed<F>(F);

impl<'de, N, F: FnOnce(&str) -> N> DeserializeSeed<'de> for NameSeed<F> {
    type Value = N;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<N, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<N, F: FnOnce(&str) -> N> Visitor<'_> for NameSeed<F> {
    type Value = N;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<N, E> {
        Ok((self.0)(name))
    }
}
