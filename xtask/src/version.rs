//! Version numbers as tools print them.

use std::fmt;

/// A version of two or three numbers; what follows them is dropped.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) patch: u32,
}

impl Version {
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// The first version number in what a tool prints about itself, such as
    /// `Kubernetes v1.36.3` or `etcd Version: 3.6.16`.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split(|c: char| c.is_whitespace() || matches!(c, '"' | ',' | '(' | ')'))
            .find_map(Self::parse)
    }

    /// Its first two numbers, as `6.12`.
    pub(crate) fn minor_release(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    fn parse(word: &str) -> Option<Self> {
        let word = word.trim_start_matches("go").trim_start_matches('v');
        let mut numbers = word.splitn(3, '.');
        let major = numbers.next()?.parse().ok()?;
        let minor = leading_number(numbers.next()?)?;
        let patch = numbers.next().and_then(leading_number).unwrap_or(0);
        Some(Self::new(major, minor, patch))
    }

    /// Same major and minor number.
    pub(crate) fn same_minor(self, other: Self) -> bool {
        (self.major, self.minor) == (other.major, other.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The number that `text` begins with.
fn leading_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::rustc("rustc 1.95.0 (59807616e 2026-04-14)", (1, 95, 0))]
    #[case::kubernetes("Kubernetes v1.36.3", (1, 36, 3))]
    #[case::kubectl("Client Version: v1.36.3\nKustomize Version: v5.8.1", (1, 36, 3))]
    #[case::etcd("etcd Version: 3.6.16\nGit SHA: Not provided\nGo Version: go1.26.8", (3, 6, 16))]
    #[case::bpftool("bpftool v7.5.0\nusing libbpf v1.5", (7, 5, 0))]
    #[case::go("go version go1.26.8 linux/amd64", (1, 26, 8))]
    #[case::kernel("6.18.44-fc-v595", (6, 18, 44))]
    #[case::kernel_of_debian("6.1.0-40-amd64", (6, 1, 0))]
    #[case::prerelease("v1.37.0-rc.1", (1, 37, 0))]
    #[case::two_numbers("LLVM version: 22.1", (22, 1, 0))]
    fn finds_the_first(#[case] text: &str, #[case] (major, minor, patch): (u32, u32, u32)) {
        assert_eq!(Version::find(text), Some(Version::new(major, minor, patch)));
    }

    #[rstest]
    #[case::nothing("")]
    #[case::one_number("version 7")]
    #[case::words("no version here")]
    fn finds_none(#[case] text: &str) {
        assert_eq!(Version::find(text), None);
    }

    #[test]
    fn orders_by_number_not_by_text() {
        assert!(Version::new(7, 10, 0) > Version::new(7, 3, 0));
    }
}
