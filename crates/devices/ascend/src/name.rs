//! Names of Ascend devices with their variants: `ascend:0+cube=hf32+library=cann/lib64`.

use crate::emit::Settings;
use std::path::PathBuf;
use toprope_program::variant::{Variant, choose};

/// What every name of this family begins with.
pub const PREFIX: &str = "ascend:";

/// Every variant, in the order in which a device's level lists them.
pub const VARIANTS: &[Variant] = &[
    Variant {
        key: "cube",
        values: &["f32", "hf32"],
        meaning: "f32 products as they are (cubeMathType 0), or with shortened operands (3)",
    },
    Variant {
        key: "overflow",
        values: &["ieee", "saturate"],
        meaning: "infinities and NaN, or the largest number and 0",
    },
    Variant {
        key: "deterministic",
        values: &["on", "off"],
        meaning: "the vendor's deterministic algorithms; off, bits may differ from run to run",
    },
    Variant {
        key: "fused",
        values: &["on", "off"],
        meaning: "the vendor's fused operators where they are exact enough, or plain ones only",
    },
    Variant {
        key: "launch",
        values: &["async", "sync"],
        meaning: "waiting after each operator names the true one of an error, and is slow",
    },
    Variant {
        key: "library",
        values: &[],
        meaning: "the folder of CANN's libraries; nothing else is searched",
    },
];

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
    /// Which of the machine's devices.
    pub index: u32,
    /// The folder of CANN's libraries.
    pub folder: Option<PathBuf>,
    choices: Vec<&'static str>,
}

impl Name {
    /// Reads a name.
    ///
    /// # Errors
    /// No number, no such variant, or one given twice.
    pub fn parse(name: &str) -> Result<Name, NameError> {
        let refuse = |reason: String| NameError { name: name.into(), reason };
        let mut parts = name.split('+');
        let number = parts.next().unwrap_or_default().strip_prefix(PREFIX).unwrap_or_default();
        let index =
            number.parse().map_err(|_| refuse("say which device by its number, as in `ascend:0`".into()))?;
        let chosen = choose(VARIANTS, parts).map_err(refuse)?;
        let folder = VARIANTS.iter().zip(&chosen).find(|(variant, _)| variant.values.is_empty());
        let folder = folder.and_then(|(_, value)| value.map(PathBuf::from));
        let word = |(variant, value): (&Variant, &Option<&str>)| {
            let known = variant.values.iter().find(|known| Some(**known) == *value);
            known.or(variant.values.first()).copied().unwrap_or_default()
        };
        let choices = VARIANTS.iter().zip(&chosen).map(word).collect();
        Ok(Name { index, folder, choices })
    }

    /// What was chosen of a variant.
    fn chose(&self, key: &str, value: &str) -> bool {
        VARIANTS.iter().zip(&self.choices).any(|(variant, chosen)| variant.key == key && *chosen == value)
    }

    /// How operators are computed.
    pub(crate) fn settings(&self) -> Settings {
        let cube = if self.chose("cube", "hf32") { 3 } else { 0 };
        Settings { cube, fused: self.chose("fused", "on") }
    }

    /// Whether overflow gives infinities.
    pub(crate) fn ieee(&self) -> bool {
        self.chose("overflow", "ieee")
    }

    /// Whether results must repeat.
    pub(crate) fn deterministic(&self) -> bool {
        self.chose("deterministic", "on")
    }

    /// Whether each operator is waited for.
    pub(crate) fn synchronous(&self) -> bool {
        self.chose("launch", "sync")
    }

    /// The settings as a device's level: part of what makes bits repeat.
    pub fn level(&self) -> String {
        let chosen = VARIANTS.iter().zip(&self.choices).filter(|(variant, _)| !variant.values.is_empty());
        chosen.map(|(variant, choice)| format!("{}={choice}", variant.key)).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_variants_are_read() {
        let name = Name::parse("ascend:3+cube=hf32+library=cann/lib64+launch=sync").unwrap();
        assert_eq!((name.index, name.settings().cube), (3, 3));
        assert!(name.synchronous() && name.ieee() && name.deterministic());
        assert_eq!(name.folder, Some("cann/lib64".into()));
        assert_eq!(name.level(), "cube=hf32 overflow=ieee deterministic=on fused=on launch=sync");
    }

    #[test]
    fn wrong_names_are_told_what_is_right() {
        for (name, part) in [
            ("ascend:", "by its number"),
            ("ascend:x", "by its number"),
            ("ascend:0+cub=f32", "no variant `cub`"),
            ("ascend:0+cube=f16", "one of f32, hf32"),
            ("ascend:0+cube=f32+cube=f32", "given twice"),
            ("ascend:0+library=", "needs a value"),
        ] {
            let error = Name::parse(name).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
    }
}
