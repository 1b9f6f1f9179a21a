//! Names. One stands in many places, so clones share it, and equal ones are one
//! in memory.

use std::{fmt, ops::Deref, sync::Arc};

use proxy_common::net::Protocol;

use super::pool::Pool;

/// A name that many objects have: a namespace's, a port's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

static NAMES: Pool<str> = Pool::new();

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(NAMES.get(name))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(NAMES.get(name))
    }
}

impl Default for Name {
    fn default() -> Self {
        Self::from("")
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// Namespace and name of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(Arc<Names>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Names {
    namespace: Name,
    name: Box<str>,
}

static KEYS: Pool<Names> = Pool::new();

impl ObjectKey {
    pub fn new(namespace: impl Into<Name>, name: impl Into<Box<str>>) -> Self {
        Self(KEYS.get(Names {
            namespace: namespace.into(),
            name: name.into(),
        }))
    }

    /// Empty for objects that have none, such as Nodes.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The key of another object in the same namespace.
    #[must_use]
    pub fn sibling(&self, name: impl Into<Box<str>>) -> Self {
        Self::new(self.0.namespace.clone(), name)
    }
}

impl Default for ObjectKey {
    fn default() -> Self {
        Self::new("", "")
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKey({self})")
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace().is_empty() {
            write!(f, "{}/", self.namespace())?;
        }
        f.write_str(self.name())
    }
}

/// Identity of a Service port (S6). Renaming a port makes another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub service: ObjectKey,
    /// Empty for the unnamed port of a single-port Service.
    pub port: Name,
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    /// `namespace/name:port`, as `kubectl` users know it; the port's name is
    /// left out where it has none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_in_memory() {
        let (one, other) = (Name::from("http"), Name::from("http".to_owned()));
        assert!(Arc::ptr_eq(&one.0, &other.0));
        let (one, other) = (ObjectKey::new("shop", "web"), ObjectKey::new("shop", "web"));
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert!(Arc::ptr_eq(&one.0, &one.sibling("web").0));
        assert_ne!(one, ObjectKey::new("sho", "pweb"));
    }
}
