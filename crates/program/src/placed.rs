//! Names of devices some of whose operators run on other devices: `ascend:0 with rms_norm on cpu and matmul on cpu:avx2`.

use crate::operator::OPERATORS;
use std::fmt;

/// A device and the operators that run elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedName {
    /// The device that everything else runs on.
    pub device: String,
    /// Operators by name, each with the device that it runs on.
    pub moved: Vec<(String, String)>,
}

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}`: {reason}")]
pub struct PlacedNameError {
    /// As it was given.
    pub name: String,
    /// Why not, and how it is done.
    pub reason: String,
}

const WITH: &str = " with ";
const AND: &str = " and ";
const ON: &str = " on ";

impl PlacedName {
    /// Reads a name. One without ` with ` moves nothing.
    ///
    /// # Errors
    /// An operator that the contract lacks, one that is moved twice, or no device for it.
    pub fn parse(name: &str) -> Result<PlacedName, PlacedNameError> {
        let Some((device, rest)) = name.split_once(WITH) else {
            return Ok(PlacedName { device: name.into(), moved: Vec::new() });
        };
        let refused = |reason: String| PlacedNameError {
            name: name.into(),
            reason: format!(
                "{reason}; operators that run elsewhere are told as in `ascend:0 with rms_norm on cpu`"
            ),
        };
        let mut moved: Vec<(String, String)> = Vec::new();
        for part in rest.split(AND) {
            let (operator, to) =
                part.split_once(ON).ok_or_else(|| refused(format!("`{part}` names no device")))?;
            if !OPERATORS.iter().any(|record| record.name == operator) {
                return Err(refused(format!("the contract has no operator `{operator}`")));
            }
            if moved.iter().any(|(known, _)| known == operator) {
                return Err(refused(format!("`{operator}` is moved twice")));
            }
            moved.push((operator.into(), to.trim().into()));
        }
        if device.trim().is_empty() || moved.iter().any(|(_, to)| to.is_empty()) {
            return Err(refused("a device is missing".into()));
        }
        Ok(PlacedName { device: device.trim().into(), moved })
    }
}

impl fmt::Display for PlacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        for (turn, (operator, to)) in self.moved.iter().enumerate() {
            write!(f, "{}{operator}{ON}{to}", if turn == 0 { WITH } else { AND })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_printed() {
        let text = "ascend:0+fused=off with rms_norm on cpu and matmul on cpu:avx2";
        let name = PlacedName::parse(text).unwrap();
        assert_eq!(name.device, "ascend:0+fused=off");
        assert_eq!(name.moved[1], ("matmul".to_string(), "cpu:avx2".to_string()));
        assert_eq!(name.to_string(), text);
        assert!(PlacedName::parse("cpu").unwrap().moved.is_empty());
    }

    #[test]
    fn wrong_names_are_told() {
        for (name, words) in [
            ("cpu with matmul", "names no device"),
            ("cpu with matmull on reference", "no operator `matmull`"),
            ("cpu with matmul on reference and matmul on cpu", "moved twice"),
            ("cpu with matmul on ", "a device is missing"),
        ] {
            let error = PlacedName::parse(name).unwrap_err().to_string();
            assert!(error.contains(words), "{name}: {error}");
        }
    }
}
