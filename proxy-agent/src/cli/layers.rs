//! The layers of the configuration: flags, environment, files and defaults, and what each
//! setting is in the end.
//!
//! A flag comes before its environment variable, and that before a file. Where there is a
//! `KubeProxyConfiguration`, kube-proxy's flags do not count, as with kube-proxy: but for
//! `--hostname-override`, how to log, and what is done once (S102). The environment is
//! Tandem's own, and counts all the same.

mod shown;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{ArgMatches, Command, FromArgMatches as _, parser::ValueSource};
use serde::Serialize;
use tracing::{info, warn};

pub use self::shown::Shown;
use super::RunArgs;
use crate::{
    config::{
        Config, ConfigError, FeatureGates,
        file::{Entry, FileError, Invalid, Said, Texts},
        settings::{self, BESIDE_A_FILE, KUBE_PROXY, Role, Setting},
        value::{Kind, Wrong, nanoseconds},
    },
    source::Source,
};

/// What the command line of `run` says, by the names of flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given(BTreeMap<String, OsString>);

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

/// The configuration in force, and where it comes from.
#[derive(Clone, Debug)]
pub struct Effective {
    pub args: RunArgs,
    /// Values that are no defaults, by flag.
    values: BTreeMap<String, (OsString, Origin)>,
    /// What is said and is no flag of ours.
    others: BTreeMap<&'static str, (String, Origin)>,
    mode: String,
    /// What is left out or ignored, in a line each.
    pub warnings: Vec<String>,
    /// What is said and changes nothing, in a line each.
    pub notes: Vec<String>,
}

/// An error in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Of a flag or a variable.
    #[error("{0}")]
    Usage(String),
}

impl Given {
    /// The part of a command line that is about `run`.
    pub(super) fn of(command: &Command, matches: &ArgMatches) -> Self {
        let mut given = BTreeMap::new();
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            let Some(flag) = argument.get_long() else {
                continue;
            };
            let is_given = matches
                .try_contains_id(id)
                .is_ok_and(|_| matches.value_source(id) == Some(ValueSource::CommandLine));
            if !is_given {
                continue;
            }
            let values = matches.get_raw(id).into_iter().flatten();
            let value = values.collect::<Vec<_>>().join(OsStr::new(","));
            given.insert(flag.to_owned(), value);
        }
        Self(given)
    }
}

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

/// Puts the layers together. `environment` has the variables, `texts` the files that
/// `--config` names.
pub fn resolve(
    given: &Given,
    environment: &dyn Fn(&str) -> Option<OsString>,
    texts: &Texts,
) -> Result<Effective, LayerError> {
    let said = texts.parse()?;
    let mut layers = Layers::new(&said, given);
    layers.add_flags(given)?;
    layers.add_environment(environment);
    layers.add_files(&said);
    layers.add_defaults();
    layers.tell_pods(texts);
    layers.check()?;
    layers.finish()
}

struct Layers {
    values: BTreeMap<String, (OsString, Origin)>,
    others: BTreeMap<&'static str, (String, Origin)>,
    mode: String,
    /// Whether there is a file of kube-proxy.
    has_file: bool,
    warnings: Vec<String>,
}

impl Layers {
    fn new(said: &Said, given: &Given) -> Self {
        let mode = if let Some(entries) = &said.of_kube_proxy {
            text_of(entries, "mode").unwrap_or_default().to_owned()
        } else {
            let mode = given.0.get("proxy-mode").cloned().unwrap_or_default();
            mode.to_string_lossy().into_owned()
        };
        Self {
            values: BTreeMap::new(),
            others: BTreeMap::new(),
            mode,
            has_file: said.of_kube_proxy.is_some(),
            warnings: said.warnings.clone(),
        }
    }

    fn add_flags(&mut self, given: &Given) -> Result<(), LayerError> {
        let mut ignored = Vec::new();
        let mut synonyms = Vec::new();
        for (flag, value) in &given.0 {
            let Some(setting) = settings::of_flag(flag) else {
                self.say(flag, value.clone(), Origin::Flag);
                continue;
            };
            let text = value.to_string_lossy().into_owned();
            // Empty means none for an address to listen on.
            if !text.is_empty() {
                setting.kind.check(&text).map_err(|wrong| {
                    let wrong = Invalid::new(format!("--{flag}"), &text, wrong);
                    LayerError::Usage(wrong.to_string())
                })?;
            }
            if self.has_file && !BESIDE_A_FILE.contains(&flag.as_str()) {
                ignored.push(format!("--{flag}"));
            } else if setting.target() == Some(flag) {
                self.say(flag, value.clone(), Origin::Flag);
            } else {
                synonyms.push((setting, text));
            }
        }
        for (setting, text) in synonyms {
            self.add(setting, &text, Origin::Flag);
        }
        if !ignored.is_empty() {
            self.warnings.push(format!(
                "flags that do not count beside a KubeProxyConfiguration, as with kube-proxy: {}",
                ignored.join(", ")
            ));
        }
        Ok(())
    }

