//! How values are written to disk that share memory, or are not of this crate.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Name, ObjectKey};

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(&*Cow::<str>::deserialize(deserializer)?))
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.namespace(), self.name()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ObjectKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (namespace, name) = <(Name, Box<str>)>::deserialize(deserializer)?;
        Ok(Self::new(namespace, name))
    }
}

pub(super) mod protocol {
    use proxy_common::net::Protocol;

    use super::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
    pub(in super::super) fn serialize<S: Serializer>(
        protocol: &Protocol,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(protocol.0)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Protocol, D::Error> {
        Ok(Protocol(u8::deserialize(deserializer)?))
    }
}

pub(super) mod placement {
    use std::sync::Arc;

    use super::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use crate::model::Placement;

    pub(in super::super) fn serialize<S: Serializer>(
        placement: &Arc<Placement>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        (**placement).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<Placement>, D::Error> {
        Ok(Placement::deserialize(deserializer)?.shared())
    }
}
