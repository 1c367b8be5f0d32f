//! Text that is escaped by construction.

/// A page under construction.
#[derive(Debug, Default)]
pub struct Html {
    text: String,
}

impl Html {
    /// An empty page.
    pub fn new() -> Html {
        Html::default()
    }

    /// Markup of our own.
    pub fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.text.push_str(markup);
        self
    }

    /// Text from anywhere, escaped for elements and quoted attributes.
    pub fn text(&mut self, text: impl AsRef<str>) -> &mut Html {
        for c in text.as_ref().chars() {
            match c {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '"' => self.text.push_str("&quot;"),
                '\'' => self.text.push_str("&#39;"),
                '\n' | '\t' => self.text.push(' '),
                c if c.is_control() || reorders(c) => self.text.push('\u{fffd}'),
                c => self.text.push(c),
            }
        }
        self
    }

    /// A number with so many decimals; nothing else can come out, whatever the number is.
    pub fn number(&mut self, number: f64, decimals: usize) -> &mut Html {
        let number = if number.is_finite() { number.clamp(-1e15, 1e15) } else { 0.0 };
        self.text.push_str(&format!("{number:.decimals$}"));
        self
    }

    /// The page.
    pub fn finish(self) -> String {
        self.text
    }
}

/// Whether a character changes the order in which others are shown, and so could make a text read as another.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_becomes_markup() {
        let mut page = Html::new();
        page.text("</td><script>alert('\"&\u{1b}\u{202e}\n").number(f64::NAN, 1).raw("|").number(-2.346, 2);
        assert_eq!(
            page.finish(),
            "&lt;/td&gt;&lt;script&gt;alert(&#39;&quot;&amp;\u{fffd}\u{fffd} 0.0|-2.35"
        );
    }
}