    fn add_environment(&mut self, environment: &dyn Fn(&str) -> Option<OsString>) {
        for argument in super::run_command().get_arguments() {
            let (Some(flag), Some(name)) = (argument.get_long(), argument.get_env()) else {
                continue;
            };
            let value = name.to_str().and_then(environment);
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                self.say(flag, value, Origin::Environment);
            }
        }
    }

    fn add_files(&mut self, said: &Said) {
        for entry in said.of_tandem.iter().chain(&said.of_kube_proxy).flatten() {
            self.add(entry.setting, &entry.text, Origin::File);
        }
    }

    /// Takes one of kube-proxy's settings for what it is here.
    fn add(&mut self, setting: &'static Setting, text: &str, origin: Origin) {
        let key = if setting.field.is_empty() {
            setting.flag
        } else {
            setting.field
        };
        self.others.entry(key).or_insert((text.to_owned(), origin));
        let Some(target) = setting.target() else {
            return;
        };
        if !setting.counts_in(&self.mode) {
            return;
        }
        if setting.kind == Kind::Port {
            // A port of its own, or none at all.
            if text == "0" {
                self.say(target, OsString::new(), origin);
            } else if let Some(usual) = default_of(target) {
                let address = usual.rsplit_once(':').map_or("", |(ip, _)| ip);
                self.say(target, format!("{address}:{text}").into(), origin);
            }
            return;
        }
        self.say(target, text.into(), origin);
    }

    /// Sets what nobody has said before.
    fn say(&mut self, flag: &str, value: OsString, origin: Origin) {
        self.values
            .entry(flag.to_owned())
            .or_insert((value, origin));
    }

    /// Defaults that depend on other settings.
    fn add_defaults(&mut self) {
        let bind = self.value("bind-address").unwrap_or_default();
        if bind.parse::<std::net::Ipv6Addr>().is_ok() {
            self.say("healthz-bind-address", "[::]:10256".into(), Origin::Default);
            self.say(
                "metrics-bind-address",
                "[::1]:10249".into(),
                Origin::Default,
            );
        }
        if self.mode == "nftables" {
            self.say("nodeport-addresses", "primary".into(), Origin::Default);
        }
        // One source is enough, and the more explicit one counts.
        let origin = |flag: &str| self.values.get(flag).map(|(_, origin)| *origin);
        if origin("manifests").is_some() {
            for flag in ["kubeconfig", "master"] {
                if origin(flag) == Some(Origin::File) {
                    self.values.remove(flag);
                    return self.add_defaults();
                }
            }
        }
    }

    /// Where a folder was named and has no configuration of kube-proxy, the Node object
    /// tells which clients are pods: that needs no setting. Where it has one, all is as it
    /// says.
    fn tell_pods(&mut self, texts: &Texts) {
        let is_said = |flag: &str| self.values.contains_key(flag);
        let nobody_says = !is_said("detect-local-mode") && !is_said("cluster-cidr");
        if nobody_says && self.has_file {
            self.warnings.push(
                "no clusterCIDR is configured, as for kube-proxy, so no client counts as a pod; \
                 TANDEM_CLUSTER_CIDR or TANDEM_DETECT_LOCAL_MODE=NodeCIDR tells them"
                    .to_owned(),
            );
        } else if nobody_says && texts.were_looked_for() {
            self.say("detect-local-mode", "NodeCIDR".into(), Origin::Default);
        }
    }

    fn value(&self, flag: &str) -> Option<String> {
        let (value, _) = self.values.get(flag)?;
        Some(value.to_string_lossy().into_owned())
    }

    /// Checks what kube-proxy checks of several settings together (S101).
    fn check(&self) -> Result<(), Invalid> {
        let section = match self.mode.as_str() {
            "" => "iptables",
            mode => mode,
        };
        let said = |field: &str| {
            let (text, origin) = self.others.get(format!("{section}.{field}").as_str())?;
            (*origin == Origin::File).then(|| text.clone())
        };
        let sync = said("syncPeriod").unwrap_or_else(|| "30s".to_owned());
        if let Some(least) = said("minSyncPeriod")
            && nanoseconds(&least) > nanoseconds(&sync)
        {
            let wrong = Wrong {
                reason: format!("must be greater than or equal to {section}.minSyncPeriod"),
                remedy: format!("make it {least} or more"),
            };
            return Err(Invalid::new(format!("{section}.syncPeriod"), sync, wrong));
        }
        let mode = self.value("detect-local-mode").unwrap_or_default();
        for (needs, flag, field) in [
            (
                "BridgeInterface",
                "pod-bridge-interface",
                "detectLocal.bridgeInterface",
            ),
            (
                "InterfaceNamePrefix",
                "pod-interface-name-prefix",
                "detectLocal.interfaceNamePrefix",
            ),
        ] {
            if mode == needs && self.value(flag).unwrap_or_default().is_empty() {
                let wrong = Wrong {
                    reason: format!("must not be empty where detectLocalMode is {needs}"),
                    remedy: format!("set it, or --{flag} without a file"),
                };
                return Err(Invalid::new(field, "", wrong));
            }
        }
        Ok(())
    }

    /// Reads what is said as if it were flags, so that a value means the same wherever it
    /// stands.
    fn finish(self) -> Result<Effective, LayerError> {
        let mut line: Vec<OsString> = vec!["proxy-agent".into(), "run".into()];
        for (flag, (value, _)) in &self.values {
            let mut argument = OsString::from(format!("--{flag}"));
            if !is_bare(flag) {
                argument.push("=");
                argument.push(value);
            }
            line.push(argument);
        }
        let command = super::without_environment(super::command());
        let matches = command.try_get_matches_from(line);
        let args = matches.and_then(|matches| match matches.subcommand() {
            Some((_, run)) => RunArgs::from_arg_matches(run),
            None => RunArgs::from_arg_matches(&matches),
        });
        let args = args.map_err(|error| LayerError::Usage(self.explain(&error)))?;
        let mut effective = Effective {
            args,
            values: self.values,
            others: self.others,
            mode: self.mode,
            warnings: self.warnings,
            notes: Vec::new(),
        };
        effective.name_what_means_nothing();
        Ok(effective)
    }

    /// The error in a value, and which variables are set, where one of them has it.
    fn explain(&self, error: &clap::Error) -> String {
        let text = super::one_line(error);
        let text = text.trim_start_matches("error: ").to_owned();
        let variables = self.values.iter().filter_map(|(flag, (_, origin))| {
            let is_named = text.contains(&format!("--{flag} "));
            (*origin == Origin::Environment && is_named).then(|| variable_of(flag))
        });
        match variables.collect::<Vec<_>>().first() {
            Some(variable) => format!("{text} (from the environment: {variable})"),
            None => text,
        }
    }
}

