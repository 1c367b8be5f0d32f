//! The filter `tojson` as transformers has it in templates: Python's `json.dumps` of a value, in the order of its keys, without
//! what Jinja's own escapes for HTML.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deeper values are refused: a namespace may hold itself.
const DEPTH_MAX: usize = 128;
/// Bytes that are written for one step's fuel.
const BYTES_PER_FUEL: usize = 64;

/// What `json.dumps` is given, in transformers' order.
const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    placed: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    if placed.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut given = [None, None, None, None];
    for (index, (name, given)) in NAMES.iter().zip(&mut given).enumerate() {
        let named: Option<Value> = named.get(name)?;
        *given = placed.get(index).cloned().or(named);
    }
    named.assert_all_used()?;
    let [ascii, indent, separators, sorted] = given;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        Some(indent) => Some(indentation(state, &indent)?),
        None => None,
    };
    let own = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => {
            let separators: Vec<Value> = separators.try_iter()?.collect();
            match separators.as_slice() {
                [item, key] => (text_of(item)?, text_of(key)?),
                _ => return Err(wrong("`separators` are not two texts")),
            }
        }
        None => (own.into(), ": ".into()),
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ascii, sorted) = (truth(ascii), truth(sorted));
    let mut writer = Writer { state, out: String::new(), ascii, indent, item, key, sorted };
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", reason.into()))
}

fn text_of(value: &Value) -> Result<String, Error> {
    value.as_str().map(str::to_string).ok_or_else(|| wrong("`separators` are not two texts"))
}

/// What one level is indented by: a text, or so many blanks. `true` is one, as in Python.
fn indentation(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.into());
    }
    let count = match value.kind() {
        ValueKind::Bool => i64::from(value.is_true()),
        _ => value.as_i64().ok_or_else(|| wrong("`indent` is neither a number nor a text"))?,
    };
    let count = usize::try_from(count).unwrap_or(0);
    state.consume_fuel((count / BYTES_PER_FUEL) as u64)?;
    Ok(" ".repeat(count))
}

struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    out: String,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.items(['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|object| object.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sorted {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                let items = pairs.into_iter().map(|(key, value)| (Some(key), value)).collect();
                self.items(['{', '}'], items, depth)?;
            }
            kind => return Err(wrong(format!("a value of type {kind} is no JSON"))),
        }
        Ok(())
    }

    /// What is between brackets: values, of an object with their keys.
    fn items(
        &mut self,
        brackets: [char; 2],
        items: Vec<(Option<Value>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth == DEPTH_MAX {
            return Err(wrong(format!("the value is nested more than {DEPTH_MAX} deep")));
        }
        self.out.push(brackets[0]);
        let empty = items.is_empty();
        for (index, (key, value)) in items.into_iter().enumerate() {
            if index > 0 {
                self.charge(self.item.len())?;
                self.out.push_str(&self.item);
            }
            self.new_line(depth + 1)?;
            if let Some(key) = key {
                self.text(&name(&key)?)?;
                self.charge(self.key.len())?;
                self.out.push_str(&self.key);
            }
            self.value(&value, depth + 1)?;
        }
        if !empty {
            self.new_line(depth)?;
        }
        self.out.push(brackets[1]);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        self.charge(indent.len().saturating_mul(depth))?;
        self.out.push('\n');
        for _ in 0..depth {
            self.out.push_str(indent);
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.charge(text.len())?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }

    fn charge(&self, bytes: usize) -> Result<(), Error> {
        self.state.consume_fuel((bytes / BYTES_PER_FUEL) as u64)
    }
}

/// A key, which Python makes a text of where it is none.
fn name(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().into(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => key.is_true().to_string(),
        ValueKind::Number => number(key)?,
        kind => return Err(wrong(format!("a value of type {kind} is no key"))),
    })
}

