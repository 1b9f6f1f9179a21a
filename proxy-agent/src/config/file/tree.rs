//! A document as it stands, with fields that are there twice.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// A node of the document.
#[derive(Debug)]
pub(super) enum Tree {
    Leaf(Value),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

/// Reads one document; JSON is YAML, too.
pub(super) fn parse(text: &str) -> Result<Tree, String> {
    let options = serde_saphyr::options! {
        // The file is the operator's own: no limits against a hostile one.
        budget: None,
        with_snippet: false,
        strict_booleans: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

impl Tree {
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Leaf(Value::Null))
    }

    /// The text of a field.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let Self::Map(fields) = self else { return None };
        match fields.iter().rfind(|(field, _)| field == name) {
            Some((_, Self::Leaf(Value::String(text)))) => Some(text),
            _ => None,
        }
    }

    pub(super) fn value(&self) -> Value {
        match self {
            Self::Leaf(value) => value.clone(),
            Self::List(items) => items.iter().map(Self::value).collect(),
            Self::Map(fields) => {
                let fields = fields.iter();
                fields
                    .map(|(name, tree)| (name.clone(), tree.value()))
                    .collect()
            }
        }
    }

    /// The paths of fields that are there twice.
    pub(super) fn repeated(&self) -> Vec<String> {
        let mut repeated = Vec::new();
        self.find_repeated("", &mut repeated);
        repeated
    }

    fn find_repeated(&self, path: &str, repeated: &mut Vec<String>) {
        let Self::Map(fields) = self else { return };
        for (number, (name, tree)) in fields.iter().enumerate() {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            let is_second = fields[..number].iter().any(|(other, _)| other == name);
            if is_second && !repeated.contains(&path) {
                repeated.push(path.clone());
            }
            tree.find_repeated(&path, repeated);
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Tree::Map(map))
    }
}
