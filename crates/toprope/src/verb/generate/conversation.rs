//! Messages to a prompt, by the model's own template.

use crate::exit::{Exit, Failure};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use std::path::Path;
use toprope_model::hub::Text;

/// Steps that a template may take: a loop without an end is an error and no hang.
const FUEL: u64 = 2_000_000;
const NAME: &str = "chat_template";

/// What somebody said.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Message {
    /// `system`, `user` or `assistant`.
    pub(super) role: &'static str,
    /// The text.
    pub(super) content: String,
}

/// A template and what it may name.
pub(super) struct Conversation {
    environment: Environment<'static>,
    model: String,
    beginning: String,
    end: String,
}

impl Conversation {
    /// The conversation of a model.
    pub(super) fn new(model: &Path, text: &Text) -> Result<Conversation, Failure> {
        let model = model.display().to_string();
        let template = text.chat_template.clone().ok_or_else(|| {
            let hint = "hint: it was not made to talk; `toprope generate --prompt` goes on from any text";
            Failure::new(Exit::Recipe, format!("{model}: there is no chat template\n{hint}"))
        })?;
        let mut environment = Environment::new();
        // As transformers sets up Jinja.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| failure(&model, &error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        let raise = |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        };
        environment.add_function("raise_exception", raise);
        environment.add_template_owned(NAME, template).map_err(|error| failure(&model, &error))?;
        let (beginning, end) = (text.beginning.clone(), text.end.clone());
        Ok(Conversation {
            environment,
            model,
            beginning: beginning.unwrap_or_default(),
            end: end.unwrap_or_default(),
        })
    }

    /// The text that an answer follows.
    pub(super) fn prompt(&self, messages: &[Message]) -> Result<String, Failure> {
        let template = self.environment.get_template(NAME).map_err(|error| failure(&self.model, &error))?;
        let said: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role, content => message.content.as_str() })
            .collect();
        let context = context! {
            messages => said,
            bos_token => self.beginning.as_str(),
            eos_token => self.end.as_str(),
            add_generation_prompt => true,
        };
        template.render(context).map_err(|error| failure(&self.model, &error))
    }
}

fn failure(model: &str, error: &Error) -> Failure {
    let place = error.line().map_or(String::new(), |line| format!(", line {line}"));
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    Failure::new(
        Exit::Recipe,
        format!(
            "{model}: the chat template{place}: {what}\nhint: mend the template, or use `toprope generate`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(template: &str) -> Result<Conversation, Failure> {
        let text =
            Text { chat_template: Some(template.into()), beginning: Some("<s>".into()), ..Text::default() };
        Conversation::new(Path::new("model"), &text)
    }

    fn said(template: &str) -> Result<String, Failure> {
        let messages = [("system", " be brief "), ("user", "hello")]
            .map(|(role, text)| Message { role, content: text.into() });
        conversation(template)?.prompt(&messages)
    }

    #[test]
    fn a_template_gives_the_prompt() {
        let template = "{{ bos_token }}{% for message in messages %}\n<{{ message['role'] }}>{{ message.content.strip() }}\n{% endfor %}\n{% if add_generation_prompt %}\n<assistant>{% endif %}";
        assert_eq!(said(template).unwrap(), "<s><system>be brief\n<user>hello\n<assistant>");
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
        let none = Conversation::new(Path::new("model"), &Text::default()).err().unwrap().to_string();
        assert!(none.contains("no chat template"), "{none}");
    }
}
