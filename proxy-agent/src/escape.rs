//! Makes text that comes from outside fit for one line of a log or a terminal.
//!
//! Manifests name objects, kinds and files as they like, and an API server words
//! its errors as it likes. A line break among it would make a line of its own,
//! and an escape sequence would tell the terminal what to do.

use std::fmt::{self, Write as _};

/// Displays as the value does, with every character escaped that is not to be
/// seen as itself: `\n`, `\u{1b}`.
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_hidden) {
            let (plain, tail) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut tail = tail.chars();
            if let Some(hidden) = tail.next() {
                write!(self.0, "{}", hidden.escape_default())?;
            }
            rest = tail.as_str();
        }
        self.0.write_str(rest)
    }
}

/// Returns whether a character does something else than to show itself: control
/// characters, and those that break lines or turn the direction of writing.
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("default/web", "default/web")]
    #[case("naïve \"名\" \\", "naïve \"名\" \\")]
    #[case("a\nb\r\tc", r"a\nb\r\tc")]
    #[case("\u{1b}[31mred\u{7f}\u{9b}", r"\u{1b}[31mred\u{7f}\u{9b}")]
    #[case("gpj.\u{202e}exe\u{2028}", r"gpj.\u{202e}exe\u{2028}")]
    fn hidden_characters_are_shown(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(Escaped(text).to_string(), expected);
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left(text: String) {
            prop_assert!(!Escaped(text).to_string().contains(is_hidden));
        }
    }
}
