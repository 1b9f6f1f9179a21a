//! Reads a document with the items of a list taken in one by one.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::Contents;

/// A document, or an item of a list: its fields, but for `items`.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) fields: Map<String, Value>,
    items: Items,
}

/// The items of a document, if it has any.
#[derive(Debug, Default)]
struct Items {
    contents: Contents,
    /// Items without a kind, which is that of their list.
    untyped: Vec<Document>,
}

impl Document {
    /// A field that is text; empty if it is not there.
    pub(super) fn field(&self, name: &str) -> &str {
        let field = self.fields.get(name).and_then(Value::as_str);
        field.unwrap_or_default()
    }

    /// Returns whether there is nothing in it at all.
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Returns the contents of the items. Items of a typed list need not name their kind.
    pub(super) fn into_items(mut self) -> Contents {
        let untyped = std::mem::take(&mut self.items.untyped);
        let mut contents = std::mem::take(&mut self.items.contents);
        for mut item in untyped {
            self.name_kind(&mut item);
            contents.add(item);
        }
        contents
    }

    /// Gives an item the version and kind of which this is the list.
    fn name_kind(&self, item: &mut Self) {
        let kind = self.field("kind").trim_end_matches("List");
        if !kind.is_empty() && !item.is_empty() {
            item.fields
                .insert("apiVersion".to_owned(), self.field("apiVersion").into());
            item.fields.insert("kind".to_owned(), kind.into());
        }
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Document, E> {
        Ok(Document::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut document = Document::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "items" {
                document.items = map.next_value_seed(ItemsOf(&document))?;
            } else {
                document.fields.insert(name, map.next_value()?);
            }
        }
        Ok(document)
    }
}

/// Reads the items of a document, of which some fields may be known.
struct ItemsOf<'a>(&'a Document);

impl<'de> DeserializeSeed<'de> for ItemsOf<'_> {
    type Value = Items;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Items, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsOf<'_> {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Items, E> {
        Ok(Items::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items, A::Error> {
        let mut items = Items::default();
        while let Some(mut item) = list.next_element::<Document>()? {
            if item.field("kind").is_empty() {
                self.0.name_kind(&mut item);
            }
            if item.field("kind").is_empty() {
                items.untyped.push(item);
            } else {
                items.contents.add(item);
            }
        }
        Ok(items)
    }
}
