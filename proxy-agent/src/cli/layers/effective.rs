//! The settings of `run` that the layers make, and what of them changes nothing.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::{Effective, Origin};
use crate::{
    config::{
        Config, ConfigError, FeatureGates,
        settings::{KUBE_PROXY, Role},
        value::Kind,
    },
    source::Source,
};

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
    pub(super) fn name_what_means_nothing(&mut self) {
        let mut nothing = BTreeSet::new();
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
                Role::InMode(..) if !setting.counts_in(&self.mode) => {
                    nothing.insert(setting.name());
                }
                Role::Is(_) | Role::InMode(..) => {}
            }
        }
        if !nothing.is_empty() {
            let names = nothing.into_iter().collect::<Vec<_>>().join(", ");
            self.notes
                .push(format!("settings that mean nothing here: {names}"));
        }
    }
}
