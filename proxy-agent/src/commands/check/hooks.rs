//! Programs of others on the devices the agent has attached.

use crate::{
    commands::check::Finding,
    dataplane::{attach::Hook, hooks::Attached},
};

/// One hook of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceHook {
    pub device: String,
    pub hook: Hook,
    /// In the order they run.
    pub programs: Vec<Attached>,
}

/// Judges the hooks. Programs that run after ours see what they should; those
/// ahead of ours may keep traffic from us, or see other addresses.
pub fn evaluate(hooks: &Result<Vec<DeviceHook>, String>) -> Vec<Finding> {
    let hooks = match hooks {
        Ok(hooks) => hooks,
        Err(reason) => {
            return vec![Finding::warn(
                format!("cannot tell which programs are on the devices, {reason}"),
                "run `check` as root on the node",
            )];
        }
    };
    let findings: Vec<_> = hooks.iter().filter_map(judge).collect();
    if findings.is_empty() && !hooks.is_empty() {
        return vec![Finding::ok(format!(
            "our programs are first on {} devices",
            hooks.len() / Hook::BOTH.len()
        ))];
    }
    findings
}

fn judge(hook: &DeviceHook) -> Option<Finding> {
    let place = format!("{} of device {}", hook.hook.name(), hook.device);
    let Some(position) = hook.programs.iter().position(|program| program.ours) else {
        return Some(Finding::warn(
            format!("our program is not on {place}"),
            "see the log of the agent, or start it again",
        ));
    };
    let ahead: Vec<_> = hook.programs[..position]
        .iter()
        .map(|program| format!("{} (id {})", program.name, program.id))
        .collect();
    (!ahead.is_empty()).then(|| {
        Finding::warn(
            format!("{} run ahead of ours on {place}", ahead.join(", ")),
            "attach them after ours; they see our packets before translation",
        )
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{commands::check::Level, dataplane::attach::Mode};

    /// Programs by id; those below 10 are ours.
    fn hook(programs: &[u32]) -> DeviceHook {
        let programs = programs.iter().map(|id| Attached {
            id: *id,
            name: "classifier".to_owned(),
            ours: *id < 10,
            mode: Mode::Tcx,
        });
        DeviceHook {
            device: "eth0".to_owned(),
            hook: Hook::Ingress,
            programs: programs.collect(),
        }
    }

    #[rstest]
    #[case::alone(&[1], Level::Ok, "first")]
    #[case::others_after(&[1, 10], Level::Ok, "first")]
    #[case::others_ahead(&[11, 1, 12], Level::Warn, "classifier (id 11) run ahead of ours")]
    #[case::gone(&[11], Level::Warn, "our program is not on ingress of device eth0")]
    fn others_may_run_after_ours(
        #[case] programs: &[u32],
        #[case] level: Level,
        #[case] text: &str,
    ) {
        let findings = evaluate(&Ok(vec![hook(programs)]));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].level, level);
        let line = findings[0].to_string();
        assert!(line.contains(text) && !line.contains("12"), "{line}");
    }

    #[test]
    fn no_agent_no_hooks_nothing_to_say() {
        assert_eq!(evaluate(&Ok(Vec::new())), []);
    }

    #[test]
    fn what_is_not_known_is_not_called_well() {
        let findings = evaluate(&Err("not allowed to ask".to_owned()));
        let [finding] = &findings[..] else {
            panic!("one finding, not {findings:?}");
        };
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.what.contains("cannot tell"), "{finding}");
    }
}
