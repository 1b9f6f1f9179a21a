//! The layers' sources: command line, environment and files.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf};

use super::{Effective, Given, LayerError, resolve};
use crate::{cli, config::file::Texts};

/// The configuration's sources, to be read again when files change.
#[derive(Clone, Debug)]
pub struct Configuration {
    given: Given,
    paths: Vec<PathBuf>,
    /// The files as they were when they were last read.
    texts: Texts,
}

impl Configuration {
    pub fn new(given: Given) -> Self {
        let paths = config_paths(&given, &|name| std::env::var_os(name));
        Self {
            given,
            paths,
            texts: Texts::default(),
        }
    }

    /// Reads the files, and puts all layers together.
    pub fn load(&mut self) -> Result<Effective, LayerError> {
        let texts = Texts::read(&self.paths)?;
        self.texts = texts;
        resolve(&self.given, &|name| std::env::var_os(name), &self.texts)
    }

    /// Returns whether the files are other than when they were read.
    pub fn has_changed(&self) -> bool {
        // One that cannot be read is being replaced.
        Texts::read(&self.paths).is_ok_and(|texts| texts != self.texts)
    }
}

/// Variables of Tandem's that no flag has.
pub fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let mut known = BTreeSet::new();
    let command = cli::command();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        let variables = command
            .get_arguments()
            .filter_map(|argument| argument.get_env());
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    }
    let names = names.filter_map(|name| name.into_string().ok());
    let mut unknown: Vec<_> = names
        .filter(|name| name.starts_with("TANDEM_") && !known.contains(name))
        .collect();
    unknown.sort();
    unknown
}

/// The files that the command line or the environment names.
pub fn config_paths(given: &Given, environment: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let value = given.0.get("config").cloned();
    let value = value.or_else(|| environment("TANDEM_CONFIG"));
    let value = value.unwrap_or_default().to_string_lossy().into_owned();
    let paths = value.split(',').filter(|path| !path.is_empty());
    paths.map(PathBuf::from).collect()
}
