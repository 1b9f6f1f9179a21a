//! Configuration files: kube-proxy's own, as the cluster's `ConfigMap` holds it, and a
//! document of ours for what kube-proxy has no field for.
//!
//! Fields that nobody knows, and those that are there twice, are named and left out, as
//! kube-proxy does (S96).

mod tree;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use self::tree::Tree;
use super::{
    settings::{KUBE_PROXY, Setting, TANDEM},
    value::Wrong,
};

pub(crate) const KUBE_PROXY_KIND: [&str; 2] =
    ["kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"];
pub(crate) const TANDEM_KIND: [&str; 2] = ["tandem-proxy.github.io/v1alpha1", "ProxyConfiguration"];

/// Names that a folder has the configuration under: kubeadm's, that of EKS, and others'.
const NAMES: [&str; 4] = ["config.conf", "config", "config.yaml", "tandem.yaml"];

/// The texts of the configuration's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    files: Vec<(PathBuf, String)>,
    were_looked_for: bool,
}

/// What the files say.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub of_kube_proxy: Option<Vec<Entry>>,
    pub of_tandem: Option<Vec<Entry>>,
    /// Lines about what was left out.
    pub warnings: Vec<String>,
}

/// A field and its value, as text.
#[derive(Clone, Debug)]
pub struct Entry {
    pub setting: &'static Setting,
    pub text: String,
}

/// A value that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?} {reason}; {remedy}")]
pub struct Invalid {
    pub field: String,
    pub value: String,
    pub reason: String,
    pub remedy: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, value: impl Into<String>, wrong: Wrong) -> Self {
        Self {
            field: field.into(),
            value: value.into(),
            reason: wrong.reason,
            remedy: wrong.remedy,
        }
    }
}

/// An error in a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read the configuration {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path}, document {document}: {reason}")]
    Syntax {
        path: String,
        document: usize,
        reason: String,
    },
    #[error(
        "{path}, document {document}: {kind} is no configuration of a proxy; there are \
         KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1 and ProxyConfiguration of \
         tandem-proxy.github.io/v1alpha1"
    )]
    Kind {
        path: String,
        document: usize,
        kind: String,
    },
    #[error("{path}: a second {kind}; take one of them out")]
    Second { path: String, kind: &'static str },
    #[error("{path}: no configuration in it")]
    Empty { path: String },
    #[error("{}", lines(.0))]
    Invalid(Vec<Invalid>),
}

fn lines(errors: &[Invalid]) -> String {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Texts {
    /// Reads the files at these paths. A folder has those of some usual names, or none.
    pub fn read(paths: &[PathBuf]) -> Result<Self, FileError> {
        let mut texts = Vec::new();
        for path in paths {
            if path.is_dir() {
                for path in NAMES.map(|name| path.join(name)) {
                    if path.is_file() {
                        texts.push(read_file(&path)?);
                    }
                }
            } else {
                texts.push(read_file(path)?);
            }
        }
        Ok(Self {
            files: texts,
            were_looked_for: !paths.is_empty(),
        })
    }

    /// Returns whether a path was named, whether or not there is a file.
    pub fn were_looked_for(&self) -> bool {
        self.were_looked_for
    }

    /// Takes the files apart, strictly first, then without what nobody knows.
    pub fn parse(&self) -> Result<Said, FileError> {
        let mut said = Said::default();
        for (path, text) in &self.files {
            said.add_file(path, text)?;
        }
        Ok(said)
    }

    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        let files = match text {
            "" => Vec::new(),
            text => vec![("config.conf".into(), text.to_owned())],
        };
        Self {
            files,
            were_looked_for: true,
        }
    }
}

fn read_file(path: &Path) -> Result<(PathBuf, String), FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok((path.to_owned(), text)),
        Err(source) => Err(FileError::Read {
            path: path.display().to_string(),
            source,
        }),
    }
}

