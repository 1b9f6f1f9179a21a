//! Rows on standard output, for people or for programs.

use std::io::{self, Write as _};

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::{cli::Output, escape::Escaped};

/// A row of output.
pub trait Row: Serialize + Sized {
    /// Headers of the table's columns.
    const HEADERS: &'static [&'static str];

    /// One cell for each header.
    fn cells(&self) -> Vec<String>;
}

/// Writes rows to standard output. It is no error if a reader has closed it, as `head` does.
pub fn print<R: Row>(rows: &[R], output: Output) -> anyhow::Result<()> {
    let text = render(rows, output)?;
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

fn render<R: Row>(rows: &[R], output: Output) -> anyhow::Result<String> {
    let mut text = match output {
        Output::Table => table(rows),
        Output::Json => serde_json::to_string_pretty(rows).context("write JSON")?,
        Output::Yaml => serde_saphyr::to_string(&rows).context("write YAML")?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Columns without lines around them, as kubectl prints.
fn table<R: Row>(rows: &[R]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(R::HEADERS.iter().copied())
        .add_rows(rows.iter().map(escaped_cells));
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt()
}

/// Returns the cells, escaped: names in the tables are as the objects' authors wrote them.
fn escaped_cells<R: Row>(row: &R) -> Vec<String> {
    let cells = row.cells().into_iter();
    cells.map(|cell| Escaped(cell).to_string()).collect()
}

/// The cell for a value that this process may not read.
pub const UNKNOWN: &str = "?";

/// Returns the cell of a value; a dash if there is none.
pub fn cell(value: Option<impl ToString>) -> String {
    value
        .map(|value| value.to_string())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

/// A cell that names a Service port; a dash if there is none.
pub fn service(namespace: &str, name: &str, port: &str) -> String {
    match (name, port) {
        ("", _) => cell(None::<&str>),
        (name, "") => format!("{namespace}/{name}"),
        (name, port) => format!("{namespace}/{name}:{port}"),
    }
}

/// A cell with several values.
pub fn list(values: impl IntoIterator<Item = impl ToString>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    cell(Some(values.join(",")))
}

/// A cell of a property that a row has or has not.
pub fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pet {
        name: &'static str,
        owner: Option<&'static str>,
    }

    impl Row for Pet {
        const HEADERS: &'static [&'static str] = &["NAME", "OWNER"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned(), cell(self.owner)]
        }
    }

    const PETS: [Pet; 2] = [
        Pet {
            name: "Felix",
            owner: None,
        },
        Pet {
            name: "Rex",
            owner: Some("Ann"),
        },
    ];

    fn rendered(rows: &[Pet], output: Output) -> String {
        render(rows, output).expect("plain rows")
    }

    #[test]
    fn tables_have_aligned_columns_and_no_lines() {
        assert_eq!(
            rendered(&PETS, Output::Table),
            "NAME    OWNER\nFelix   -\nRex     Ann\n"
        );
        assert_eq!(rendered(&[], Output::Table), "NAME   OWNER\n");
    }

    /// As a manifest may name an object. JSON and YAML have escapes of their own.
    #[test]
    fn names_cannot_write_lines_of_their_own() {
        let pet = Pet {
            name: "a\nb\u{1b}[2J",
            owner: Some("\r"),
        };
        let table = rendered(&[pet], Output::Table);
        assert_eq!(
            table.lines().nth(1),
            Some("a\\nb\\u{1b}[2J   \\r"),
            "{table}"
        );
        assert_eq!(table.lines().count(), 2, "{table}");
        for output in [Output::Json, Output::Yaml] {
            let pet = Pet {
                name: "a\nb\u{1b}[2J",
                owner: None,
            };
            let text = rendered(&[pet], output);
            assert!(!text.contains('\u{1b}') && text.contains("\\n"), "{text}");
        }
    }

    #[test]
    fn json_and_yaml_are_lists_even_if_empty() {
        assert_eq!(rendered(&[], Output::Json), "[]\n");
        assert_eq!(rendered(&[], Output::Yaml), "[]\n");
        let json: serde_json::Value =
            serde_json::from_str(&rendered(&PETS, Output::Json)).expect("JSON");
        assert_eq!(json[1]["owner"], "Ann");
        assert!(rendered(&PETS, Output::Yaml).contains("- name: Felix\n  owner: null\n"));
    }
}
