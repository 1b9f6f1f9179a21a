//! Every setting with its value, and where that comes from.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Effective, Origin, default_of};
use crate::config::{
    file::{KUBE_PROXY_KIND, TANDEM_KIND},
    settings::{KUBE_PROXY, Role, Setting, TANDEM},
    value::Kind,
};

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The field of a configuration file, or the flag if there is none.
    pub setting: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub flag: String,
    pub value: String,
    pub origin: Origin,
    /// Whether it means something here, and why not.
    pub used: String,
}

impl Effective {
    /// All settings: kube-proxy's, then ours.
    pub fn shown(&self) -> Vec<Shown> {
        let said_here = |setting: &&Setting| {
            // Another way to say what has a row of its own.
            !setting.field.is_empty()
                || setting.target() == Some(setting.flag)
                || self.others.contains_key(setting.flag)
        };
        let rows = KUBE_PROXY.iter().filter(said_here).chain(TANDEM);
        let mut seen = BTreeSet::new();
        rows.map(|setting| self.show(setting))
            .filter(|shown| seen.insert((shown.setting.clone(), shown.flag.clone())))
            .collect()
    }

    fn show(&self, setting: &Setting) -> Shown {
        let (value, origin) = self.value_and_origin(setting);
        Shown {
            setting: setting.name(),
            flag: match setting.flag {
                "" => String::new(),
                flag => format!("--{flag}"),
            },
            value,
            origin,
            used: match setting.role {
                Role::Is(_) => "yes".to_owned(),
                Role::InMode(..) if setting.counts_in(&self.mode) => "yes".to_owned(),
                Role::InMode(..) if self.mode.is_empty() => {
                    "no: kube-proxy's mode is iptables".to_owned()
                }
                Role::InMode(..) => format!("no: kube-proxy's mode is {}", self.mode),
                Role::Nothing(reason) => format!("no: {reason}"),
            },
        }
    }

    fn value_and_origin(&self, setting: &Setting) -> (String, Origin) {
        if let Some(target) = setting.target().filter(|_| setting.counts_in(&self.mode)) {
            return if let Some((value, origin)) = self.values.get(target) {
                (value.to_string_lossy().into_owned(), *origin)
            } else {
                let default = default_of(target).filter(|value| !value.is_empty());
                (
                    default.unwrap_or_else(|| setting.default.to_owned()),
                    Origin::Default,
                )
            };
        }
        let key = if setting.field.is_empty() {
            setting.flag
        } else {
            setting.field
        };
        let said = self.others.get(key).cloned();
        said.unwrap_or_else(|| (setting.default.to_owned(), Origin::Default))
    }

    /// The documents of a file that says what is in force.
    pub fn documents(&self) -> [Value; 2] {
        [
            self.document(KUBE_PROXY_KIND, KUBE_PROXY),
            self.document(TANDEM_KIND, TANDEM),
        ]
    }

    fn document(&self, kind: [&str; 2], table: &[Setting]) -> Value {
        let mut document = Map::new();
        document.insert("apiVersion".to_owned(), kind[0].into());
        document.insert("kind".to_owned(), kind[1].into());
        for setting in table.iter().filter(|setting| !setting.field.is_empty()) {
            let (text, _) = self.value_and_origin(setting);
            let Some(value) = value_of(setting, &text) else {
                continue;
            };
            let mut path = setting.field.split('.').peekable();
            let mut map = &mut document;
            while let Some(name) = path.next() {
                if path.peek().is_none() {
                    map.insert(name.to_owned(), value);
                    break;
                }
                let below = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(below) = below else { break };
                map = below;
            }
        }
        Value::Object(document)
    }
}

/// The value as a file has it; nothing for one that is left out.
fn value_of(setting: &Setting, text: &str) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    let items = || text.split(',').map(Value::from).collect::<Value>();
    Some(match setting.kind {
        Kind::Bool => (crate::config::value::switch(text)?).into(),
        Kind::Int(..) | Kind::Port => text.parse::<i64>().ok()?.into(),
        Kind::Float => text.parse::<f64>().ok()?.into(),
        Kind::CidrList | Kind::NodePorts | Kind::List => items(),
        Kind::Gates => {
            let gates = text.split(',').filter_map(|gate| gate.split_once('='));
            let gates = gates
                .map(|(name, value)| (name.trim().to_owned(), (value.trim() == "true").into()));
            Value::Object(gates.collect())
        }
        Kind::Any
        | Kind::Text
        | Kind::Duration(_)
        | Kind::HostPort(_)
        | Kind::Address
        | Kind::Cidrs
        | Kind::OneOf(_) => text.into(),
    })
}