impl Said {
    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), FileError> {
        let path = path.display().to_string();
        let mut documents = 0;
        for (number, text) in crate::yaml::documents(text).enumerate() {
            documents += 1;
            self.add_document(&path, number + 1, text)?;
        }
        match documents {
            0 => Err(FileError::Empty { path }),
            _ => Ok(()),
        }
    }

    fn add_document(&mut self, path: &str, document: usize, text: &str) -> Result<(), FileError> {
        let tree: Tree = tree::parse(text).map_err(|reason| FileError::Syntax {
            path: path.to_owned(),
            document,
            reason,
        })?;
        let kind = ["apiVersion", "kind"].map(|name| tree.text(name).unwrap_or_default());
        let (table, slot, kind) = if kind == KUBE_PROXY_KIND {
            (KUBE_PROXY, &mut self.of_kube_proxy, KUBE_PROXY_KIND[1])
        } else if kind == TANDEM_KIND {
            (TANDEM, &mut self.of_tandem, TANDEM_KIND[1])
        } else {
            return Err(FileError::Kind {
                path: path.to_owned(),
                document,
                kind: match kind {
                    ["", ""] => "what has neither apiVersion nor kind".to_owned(),
                    [version, kind] => format!("{kind} of {version}"),
                },
            });
        };
        if slot.is_some() {
            return Err(FileError::Second {
                path: path.to_owned(),
                kind,
            });
        }
        let mut walk = Walk::new(table);
        walk.map("", &tree);
        if !walk.invalid.is_empty() {
            return Err(FileError::Invalid(walk.invalid));
        }
        *slot = Some(walk.entries);
        if !walk.unknown.is_empty() {
            let fields = walk.unknown.join(", ");
            self.warnings.push(format!(
                "{path}: fields of {kind} that are not known, left out: {fields}"
            ));
        }
        let repeated = tree.repeated();
        if !repeated.is_empty() {
            let fields = repeated.join(", ");
            self.warnings.push(format!(
                "{path}: fields that are there twice, the last counts: {fields}"
            ));
        }
        Ok(())
    }
}

/// The way through a document's fields.
struct Walk {
    table: &'static [Setting],
    entries: Vec<Entry>,
    unknown: Vec<String>,
    invalid: Vec<Invalid>,
}

impl Walk {
    fn new(table: &'static [Setting]) -> Self {
        Self {
            table,
            entries: Vec::new(),
            unknown: Vec::new(),
            invalid: Vec::new(),
        }
    }

    fn map(&mut self, path: &str, tree: &Tree) {
        let Tree::Map(fields) = tree else {
            if !tree.is_null() {
                let wrong = Wrong {
                    reason: "must hold fields".to_owned(),
                    remedy: "correct its type".to_owned(),
                };
                let value = tree.value().to_string();
                self.invalid.push(Invalid::new(path, value, wrong));
            }
            return;
        };
        for (name, field) in fields {
            let path = match path {
                "" => name.clone(),
                path => format!("{path}.{name}"),
            };
            if ["apiVersion", "kind"].contains(&path.as_str()) {
                continue;
            }
            let below = format!("{path}.");
            if let Some(setting) = self.table.iter().find(|setting| setting.field == path) {
                self.field(setting, field);
            } else if self.table.iter().any(|s| s.field.starts_with(&below)) {
                self.map(&path, field);
            } else {
                self.unknown.push(path);
            }
        }
    }

    fn field(&mut self, setting: &'static Setting, tree: &Tree) {
        // The last of several counts.
        self.entries
            .retain(|entry| entry.setting.field != setting.field);
        if tree.is_null() {
            return;
        }
        let value = tree.value();
        let mut refuse = |value: &str, wrong| {
            self.invalid.push(Invalid::new(setting.field, value, wrong));
        };
        let text = match setting.kind.text_of(&value) {
            Ok(text) => text,
            Err(wrong) => return refuse(&value.to_string(), wrong),
        };
        if !setting.zero_counts && setting.kind.is_zero(&text) {
            return;
        }
        match setting.kind.check(&text) {
            Ok(()) => self.entries.push(Entry { setting, text }),
            Err(wrong) => refuse(&text, wrong),
        }
    }
}

#[cfg(test)]
mod tests;