/// A number as Python's `repr` writes it: the shortest digits that come back, with an exponent below 1e-4 and from 1e16 on.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let x = f64::try_from(value.clone())?;
    if !x.is_finite() {
        let name = if x.is_nan() { "NaN" } else { "Infinity" };
        return Ok(if x < 0.0 { format!("-{name}") } else { name.into() });
    }
    let short = format!("{x:e}");
    let (digits, exponent) = short.split_once('e').unwrap_or((&short, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return Ok(if plain.contains('.') { plain } else { plain + ".0" });
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    Ok(format!("{digits}e{sign}{:02}", exponent.abs()))
}

#[cfg(test)]
mod tests {
    use crate::chat_template::ChatTemplate;
    use std::path::Path;
    use toprope_model::hub::Text;

    const VALUE: &str = r#"{"b": "a < b, don't & \"so\" \\ é 𝕏\n\u007f\u0001", "a": [1, true, null, 1.0, 1e16, 1e-05, 0.0001, -0.0,
        1.5e300, 123456789012345680.0, {}, []], "c": {"z": {"y": 1}, "k": [[]]}}"#;

    fn of(template: &str) -> Result<String, String> {
        let text = Text { chat_template: Some(template.into()), ..Text::default() };
        let template = ChatTemplate::new(Path::new("m"), &text).unwrap();
        let message = serde_json::json!({ "role": "user", "content": serde_json::from_str::<serde_json::Value>(VALUE).unwrap() });
        template.render(&[message], None, false).map_err(|error| error.to_string())
    }

    /// What Python 3's `json.dumps` gives of the same value.
    #[test]
    fn it_is_json_dumps() {
        let plain = "{\"b\": \"a < b, don't & \\\"so\\\" \\\\ é 𝕏\\n\u{7f}\\u0001\", \"a\": [1, true, null, 1.0, 1e+16, 1e-05, 0.0001, -0.0, 1.5e+300, 1.2345678901234568e+17, {}, []], \"c\": {\"z\": {\"y\": 1}, \"k\": [[]]}}";
        let ascii = plain.replace("é 𝕏", "\\u00e9 \\ud835\\udd4f").replace('\u{7f}', "\\u007f");
        let indented = "{\n  \"b\": \"a < b, don't & \\\"so\\\" \\\\ é 𝕏\\n\u{7f}\\u0001\",\n  \"a\": [\n    1,\n    true,\n    null,\n    1.0,\n    1e+16,\n    1e-05,\n    0.0001,\n    -0.0,\n    1.5e+300,\n    1.2345678901234568e+17,\n    {},\n    []\n  ],\n  \"c\": {\n    \"z\": {\n      \"y\": 1\n    },\n    \"k\": [\n      []\n    ]\n  }\n}";
        let sorted = "{\n\t\"a\" : [\n\t\t1, \n\t\ttrue, \n\t\tnull, \n\t\t1.0, \n\t\t1e+16, \n\t\t1e-05, \n\t\t0.0001, \n\t\t-0.0, \n\t\t1.5e+300, \n\t\t1.2345678901234568e+17, \n\t\t{}, \n\t\t[]\n\t], \n\t\"b\" : \"a < b, don't & \\\"so\\\" \\\\ é 𝕏\\n\u{7f}\\u0001\", \n\t\"c\" : {\n\t\t\"k\" : [\n\t\t\t[]\n\t\t], \n\t\t\"z\" : {\n\t\t\t\"y\" : 1\n\t\t}\n\t}\n}";
        for (arguments, want) in [
            ("", plain.to_string()),
            ("(ensure_ascii=False, indent=None)", plain.to_string()),
            ("(ensure_ascii=True)", ascii),
            ("(indent=2)", indented.to_string()),
            ("(False, 2)", indented.to_string()),
            ("(indent='\\t', separators=(', ', ' : '), sort_keys=True)", sorted.to_string()),
            ("(indent=0)", indented.replace("  ", "")),
            ("(indent=True)", indented.replace("  ", " ")),
            (
                "(separators=(',', ':'))",
                plain
                    .replace("don't", "don;t")
                    .replace(", ", ",")
                    .replace(": ", ":")
                    .replace("b,don;t", "b, don't"),
            ),
        ] {
            assert_eq!(
                of(&format!("{{{{ messages[0].content | tojson{arguments} }}}}")).unwrap(),
                want,
                "{arguments}"
            );
        }
        let keys = "{{ {2: 1, none: 2, true: 3, 0.5: 4, 'z': 'é'} | tojson }}";
        assert_eq!(of(keys).unwrap(), "{\"2\": 1, \"null\": 2, \"true\": 3, \"0.5\": 4, \"z\": \"é\"}");
    }

    #[test]
    fn what_is_no_json_or_too_much_is_an_error() {
        let doubled = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}";
        let itself = "{% set n = namespace() %}{% set n.n = n %}{{ n | tojson }}";
        for (template, word) in [
            ("{{ nothing | tojson }}", "type undefined"),
            ("{{ messages | tojson(indnt=2) }}", "indnt"),
            ("{{ messages | tojson(indent=[]) }}", "`indent`"),
            ("{{ messages | tojson(indent=1000000000) }}", "fuel"),
            ("{{ messages | tojson(separators=[',']) }}", "two texts"),
            ("{{ messages | tojson(separators=[1, 2]) }}", "two texts"),
            (doubled, "fuel"),
            (itself, "nested more than 128"),
        ] {
            let error = of(template).unwrap_err();
            assert!(error.contains(word), "{template}: {error}");
        }
    }
}
