//! A field that may have any value.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// Bytes of the longest text that is taken. The longest that means anything is
/// the name of an object, which has 253.
const MAX_TEXT: usize = 4096;

/// A field of an API object, as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// Not there, or null, which is the same to the API.
    #[default]
    Absent,
    Present(T),
    Wrong(Mismatch),
}

/// A list, of which every item may be wrong by itself.
pub type List<T> = Vec<Field<T>>;

/// Types of values in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JsonType {
    Null,
    Boolean,
    Integer,
    /// A fraction, or beyond 64 bits.
    Number,
    Text,
    /// Longer than anything that has a meaning.
    LongText,
    List,
    Object,
}

impl fmt::Display for JsonType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Integer => "an integer",
            Self::Number => "a fractional or huge number",
            Self::Text => "a string",
            Self::LongText => "a string of more than 4096 bytes",
            Self::List => "a list",
            Self::Object => "an object",
        })
    }
}

/// A value of another type than the API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mismatch {
    found: JsonType,
    expected: JsonType,
}

impl Mismatch {
    /// Says which field it is.
    pub fn at(self, path: impl fmt::Display) -> Malformed {
        Malformed {
            path: path.to_string(),
            mismatch: self,
        }
    }
}

/// A field with a value that the API would not take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Malformed {
    path: String,
    mismatch: Mismatch,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { found, expected } = self.mismatch;
        match found {
            JsonType::Null => write!(f, "{} is missing", self.path),
            found => write!(f, "{} is {found} instead of {expected}", self.path),
        }
    }
}

impl<T> Field<T> {
    /// The value, if there is one.
    pub fn read(self) -> Result<Option<T>, Mismatch> {
        match self {
            Self::Absent => Ok(None),
            Self::Present(value) => Ok(Some(value)),
            Self::Wrong(mismatch) => Err(mismatch),
        }
    }

    /// The value, if there is one, of the field with this path.
    pub fn at(self, path: impl fmt::Display) -> Result<Option<T>, Malformed> {
        self.read().map_err(|mismatch| mismatch.at(path))
    }

    /// The value of the field with this path; what is not there is the default.
    pub fn or_default(self, path: impl fmt::Display) -> Result<T, Malformed>
    where
        T: Default,
    {
        self.at(path).map(Option::unwrap_or_default)
    }

    /// The value of a field with this path without which nothing goes.
    pub fn required(self, path: impl fmt::Display) -> Result<T, Malformed>
    where
        T: FromJson,
    {
        let missing = Mismatch {
            found: JsonType::Null,
            expected: T::TYPE,
        };
        let value = self.read().and_then(|value| value.ok_or(missing));
        value.map_err(|mismatch| mismatch.at(path))
    }

    pub fn as_ref(&self) -> Field<&T> {
        match self {
            Self::Absent => Field::Absent,
            Self::Present(value) => Field::Present(value),
            Self::Wrong(mismatch) => Field::Wrong(*mismatch),
        }
    }
}

/// A type of JSON values. Values of other types, whose methods are not overridden, are refused.
pub trait FromJson: Sized {
    const TYPE: JsonType;

    fn from_bool(_: bool) -> Option<Self> {
        None
    }

    fn from_integer(_: i64) -> Option<Self> {
        None
    }

    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn from_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl FromJson for bool {
    const TYPE: JsonType = JsonType::Boolean;

    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl FromJson for i64 {
    const TYPE: JsonType = JsonType::Integer;

    fn from_integer(value: i64) -> Option<Self> {
        Some(value)
    }
}

impl FromJson for Box<str> {
    const TYPE: JsonType = JsonType::Text;

    fn from_text(value: &str) -> Option<Self> {
        Some(value.into())
    }
}

impl<T: FromJson> FromJson for List<T> {
    const TYPE: JsonType = JsonType::List;

    fn from_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Self::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

impl<'de, T: FromJson> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

impl<T: FromJson> FieldVisitor<T> {
    fn take(found: JsonType, value: Option<T>) -> Field<T> {
        let expected = T::TYPE;
        value.map_or(Field::Wrong(Mismatch { found, expected }), Field::Present)
    }
}

impl<'de, T: FromJson> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Field<T>, E> {
        Ok(Field::Absent)
    }

    fn visit_none<E>(self) -> Result<Field<T>, E> {
        Ok(Field::Absent)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Field<T>, E> {
        Ok(Self::take(JsonType::Boolean, T::from_bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Field<T>, E> {
        Ok(Self::take(JsonType::Integer, T::from_integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Field<T>, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Self::take(JsonType::Integer, T::from_integer(value)),
            Err(_) => Self::take(JsonType::Number, None),
        })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field<T>, E> {
        Ok(Self::take(JsonType::Number, None))
    }

    fn visit_str<E>(self, value: &str) -> Result<Field<T>, E> {
        Ok(if value.len() > MAX_TEXT {
            Self::take(JsonType::LongText, None)
        } else {
            Self::take(JsonType::Text, T::from_text(value))
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Field<T>, A::Error> {
        Ok(Self::take(JsonType::List, T::from_list(list)?))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Field<T>, A::Error> {
        Ok(Self::take(JsonType::Object, T::from_object(object)?))
    }
}
