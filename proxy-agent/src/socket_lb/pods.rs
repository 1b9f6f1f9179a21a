//! The cgroups that the kubelet makes for a pod.

use super::exceptions::Pattern;

/// Returns the possible cgroups of a pod, by the kubelet's cgroup driver and the pod's
/// quality of service: `kubepods/burstable/pod<uid>`, or
/// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`
/// with `_` for `-` in the uid; pods of the class Guaranteed are one level
/// higher. In kind's nodes all of it is below `kubelet.slice`.
pub fn cgroups(uid: &str) -> Vec<Pattern> {
    let uid = uid.trim();
    // What the API server makes; nothing else may become part of a path.
    if uid.is_empty() || !uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let names = [
        format!("pod{uid}"),
        format!("*-pod{}.slice", uid.replace('-', "_")),
    ];
    let parents = [
        "*kubepods*",
        "*kubepods*/*",
        "kubelet*/*kubepods*",
        "kubelet*/*kubepods*/*",
    ];
    let paths = parents
        .iter()
        .flat_map(|parent| names.iter().map(move |name| format!("{parent}/{name}")));
    paths.filter_map(|path| path.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _};

    use rstest::rstest;

    use super::*;
    use crate::socket_lb::exceptions::Exceptions;

    const UID: &str = "0c7f2a9e-1b7d-4d0a-9f6e-2f5d2c8b1a34";

    #[rstest]
    #[case("kubepods/pod0c7f2a9e-1b7d-4d0a-9f6e-2f5d2c8b1a34")]
    #[case("kubepods/burstable/pod0c7f2a9e-1b7d-4d0a-9f6e-2f5d2c8b1a34")]
    #[case("kubepods.slice/kubepods-pod0c7f2a9e_1b7d_4d0a_9f6e_2f5d2c8b1a34.slice")]
    #[case(
        "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0c7f2a9e_1b7d_4d0a_9f6e_2f5d2c8b1a34.slice"
    )]
    #[case(
        "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0c7f2a9e_1b7d_4d0a_9f6e_2f5d2c8b1a34.slice"
    )]
    fn finds_the_cgroup_of_a_pod_and_no_other(#[case] path: &str) {
        let root = tempfile::tempdir().expect("a folder");
        let path = root.path().join(path);
        fs::create_dir_all(path.join("container")).expect("a folder");
        let other = path.with_file_name("pod11111111-1b7d-4d0a-9f6e-2f5d2c8b1a34");
        fs::create_dir_all(other).expect("a folder");
        let found = Exceptions::find(root.path(), &cgroups(UID)).cgroups;
        let expected = fs::metadata(path).expect("there").ino();
        assert_eq!(found, BTreeSet::from([expected]));
    }

    #[test]
    fn a_strange_uid_names_no_path() {
        for uid in ["", "..", "*", "a/b"] {
            assert_eq!(cgroups(uid), Vec::new(), "{uid:?}");
        }
    }
}
