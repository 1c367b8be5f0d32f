//! Conversations: a JSON object with messages a line, rendered by a model's template, and which bytes of the text are
//! predicted.

use super::{Document, jsonl};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Range;
use std::path::PathBuf;

/// The recipe's `[data.chat]` table: the files hold conversations, one a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChatConfig {
    /// The field with the list of messages, each with `role` and `content`.
    pub field: String,
    /// Whose turns are predicted; the others are read only.
    pub roles: Vec<String>,
    /// A file with a chat template, instead of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
}

impl Default for ChatConfig {
    fn default() -> ChatConfig {
        ChatConfig { field: "messages".into(), roles: vec!["assistant".into()], template: None }
    }
}

/// Makes a text of messages: handed in, as this module knows no model.
pub trait Render: Sync {
    /// The text of messages; with `prompt`, up to where an answer follows.
    ///
    /// # Errors
    /// Why there is none.
    fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<String, String>;

    /// What ends a turn that was answered; what follows it in a turn is not predicted.
    fn end(&self) -> &str;
}

/// The document of one line; none for a blank line.
pub(super) fn document(
    config: &ChatConfig,
    render: &dyn Render,
    place: &jsonl::Place<'_>,
    text: &str,
) -> Result<Option<Document>, (usize, String)> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let wrong = |reason: String| (1, reason);
    let value: Value = serde_json::from_str(text).map_err(|error| jsonl::column_and_reason(&error))?;
    let Value::Object(object) = &value else { return Err(wrong("it is no JSON object".into())) };
    let field = &config.field;
    let Some(messages) = object.get(field) else {
        let there: Vec<&str> = object.keys().map(String::as_str).take(12).collect();
        let reason = format!("no field `{field}` (there are {}); set `data.chat.field`", there.join(", "));
        return Err(wrong(reason));
    };
    let Value::Array(messages) = messages else {
        return Err(wrong(format!("`{field}` is not a list of messages")));
    };
    for (index, message) in messages.iter().enumerate() {
        well_formed(message).map_err(|reason| wrong(format!("message {}: {reason}", index + 1)))?;
    }
    let (text, learnt) = rendered(config, render, messages, object.get("tools")).map_err(wrong)?;
    Ok(Some(Document { name: place.name(), text, learnt: Some(learnt) }))
}

fn well_formed(message: &Value) -> Result<(), String> {
    let Value::Object(message) = message else { return Err("it is no object".into()) };
    match message.get("role") {
        Some(Value::String(role)) if !role.is_empty() => {}
        Some(_) => return Err("its `role` is not a text".into()),
        None => return Err("it has no `role`".into()),
    }
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        None | Some(Value::Null) if message.contains_key("tool_calls") => Ok(()),
        Some(_) => Err("its `content` is not a text".into()),
        None => Err("it has no `content`".into()),
    }
}

