//! A YAML text cut into its documents.

/// One document of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// The document, with the `---` that starts it.
    pub(super) text: &'a str,
    /// The line of the whole text that the document starts at, counted from 1.
    pub(super) line: usize,
}

/// Cuts `text` at its document markers, so that a broken document leaves the others readable. Documents with
/// nothing but blank lines, comments and directives are left out.
///
/// A line that starts with `---` or `...` and goes on with a blank or nothing is a marker wherever it stands: YAML
/// forbids it inside of scalars (YAML 1.2.2, 9.1.2).
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut start = Start { offset: 0, line: 1, content: false };
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let after = offset + line.len();
        match marker(line) {
            Some(Marker::Start) => {
                documents.extend(start.document(text, offset));
                start = Start { offset, line: index + 1, content: has_content(&line[3..]) };
            }
            Some(Marker::End) => {
                documents.extend(start.document(text, offset));
                start = Start { offset: after, line: index + 2, content: false };
            }
            None => start.content |= has_content(line) && !line.starts_with('%'),
        }
        offset = after;
    }
    documents.extend(start.document(text, text.len()));
    documents
}

struct Start {
    offset: usize,
    line: usize,
    content: bool,
}

impl Start {
    fn document<'a>(&self, text: &'a str, end: usize) -> Option<Document<'a>> {
        self.content.then(|| Document { text: &text[self.offset..end], line: self.line })
    }
}

enum Marker {
    Start,
    End,
}

fn marker(line: &str) -> Option<Marker> {
    let (marker, rest) = line.split_at_checked(3)?;
    if !(rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
        return None;
    }
    match marker {
        "---" => Some(Marker::Start),
        "..." => Some(Marker::End),
        _ => None,
    }
}

fn has_content(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<(usize, &str)> {
        split(text).iter().map(|document| (document.line, document.text)).collect()
    }

    #[test]
    fn documents_keep_the_line_they_start_at() {
        assert_eq!(lines("a: 1\n---\nb: 2\n"), [(1, "a: 1\n"), (2, "---\nb: 2\n")]);
        assert_eq!(lines("---\r\na: 1\r\n--- # two\nb: 2"), [(1, "---\r\na: 1\r\n"), (3, "--- # two\nb: 2")]);
        assert_eq!(lines("--- {a: 1}\n--- {b: 2}\n"), [(1, "--- {a: 1}\n"), (2, "--- {b: 2}\n")]);
        assert_eq!(lines("a: 1\n...\nb: 2\n"), [(1, "a: 1\n"), (3, "b: 2\n")]);
    }

    #[test]
    fn what_only_looks_like_a_marker_is_not_one() {
        for text in ["a: |\n  ---\n", "---a: 1\n", "a:\n- ---\n", "----\n"] {
            assert_eq!(split(text).len(), 1, "{text:?}");
        }
    }

    #[test]
    fn documents_without_content_are_left_out() {
        for text in ["", "\n\n", "---\n---\n", "# nothing\n--- # nothing\n...\n", "%YAML 1.2\n---\n"] {
            assert_eq!(lines(text), [], "{text:?}");
        }
        assert_eq!(lines("%YAML 1.2\n---\na: 1\n"), [(2, "---\na: 1\n")]);
    }

    proptest! {
        #[test]
        fn any_text_is_cut_and_the_lines_are_true(text in "([-.a:|% \\r\\u{e4}]{0,5}\n){0,8}") {
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            for document in split(&text) {
                let first = document.text.split_inclusive('\n').next().unwrap();
                prop_assert_eq!(first, all[document.line - 1]);
            }
        }
    }
}
