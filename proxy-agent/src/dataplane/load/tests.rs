use std::{collections::BTreeMap, fmt::Write as _};

use aya_obj::{Object, maps::Map};
use proxy_common::table::Scope;

use super::*;
use crate::golden;

/// The maps that the object declares, and no section of variables.
fn declared() -> BTreeMap<String, Map> {
    let object = Object::parse(OBJECT).expect("the object is whole");
    let maps = object.maps.into_iter();
    maps.filter(|(name, _)| !name.starts_with('.') && !name.starts_with("AYA_"))
        .collect()
}

#[test]
fn the_object_declares_the_maps_of_the_registry() {
    let names: Vec<String> = Table::ALL.iter().copied().flat_map(pins::names).collect();
    let mut sorted = names.clone();
    sorted.sort();
    let declared: Vec<String> = declared().into_keys().collect();
    assert_eq!(declared, sorted);
}

/// The name of a map's type, with its flags, for docs.
fn kind(map: &Map) -> String {
    const MMAPABLE: u32 = 1 << 10;
    const ON_DEMAND: u32 = 1;
    let kind = match map.map_type() {
        1 => "hash",
        2 => "array",
        3 => "program array",
        6 => "per-CPU array",
        9 => "LRU hash",
        11 => "LPM trie",
        24 => "socket storage",
        other => panic!("type {other} has no name here"),
    };
    if map.map_type() == 1 && map.map_flags() & ON_DEMAND == 0 {
        return format!("{kind}, preallocated");
    }
    if map.map_flags() & MMAPABLE != 0 {
        return format!("{kind}, mmap");
    }
    kind.to_owned()
}

/// The table of docs/maps.md.
fn page() -> String {
    let declared = declared();
    let mut page = String::from(
        "# Maps\n\n\
         Made from the code: `UPDATE_GOLDEN=1 cargo test -p proxy-agent docs_list` writes this page.\n\
         Every map whose name ends in `_V4` exists as `_V6` too. Entries are those of the defaults;\n\
         of flows, where the node's memory is not known. Bytes are those of keys and values, in\n\
         IPv4 and, where they differ, IPv6.\n\n\
         | map | kind | entries | pinned | key → value | bytes |\n|---|---|---|---|---|---|\n",
    );
    for table in Table::ALL {
        let maps: Vec<_> = pins::names(*table).map(|name| &declared[&name]).collect();
        let suffix = match table.scope() {
            Scope::Family => "_V4",
            Scope::Node => "",
        };
        let entries = Sizes::DEFAULT.of(*table).unwrap_or(maps[0].max_entries());
        let entries = if maps[0].map_type() == 24 {
            "one for each socket".to_owned()
        } else {
            entries.to_string()
        };
        let sizes = |size: fn(&Map) -> u32| {
            let mut sizes: Vec<String> = maps.iter().map(|map| size(map).to_string()).collect();
            sizes.dedup();
            sizes.join(", ")
        };
        let _ = writeln!(
            page,
            "| `{table}{suffix}` | {} | {entries} | {} | {} | {} → {} |",
            kind(maps[0]),
            if table.is_pinned() { "yes" } else { "no" },
            table.help().trim().trim_end_matches('.'),
            sizes(Map::key_size),
            sizes(Map::value_size),
        );
    }
    page
}

#[test]
fn docs_list_the_maps() {
    golden::check("docs/maps.md", &page());
}

/// Returns whether the object has this name in its table of names.
#[cfg(not(feature = "test-programs"))]
fn has(program: &str) -> bool {
    let name = [b"\0", program.as_bytes(), b"\0"].concat();
    OBJECT.windows(name.len()).any(|bytes| bytes == name)
}

#[test]
#[cfg(not(feature = "test-programs"))]
fn the_agents_object_has_its_own_programs_only() {
    for program in HOOK_PROGRAMS.into_iter().chain(SLOW_PROGRAMS) {
        assert!(has(program), "no {program}");
    }
    for program in ["ingress_repeated", "through", "empty"] {
        assert!(!has(program), "{program}");
    }
}