/// The whole text, and what is predicted of it. A turn begins where the text of the messages before it ends (one that is
/// answered, behind the prompt for it) and ends where that of the messages with it does, so each of these must be a
/// beginning of the whole.
fn rendered(
    config: &ChatConfig,
    render: &dyn Render,
    messages: &[Value],
    tools: Option<&Value>,
) -> Result<(String, Vec<Range<usize>>), String> {
    let whole = render.render(messages, tools, false)?;
    let beginning = |count: usize| -> Result<usize, String> {
        if count == 0 {
            return Ok(0);
        }
        let text = render.render(&messages[..count], tools, false)?;
        if whole.starts_with(&text) {
            return Ok(text.len());
        }
        Err(format!(
            "the template gives another text for its first {count} message(s) alone than at the beginning of all, so turns cannot be told apart"
        ))
    };
    let mut learnt = Vec::new();
    // How many messages the turn before ended behind, and where.
    let mut ended = (0, 0);
    for (index, message) in messages.iter().enumerate() {
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        if !config.roles.iter().any(|wanted| wanted == role) {
            continue;
        }
        let mut start = if ended.0 == index { ended.1 } else { beginning(index)? };
        if role == "assistant" {
            let prompt = render.render(&messages[..index], tools, true).map_err(|reason| match index {
                0 => format!(
                    "it begins with an answer, and to no message the template has no prompt: {reason}"
                ),
                _ => reason,
            })?;
            // A prompt may go on in another way than this answer does, as one that opens a thought.
            let same = whole.bytes().zip(prompt.bytes()).take_while(|(a, b)| a == b).count();
            start = start.max(whole.floor_char_boundary(same));
        }
        let mut end = if index + 1 == messages.len() { whole.len() } else { beginning(index + 1)? };
        ended = (index + 1, end);
        let turn = whole.get(start..end).unwrap_or_default();
        if !render.end().is_empty() && turn.trim_end().ends_with(render.end()) {
            end = start + turn.trim_end().len();
        }
        if start < end {
            learnt.push(start..end);
        }
    }
    if learnt.is_empty() {
        return Err(format!("no message of {}, so there is nothing to learn", config.roles.join(" or ")));
    }
    Ok((whole, learnt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_template::ChatTemplate;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use toprope_model::hub::Text;

    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

    fn of_line(template: &str, config: &ChatConfig, line: &str) -> Result<Option<Document>, (usize, String)> {
        let text =
            Text { chat_template: Some(template.into()), end: Some("<end>".into()), ..Text::default() };
        let render = ChatTemplate::new(Path::new("m"), &text).unwrap();
        document(config, &render, &jsonl::Place { path: Path::new("f.jsonl"), line: 7 }, line)
    }

    fn learnt(template: &str, config: &ChatConfig, line: &str) -> Vec<String> {
        let document = of_line(template, config, line).unwrap().unwrap();
        assert_eq!(document.name, "f.jsonl:7");
        document.learnt.unwrap().into_iter().map(|range| document.text[range].to_string()).collect()
    }

    const LINE: &str = r#"{"id": 3, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé"},
        {"role": "assistant", "content": "hö"}, {"role": "user", "content": "more"}, {"role": "assistant", "content": "no"}]}"#;

    #[test]
    fn turns_of_a_role_are_learnt_with_their_end() {
        let assistant = ChatConfig::default();
        assert_eq!(learnt(TEMPLATE, &assistant, LINE), ["hö<end>", "no<end>"]);
        let both = ChatConfig { roles: vec!["user".into(), "assistant".into()], ..assistant };
        assert_eq!(learnt(TEMPLATE, &both, LINE), ["<user>hé<end>", "hö<end>", "<user>more<end>", "no<end>"]);
    }

    #[test]
    fn a_prompt_that_goes_on_otherwise_ends_where_it_differs() {
        let thinking = TEMPLATE.replace("<assistant>{% endif", "<assistant><think>{% endif");
        let line =
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        assert_eq!(learnt(&thinking, &ChatConfig::default(), line), ["b<end>"]);
    }

    #[test]
    fn a_conversation_that_begins_with_an_answer_is_learnt_or_refused_with_the_reason() {
        let line = r#"{"messages": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        let config = ChatConfig::default();
        assert_eq!(learnt(TEMPLATE, &config, line), ["hi<end>", "b<end>"]);
        let asks_first = "{{ messages[0].role.upper() }}".to_string() + TEMPLATE;
        let reason = of_line(&asks_first, &config, line).unwrap_err().1;
        assert!(reason.contains("it begins with an answer") && reason.contains("undefined"), "{reason}");
    }

    /// Renders as a template does, and counts how often.
    struct Counting(ChatTemplate, AtomicUsize);

    impl Render for Counting {
        fn render(&self, messages: &[Value], tools: Option<&Value>, prompt: bool) -> Result<String, String> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Render::render(&self.0, messages, tools, prompt)
        }

        fn end(&self) -> &str {
            "<end>"
        }
    }

    #[test]
    fn where_a_turn_ended_the_next_is_not_rendered_for_again() {
        let text = Text { chat_template: Some(TEMPLATE.into()), ..Text::default() };
        let render = Counting(ChatTemplate::new(Path::new("m"), &text).unwrap(), AtomicUsize::new(0));
        let config = ChatConfig { roles: vec!["user".into(), "assistant".into()], ..ChatConfig::default() };
        document(&config, &render, &jsonl::Place { path: Path::new("f"), line: 1 }, LINE).unwrap();
        // The whole, where the first user's turn begins, the ends of three turns, and the prompts of two.
        assert_eq!(render.1.load(Ordering::Relaxed), 1 + 1 + 3 + 2);
    }

    #[test]
    fn what_is_no_conversation_is_told() {
        let config = ChatConfig::default();
        let reason = |template: &str, line: &str| of_line(template, &config, line).unwrap_err().1;
        assert!(of_line(TEMPLATE, &config, " \n").unwrap().is_none());
        for (line, word) in [
            ("[1]", "no JSON object"),
            ("{\"messages\": ", "EOF"),
            ("{\"text\": 1}", "no field `messages` (there are text)"),
            ("{\"messages\": 3}", "not a list"),
            ("{\"messages\": []}", "nothing to learn"),
            ("{\"messages\": [3]}", "message 1: it is no object"),
            ("{\"messages\": [{\"content\": \"a\"}]}", "message 1: it has no `role`"),
            ("{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}", "`role` is not a text"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "it has no `content`"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}", "`content` is not a text"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "no message of assistant"),
        ] {
            let have = reason(TEMPLATE, line);
            assert!(have.contains(word), "{line}: {have}");
        }
        let forgetful = "{% if messages | length > 2 %}short: {% endif %}".to_string() + TEMPLATE;
        assert!(reason(&forgetful, LINE).contains("cannot be told apart"));
        assert!(reason("{{ raise_exception('no system') }}", LINE).contains("no system"));
    }
}
