//! Messages to a text, by a model's own template (Jinja, as transformers sets it up).

mod tojson; // values to JSON, as Python has it

use crate::data::Render;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use std::path::Path;
use toprope_model::hub::Text;

/// Steps that a template may take: a loop without an end is an error and no hang.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat_template";

/// Why messages are no text.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The model has none.
    #[error(
        "{model}: there is no chat template\nhint: it was not made to talk; `toprope generate --prompt` goes on from any text, and `data.chat.template` gives one to train with"
    )]
    None {
        /// The model.
        model: String,
    },
    /// It cannot be read, or gives up.
    #[error("{model}: {}\nhint: mend the template", at(*line, what))]
    Template {
        /// The model.
        model: String,
        /// The template's line, from 1, where it is known.
        line: Option<usize>,
        /// What is wrong.
        what: String,
    },
}

fn at(line: Option<usize>, what: &str) -> String {
    let place = line.map_or(String::new(), |line| format!(", line {line}"));
    format!("the chat template{place}: {what}")
}

impl ChatTemplateError {
    /// What is wrong, without the model's name and without a hint.
    pub fn reason(&self) -> String {
        match self {
            ChatTemplateError::None { .. } => "there is no chat template".into(),
            ChatTemplateError::Template { line, what, .. } => at(*line, what),
        }
    }
}

/// A template and what it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    model: String,
    beginning: String,
    end: String,
}

impl ChatTemplate {
    /// The template of a model.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn new(model: &Path, text: &Text) -> Result<ChatTemplate, ChatTemplateError> {
        let model = model.display().to_string();
        let Some(template) = &text.chat_template else { return Err(ChatTemplateError::None { model }) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failure(&model, &error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let raise = |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        };
        environment.add_function("raise_exception", raise);
        environment.add_filter("tojson", tojson::tojson);
        environment
            .add_template_owned(NAME, without_generation(template))
            .map_err(|error| failure(&model, &error))?;
        let (beginning, end) = (text.beginning.clone(), text.end.clone());
        Ok(ChatTemplate {
            environment,
            model,
            beginning: beginning.unwrap_or_default(),
            end: end.unwrap_or_default(),
        })
    }

    /// The text of messages, each an object with `role` and `content`; with `prompt`, up to where an answer follows.
    ///
    /// # Errors
    /// The template gives up.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&serde_json::Value>,
        prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let failed = |error| failure(&self.model, &error);
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let context = context! {
            messages => messages.iter().map(value).collect::<Value>(),
            // Templates ask whether they are none: transformers always gives both.
            tools => tools.map_or(Value::from(()), value),
            documents => Value::from(()),
            bos_token => self.beginning.as_str(),
            eos_token => self.end.as_str(),
            add_generation_prompt => prompt,
        };
        template.render(context).map_err(failed)
    }
}

impl Render for ChatTemplate {
    fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&serde_json::Value>,
        prompt: bool,
    ) -> Result<String, String> {
        ChatTemplate::render(self, messages, tools, prompt).map_err(|error| error.reason())
    }

    fn end(&self) -> &str {
        &self.end
    }
}

/// What a template sees of JSON.
fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(list) => list.iter().map(value).collect(),
        serde_json::Value::Object(object) => {
            Value::from_pairs(object.iter().map(|(key, json)| (key.as_str(), value(json))))
        }
    }
}

/// `generation` marks in transformers what a model says, and prints its inside: here a condition that holds.
fn without_generation(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let (before, block) = (&rest[..begin], &rest[begin..begin + length + 2]);
        out.push_str(before);
        let inside = block[2..block.len() - 2].trim_matches(['-', '+']).trim();
        match inside {
            "generation" => out.push_str(&block.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&block.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(block),
        }
        rest = &rest[begin + length + 2..];
    }
    out.push_str(rest);
    out
}

fn failure(model: &str, error: &Error) -> ChatTemplateError {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    ChatTemplateError::Template { model: model.into(), line: error.line(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(template: &str) -> Result<ChatTemplate, ChatTemplateError> {
        let text =
            Text { chat_template: Some(template.into()), beginning: Some("<s>".into()), ..Text::default() };
        ChatTemplate::new(Path::new("model"), &text)
    }

    fn said(source: &str) -> Result<String, ChatTemplateError> {
        let messages = [("system", " be brief "), ("user", "hello")]
            .map(|(role, text)| serde_json::json!({ "role": role, "content": text }));
        template(source)?.render(&messages, None, true)
    }

    #[test]
    fn a_template_gives_the_prompt() {
        let template = "{{ bos_token }}{% for message in messages %}\n<{{ message['role'] }}>{{ message.content.strip() }}\n{% endfor %}\n{% if add_generation_prompt %}\n<assistant>{% endif %}";
        assert_eq!(said(template).unwrap(), "<s><system>be brief\n<user>hello\n<assistant>");
    }

    #[test]
    fn generation_blocks_print_their_inside_and_keep_their_spaces() {
        let template = "{% for m in messages %}[{%- generation -%} {{ m.content }} {%- endgeneration %}]{% endfor %}{% if tools is not none or documents is not none %}tools{% endif %}";
        assert_eq!(said(template).unwrap(), "[ be brief ][hello]");
    }

    #[test]
    fn tools_are_what_transformers_gives_in_the_order_that_they_have() {
        let messages = [serde_json::json!({ "role": "user", "content": "hello" })];
        let tool = r#"[{"type": "function", "function": {"name": "f", "description": "a < b, don't", "arguments": {"z": 1, "a": 2}}}]"#;
        let tools: serde_json::Value = serde_json::from_str(tool).unwrap();
        let source = "{% if tools is not none %}{{ tools | tojson }}{% for key in tools[0].function %} {{ key }}{% endfor %}{% endif %}";
        let template = template(source).unwrap();
        let want = format!("{tool} name description arguments");
        assert_eq!(template.render(&messages, Some(&tools), false).unwrap(), want);
        for none in [None, Some(&serde_json::Value::Null)] {
            assert_eq!(template.render(&messages, none, false).unwrap(), "");
        }
    }

    #[test]
    fn a_template_that_loops_or_errs_is_one_error() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        // A text that doubles sixty times would take all memory there is.
        let growing = "{% set a = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set a.x = a.x ~ a.x %}{% endfor %}{{ a.x }}";
        let itself = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        for (template, word) in [(endless, "fuel"), (growing, "fuel"), (itself, "recursion")] {
            let message = said(template).unwrap_err().to_string();
            assert!(message.starts_with("model: the chat template") && message.contains(word), "{message}");
        }
        for (template, word) in [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("line one\n{% if %}", "line 2"),
            ("{{ messages.nothing.more }}", "chat template"),
        ] {
            let message = said(template).unwrap_err().to_string();
            assert!(message.starts_with("model: the chat template") && message.contains(word), "{message}");
        }
        let none = ChatTemplate::new(Path::new("model"), &Text::default()).err().unwrap().to_string();
        assert!(none.contains("no chat template"), "{none}");
    }
}
