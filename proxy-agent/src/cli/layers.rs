//! The layers of the configuration: flags, environment, files and defaults, and what each
//! setting is in the end.
//!
//! A flag comes before its environment variable, and that before a file. Where there is a
//! `KubeProxyConfiguration`, kube-proxy's flags do not count, as with kube-proxy: but for
//! `--hostname-override`, how to log, and what is done once (S102). The environment is
//! Tandem's own, and counts all the same.

mod configuration;
mod effective;
mod shown;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use clap::{ArgMatches, Command, FromArgMatches as _, parser::ValueSource};
use serde::Serialize;

pub use self::{
    configuration::{Configuration, unknown_variables},
    shown::Shown,
};
use super::RunArgs;
use crate::config::{
    file::{Entry, FileError, Invalid, Said, Texts},
    settings::{self, BESIDE_A_FILE, Setting},
    value::{Kind, Wrong, nanoseconds},
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
pub(super) fn variable_of(flag: &str) -> String {
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

#[cfg(test)]
mod tests;
