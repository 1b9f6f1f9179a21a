//! The documents of a YAML file.

/// The documents between `---` lines. A line that begins so is never part of a
/// document, whatever surrounds it, so a broken document cannot hide the next.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = separator(text);
        rest = end.map(|(_, next)| &text[next..]);
        Some(&text[..end.map_or(text.len(), |(end, _)| end)])
    })
    .filter(|text| !is_blank(text))
}

/// Returns the start and the end of the next separator; the next document begins at the end.
fn separator(text: &str) -> Option<(usize, usize)> {
    let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
    starts
        .filter(|&at| text[at..].starts_with("---"))
        .find(|&at| text[at + 3..].is_empty() || text[at + 3..].starts_with(char::is_whitespace))
        .map(|at| (at, at + 3))
}

/// Nothing but blank lines, comments and directives.
fn is_blank(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with(['#', '%']) || line == "...")
}
