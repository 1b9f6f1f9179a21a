//! The older text format of Prometheus, for whoever does not ask for `OpenMetrics`.

use std::{collections::BTreeMap, fmt::Write as _};

/// Names of this format, which names the samples, of what the other names by families.
fn suffix_and_kind(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "unknown" => ("", "untyped"),
        kind => ("", kind),
    }
}

/// Makes the older format of the newer one: samples are the same, what is said of them is
/// not.
pub fn of_open_metrics(text: &str) -> String {
    let described = |line: &'_ str, what: &str| {
        let (name, rest) = line.strip_prefix(what)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let kinds: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| described(line, "# TYPE "))
        .collect();
    let mut older = String::with_capacity(text.len());
    for line in text.lines() {
        if let Some((name, help)) = described(line, "# HELP ") {
            let kind = kinds.get(&name).map_or("untyped", String::as_str);
            let (suffix, _) = suffix_and_kind(kind);
            let _ = writeln!(older, "# HELP {name}{suffix} {help}");
        } else if let Some((name, kind)) = described(line, "# TYPE ") {
            let (suffix, kind) = suffix_and_kind(&kind);
            let _ = writeln!(older, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let _ = writeln!(older, "{line}");
        }
    }
    older
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stay_and_families_have_their_names() {
        let newer = "# HELP a Changes.\n# TYPE a counter\na_total{x=\"# y\"} 1\n\
                     # HELP b Version.\n# TYPE b info\nb_info{version=\"1\"} 1\n\
                     # HELP c_seconds Time.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\n\
                     c_seconds_count 1\n\
                     # HELP d_total A gauge.\n# TYPE d_total gauge\nd_total 2\n# EOF\n";
        let older = "# HELP a_total Changes.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n\
                     # HELP b_info Version.\n# TYPE b_info gauge\nb_info{version=\"1\"} 1\n\
                     # HELP c_seconds Time.\n# TYPE c_seconds histogram\n\
                     c_seconds_count 1\n\
                     # HELP d_total A gauge.\n# TYPE d_total gauge\nd_total 2\n";
        assert_eq!(of_open_metrics(newer), older);
    }
}
