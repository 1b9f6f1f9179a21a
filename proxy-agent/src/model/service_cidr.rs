//! `ServiceCIDRs`: the prefixes that cluster IPs are taken from.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Object, ObjectKey, Problems,
    address::parse_cidr,
    api::{List, Malformed, Metadata, api_fields},
};

/// Prefixes of cluster IPs, mostly one of each family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// Without a namespace.
    pub key: ObjectKey,
    pub cidrs: Vec<IpNet>,
}

/// A reason why part of a `ServiceCIDR` is not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum ServiceCidrProblem {
    #[error("cidrs lists {0:?}, which is not a CIDR")]
    Cidr(String),
    #[error("cidrs lists {0}, which is every address there is")]
    Everything(IpNet),
}

impl ServiceCidrProblem {
    /// Short name of the problem, the label of its counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Cidr(_) => "cidr_syntax",
            Self::Everything(_) => "cidr_length",
        }
    }
}

api_fields! {
    /// The fields of a `ServiceCIDR` that are read.
    pub struct ServiceCidrFields for ServiceCIDR {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
    }

    pub struct Spec {
        cidrs: List<Box<str>> = "cidrs",
    }
}

impl Object for ServiceCidr {
    type Fields = ServiceCidrFields;
    const KIND: Kind = Kind::ServiceCidr;

    /// A list that is malformed fails: without it new flows to addresses that no
    /// Service has would pass. A prefix that is malformed is left out.
    fn read(
        key: &ObjectKey,
        _: Metadata,
        fields: ServiceCidrFields,
        problems: &mut Problems,
    ) -> Result<Option<Self>, Malformed> {
        let spec = fields.spec.or_default("spec")?;
        let listed = spec.cidrs.or_default("spec.cidrs")?;
        let mut cidrs = Vec::with_capacity(listed.len());
        for (at, raw) in listed.into_iter().enumerate() {
            let raw = raw.or_default(format_args!("spec.cidrs[{at}]"));
            let Some(raw) = problems.note(raw, "it is left out") else {
                continue;
            };
            match parse_cidr(&raw) {
                Some(cidr) if cidr.prefix_len() == 0 => {
                    problems.add(ServiceCidrProblem::Everything(cidr));
                }
                Some(cidr) => cidrs.push(cidr),
                None => problems.add(ServiceCidrProblem::Cidr(raw.into())),
            }
        }
        let key = key.clone();
        Ok(Some(Self { key, cidrs }))
    }

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Problem;

    /// As `kubectl get servicecidr kubernetes -o yaml` prints one, and what no
    /// API server would take.
    #[test]
    fn keeps_the_prefixes() {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112", "10.97.0.0", "::/0"]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "",
                "lastTransitionTime": "2026-08-01T10:00:00Z"}]},
        });
        let parsed = ServiceCidr::from_api(serde_json::from_value(object).expect("valid"));
        let expected = ServiceCidr {
            key: ObjectKey::new("", "kubernetes"),
            cidrs: ["10.96.0.0/16", "fd00:10:96::/112"]
                .map(|cidr| cidr.parse().expect("a CIDR"))
                .into(),
        };
        assert_eq!(parsed.state.usable(), Some(expected));
        let problems: Vec<_> = parsed.problems.iter().map(Problem::to_string).collect();
        let expected = [
            "cidrs lists \"10.97.0.0\", which is not a CIDR",
            "cidrs lists ::/0, which is every address there is",
        ];
        assert_eq!(problems, expected);
    }
}
