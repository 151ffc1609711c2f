//! How times and lists read.

use std::time::Duration;

/// Keeps a number and its unit on one line; [`wrap`] prints it as a space.
const NO_BREAK: char = '\u{a0}';

/// A duration with the precision that matters to a reader: 0.21 ms, 14 ms, 1.3 s.
pub(crate) fn time(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    match millis {
        ..9.95 => format!("{millis:.2}{NO_BREAK}ms"),
        9.95..999.5 => format!("{millis:.0}{NO_BREAK}ms"),
        _ => format!("{:.1}{NO_BREAK}s", millis / 1e3),
    }
}

/// Parts with commas between them.
pub(crate) fn list(parts: impl IntoIterator<Item = impl ToString>) -> String {
    parts.into_iter().map(|part| part.to_string()).collect::<Vec<_>>().join(", ")
}

/// `text` in lines of at most `width` characters, broken between words.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let fits = lines
            .last()
            .is_none_or(|line| line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width);
        if !fits {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    lines.iter().map(|line| breakable(line)).collect()
}

/// `text` with ordinary spaces only.
pub(crate) fn breakable(text: &str) -> String {
    text.replace(NO_BREAK, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_with_the_precision_that_matters() {
        let micros = |micros| breakable(&time(Duration::from_micros(micros)));
        assert_eq!(micros(210), "0.21 ms");
        assert_eq!(micros(9_960), "10 ms");
        assert_eq!(micros(13_700), "14 ms");
        assert_eq!(micros(1_260_000), "1.3 s");
    }

    #[test]
    fn lines_break_between_words_and_long_words_stay_whole() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible it is", 5), ["incomprehensible", "it is"]);
        assert_eq!(wrap(&format!("within {}", time(Duration::from_millis(14))), 9), ["within", "14 ms"]);
    }
}