/// The environment variable of a flag.
fn variable_of(flag: &str) -> String {
    format!("TANDEM_{}", flag.to_uppercase().replace('-', "_"))
}

/// Whether a flag takes no value.
fn is_bare(flag: &str) -> bool {
    let command = super::run_command();
    let mut arguments = command.get_arguments();
    let argument = arguments.find(|argument| argument.get_long() == Some(flag));
    argument.is_some_and(|argument| !argument.get_action().takes_values())
}

/// The value that a flag has by itself.
fn default_of(flag: &str) -> Option<String> {
    let command = super::run_command();
    let argument = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(flag))?
        .clone();
    let values = argument.get_default_values().iter();
    let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
    Some(values.join(","))
}

fn text_of<'a>(entries: &'a [Entry], field: &str) -> Option<&'a str> {
    let entry = entries.iter().find(|entry| entry.setting.field == field);
    entry.map(|entry| entry.text.as_str())
}

impl Effective {
    /// Logs what is left out, ignored, or means nothing.
    pub fn log(&self) {
        for warning in &self.warnings {
            warn!("{warning}");
        }
        for note in &self.notes {
            info!("{note}");
        }
    }

    /// The settings of `run`.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::try_from(self.args.clone())?;
        if let Source::Kubernetes(access) = &mut config.source {
            let origin = self.values.get("kubeconfig").map(|(_, origin)| *origin);
            access.kubeconfig_may_miss = origin == Some(Origin::File);
        }
        Ok(config)
    }

    /// Adds one line about what is said and changes nothing here.
    fn name_what_means_nothing(&mut self) {
        let mut nothing = BTreeSet::new();
        let mut not_yet = BTreeSet::new();
        for setting in KUBE_PROXY {
            let key = if setting.field.is_empty() {
                setting.flag
            } else {
                setting.field
            };
            let said = match (self.others.get(key), setting.target()) {
                (Some((text, _)), _) => Some(text.clone()),
                (None, Some(flag)) => {
                    let value = self.values.get(flag).filter(|_| setting.flag == flag);
                    value.map(|(value, _)| value.to_string_lossy().into_owned())
                }
                (None, None) => None,
            };
            let Some(text) = said else { continue };
            if setting.kind == Kind::Gates {
                let gates = text.split(',').filter_map(|gate| gate.split('=').next());
                let others = gates
                    .map(str::trim)
                    .filter(|gate| *gate != FeatureGates::EXTERNAL_IPS);
                nothing.extend(
                    others
                        .filter(|gate| !gate.is_empty())
                        .map(|gate| format!("featureGates.{gate}")),
                );
                continue;
            }
            if text == setting.default || setting.field == "mode" || setting.flag == "proxy-mode" {
                continue;
            }
            match setting.role {
                Role::Nothing(_) => drop(nothing.insert(setting.name())),
                Role::NotYet(_) => drop(not_yet.insert(setting.name())),
                Role::InMode(..) if !setting.counts_in(&self.mode) => {
                    nothing.insert(setting.name());
                }
                Role::Is(_) | Role::InMode(..) => {}
            }
        }
        for (what, names) in [
            ("mean nothing here", nothing),
            ("are not used yet", not_yet),
        ] {
            if !names.is_empty() {
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                self.notes.push(format!("settings that {what}: {names}"));
            }
        }
    }
}

/// Variables of Tandem's that no flag has.
pub fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let mut known = BTreeSet::new();
    let command = super::command();
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

#[cfg(test)]
mod tests;
