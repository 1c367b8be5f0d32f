//! repro_torch.py: one file that needs torch and `case.json` beside it, and nothing of ours. The operator stands in it in plain
//! torch, with the functions that it calls.

/// What stands before the operator.
const HEAD: &str = include_str!("repro_head.py");

/// What runs it.
const TAIL: &str = include_str!("repro_tail.py");

/// The script for an operator; none where the source does not have it in a form that stands alone.
pub fn script(operator: &str, source: &str) -> Option<String> {
    let chunks = chunks(source);
    // Checks of other operators look those up by name.
    if operator == "verify" || !chunks.iter().any(|chunk| chunk.name == operator) {
        return None;
    }
    let mut wanted = vec![operator.to_string()];
    let mut at = 0;
    while at < wanted.len() {
        if let Some(chunk) = chunks.iter().find(|chunk| chunk.name == wanted[at]) {
            for word in words(chunk.text) {
                let known = chunks.iter().any(|chunk| chunk.name == word);
                if known && !wanted.iter().any(|have| have == word) {
                    wanted.push(word.to_string());
                }
            }
        }
        at += 1;
    }
    let mut text = HEAD.to_string();
    for chunk in chunks.iter().filter(|chunk| wanted.contains(&chunk.name)) {
        text.push_str("\n\n");
        text.push_str(chunk.text.trim_end());
        text.push('\n');
    }
    text.push_str(&format!("\n\nOPERATOR = {operator}\n"));
    text.push_str(TAIL);
    Some(text)
}

/// A function, class or name of a Python source, with its text.
struct Chunk<'a> {
    name: String,
    text: &'a str,
}

fn chunks(source: &str) -> Vec<Chunk<'_>> {
    let mut starts: Vec<(usize, String)> = Vec::new();
    let mut offset = 0;
    let mut decorated = None;
    for line in source.split_inclusive('\n') {
        let begins = line.strip_prefix("def ").or(line.strip_prefix("class "));
        let name: Option<String> = match begins {
            Some(rest) => Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()),
            None => {
                let name: String = line.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
                (!name.is_empty() && line[name.len()..].starts_with(" =")).then_some(name)
            }
        };
        if line.starts_with('@') {
            decorated.get_or_insert(offset);
        } else if let Some(name) = name {
            starts.push((decorated.take().unwrap_or(offset), name));
        } else if !line.starts_with([' ', '\n', ')', '}', ']', '#']) {
            // Any other statement ends what stands before it.
            starts.push((offset, String::new()));
        }
        offset += line.len();
    }
    let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([source.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|((start, name), end)| Chunk { name: name.clone(), text: &source[*start..end] })
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_brings_what_it_calls_and_no_more() {
        let source = "\"\"\"Head.\"\"\"\nLIMIT = 3\n\ndef helper(x):\n    return x + LIMIT\n\n\ndef other(op):\n    return 1\n\n\ndef dot(op, a, b):\n    return [helper(a)]\n\nTABLE = {\n    \"dot\": dot,\n}\n";
        let script = script("dot", source).unwrap();
        assert!(
            script.contains("def helper")
                && script.contains("LIMIT = 3")
                && script.contains("OPERATOR = dot")
        );
        assert!(!script.contains("def other") && !script.contains("TABLE"));
        assert!(super::script("nothing", source).is_none());
    }
}
