//! Greedy decoding of a real model: on the emulated NPU, and on the client's CPU backend.

use super::{Place, fetch, must};

const TOKENS: usize = 64;
/// A question in the model's own form, whose answer is long.
const PROMPT: &str =
    "<|im_start|>user\nWhat is a rope good for in the mountains?<|im_end|>\n<|im_start|>assistant\n";

/// Tokens of one device.
pub struct Decoded {
    pub ids: Vec<u32>,
    /// By how much each led the second best.
    pub leads: Vec<f64>,
    pub text: String,
}

/// Both devices' tokens.
pub struct Both {
    pub cpu: Decoded,
    pub npu: Decoded,
}

fn decode(place: &Place, model: &str, device: &str) -> Result<Decoded, String> {
    let mut program = place.program("greedy");
    program.args([model, device, &TOKENS.to_string(), PROMPT]);
    let output = must(&format!("greedy on {device}"), &mut program)?;
    let log = String::from_utf8_lossy(&output.stderr);
    // The log says where the layers went.
    if device != "CPU" && !log.lines().any(|line| line.contains("CANN0 model buffer size")) {
        return Err(format!("greedy on {device}: no layer was put on the device"));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut decoded = Decoded { ids: Vec::new(), leads: Vec::new(), text: String::new() };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["token", id, "lead", lead] = words[..]
            && let (Ok(id), Ok(lead)) = (id.parse(), lead.parse())
        {
            decoded.ids.push(id);
            decoded.leads.push(lead);
        }
    }
    decoded.text =
        text.split_once("\ntext ").map(|(_, text)| text.trim_end().to_string()).unwrap_or_default();
    Ok(decoded)
}

/// Converts the model to f16, and decodes.
pub fn run(place: &Place) -> Result<Both, String> {
    let from = place.folder.join("model").join(fetch::MODEL_FILE);
    let to = place.folder.join("model/f16.gguf");
    if !to.exists() {
        // In two steps, so that a conversion that was cut off is not taken for a whole one.
        let part = to.with_extension("part");
        must("greedy convert", place.program("greedy").arg("convert").arg(&from).arg(&part))?;
        std::fs::rename(&part, &to).map_err(|error| format!("{}: {error}", to.display()))?;
    }
    let model = to.display().to_string();
    Ok(Both { cpu: decode(place, &model, "CPU")?, npu: decode(place, &model, "CANN0")? })
}

impl Both {
    /// For a terminal.
    pub fn text(&self) -> String {
        let line = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        format!(
            "CPU   {}\nCANN0 {}\n{PROMPT}{}\n{} of {TOKENS} tokens are equal (emulated); the smallest lead was {:.3}",
            line(&self.cpu.ids),
            line(&self.npu.ids),
            self.npu.text,
            self.equal(),
            self.cpu.leads.iter().copied().fold(f64::INFINITY, f64::min)
        )
    }

    fn equal(&self) -> usize {
        self.cpu.ids.iter().zip(&self.npu.ids).take_while(|(one, other)| one == other).count()
    }

    /// What is wrong.
    pub fn wrong(&self) -> Option<String> {
        (self.equal() != TOKENS)
            .then(|| format!("only the first {} of {TOKENS} tokens equal the CPU backend's", self.equal()))
    }
}
