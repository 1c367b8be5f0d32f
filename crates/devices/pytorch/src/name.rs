//! Names of torch devices with their variants: `pytorch:cuda:0+attention=sdpa-flash+tf32=on`.

use toprope_program::variant::{Variant, choose};

/// Every variant, in the order in which a device's level lists them.
pub const VARIANTS: &[Variant] = &[
    Variant {
        key: "attention",
        values: &["plain", "sdpa-math", "sdpa-flash", "sdpa-efficient", "cudnn", "npu-fusion"],
        meaning: "two products around a softmax in f32, or one of torch's fused kernels",
    },
    Variant {
        key: "matmul",
        values: &["f32", "native"],
        meaning: "bf16 operands widened, or the chip's own bf16 product (where torch has out_dtype)",
    },
    Variant { key: "tf32", values: &["off", "on"], meaning: "f32 products in TF32 on CUDA" },
    Variant { key: "hf32", values: &["off", "on"], meaning: "f32 products in HF32 on Ascend" },
    Variant {
        key: "reduced",
        values: &["off", "on"],
        meaning: "reductions of low-precision products in their own precision on CUDA",
    },
    Variant { key: "mode", values: &["eager", "compile"], meaning: "operators as they are, or compiled" },
    Variant {
        key: "deterministic",
        values: &["on", "off"],
        meaning: "torch's deterministic algorithms; off, bits may differ from run to run",
    },
    Variant {
        key: "stream",
        values: &["default", "side"],
        meaning: "on the default stream, or on one of its own while the default one multiplies",
    },
];

/// What torch calls the kinds of devices, and whether a number follows.
const BACKENDS: [(&str, bool); 5] =
    [("cpu", false), ("mps", false), ("cuda", true), ("npu", true), ("xpu", true)];

/// Processes of one processor, each a device of its own as dies are: `pytorch:cpu:0` to `pytorch:cpu:63`.
pub const PROCESSES_MAX: u32 = 64;

/// What every name of this family begins with.
pub const PREFIX: &str = "pytorch:";

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}`: {reason}")]
pub struct NameError {
    /// As it was given.
    pub name: String,
    /// Why not, and what would be right.
    pub reason: String,
}

/// A device as a name asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `cpu`, `cuda`, …
    pub backend: &'static str,
    /// Which of them.
    pub index: Option<u32>,
}

impl Name {
    /// Reads a name; variants are checked here, so that a wrong one costs no start of Python.
    ///
    /// # Errors
    /// No such backend, no such variant, or one given twice.
    pub fn parse(name: &str) -> Result<Name, NameError> {
        let refuse = |reason: String| NameError { name: name.into(), reason };
        let mut parts = name.split('+');
        let base = parts.next().unwrap_or_default();
        let device = base.strip_prefix(PREFIX).unwrap_or_default();
        let (word, number) = match device.split_once(':') {
            Some((word, number)) => (word, Some(number)),
            None => (device, None),
        };
        let Some((backend, numbered)) = BACKENDS.into_iter().find(|(backend, _)| *backend == word) else {
            return Err(refuse(format!("torch's devices are {}", backends())));
        };
        let index = match (numbered, number) {
            (false, None) => None,
            (true, Some(number)) => Some(
                number
                    .parse()
                    .map_err(|_| refuse(format!("`{number}` is no number of a {backend} device")))?,
            ),
            (true, None) => return Err(refuse(format!("say which, as in `pytorch:{backend}:0`"))),
            (false, Some(number)) if backend == "cpu" => {
                let told = || {
                    let last = PROCESSES_MAX - 1;
                    refuse(format!("`{number}` is no number of a process: from 0 to {last}"))
                };
                Some(number.parse().ok().filter(|index| *index < PROCESSES_MAX).ok_or_else(told)?)
            }
            (false, Some(_)) => {
                return Err(refuse(format!("there is one `pytorch:{backend}`, without a number")));
            }
        };
        choose(VARIANTS, parts).map_err(refuse)?;
        Ok(Name { backend, index })
    }

    /// Whether tensors lie in the host's memory, so that shared regions can be computed on in place.
    pub fn in_host_memory(&self) -> bool {
        self.backend == "cpu"
    }
}

fn backends() -> String {
    let names =
        BACKENDS.map(|(name, numbered)| format!("`pytorch:{name}{}`", if numbered { ":N" } else { "" }));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_variants() {
        assert_eq!(Name::parse("pytorch:cpu"), Ok(Name { backend: "cpu", index: None }));
        assert_eq!(Name::parse("pytorch:cpu:5"), Ok(Name { backend: "cpu", index: Some(5) }));
        assert_eq!(Name::parse("pytorch:npu:7"), Ok(Name { backend: "npu", index: Some(7) }));
        let name = "pytorch:cuda:0+attention=sdpa-flash+tf32=on+mode=compile";
        assert_eq!(Name::parse(name).map(|name| name.index), Ok(Some(0)));
    }

    #[test]
    fn wrong_names_are_told_what_would_be_right() {
        for (name, told) in [
            ("pytorch:", "`pytorch:cuda:N`"),
            ("pytorch:tpu:0", "`pytorch:cuda:N`"),
            ("pytorch:cuda", "as in `pytorch:cuda:0`"),
            ("pytorch:cuda:x", "`x` is no number"),
            ("pytorch:mps:1", "without a number"),
            ("pytorch:cpu:64", "from 0 to 63"),
            ("pytorch:cpu+speed=9", "no variant `speed`"),
            ("pytorch:cpu+mode", "`mode` is one of eager, compile"),
            ("pytorch:cuda:0+stream=2", "`stream` is one of default, side"),
            ("pytorch:cpu+tf32=on+tf32=on", "given twice"),
        ] {
            let error = Name::parse(name).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(name), "{error}");
        }
    }
}
