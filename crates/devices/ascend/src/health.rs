//! How a chip is, as its driver's management interface (DCMI) tells it. Where that is not there, nothing is made up.

use crate::device::cann_of;
use crate::ffi::dcmi::Dcmi;
use crate::name::Name;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the driver puts it besides the loader's path.
const INSTALLED: &str = "/usr/local/dcmi";

/// What is known of a chip's health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The alarm that the chip raises: 0 none, then the higher the worse.
    pub alarm: Option<u32>,
    /// °C.
    pub temperature: Option<i32>,
    /// Errors of its memory that were corrected, since they are counted.
    pub corrected: Option<u32>,
    /// Errors of its memory that were not.
    pub uncorrected: Option<u32>,
    /// The interface's version.
    pub version: Option<String>,
    /// Whether an emulator tells it.
    pub emulated: bool,
}

impl Health {
    /// Problems, in words; empty when the chip is well as far as is known.
    pub fn problems(&self) -> Vec<String> {
        let alarm =
            self.alarm.filter(|alarm| *alarm > 0).map(|alarm| format!("the chip raises alarm {alarm}"));
        let errors = self.uncorrected.filter(|count| *count > 0);
        let errors = errors.map(|count| format!("{count} uncorrected error(s) of its memory"));
        alarm.into_iter().chain(errors).collect()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.alarm {
            Some(0) => f.write_str("no alarm")?,
            Some(alarm) => write!(f, "alarm {alarm}")?,
            None => f.write_str("alarms unknown")?,
        }
        match self.temperature {
            Some(degrees) => write!(f, ", {degrees} °C")?,
            None => f.write_str(", temperature unknown")?,
        }
        match (self.corrected, self.uncorrected) {
            (Some(corrected), Some(uncorrected)) => {
                write!(f, ", memory errors {corrected} corrected, {uncorrected} not")?;
            }
            _ => f.write_str(", memory errors not counted")?,
        }
        let version = self.version.as_deref().unwrap_or("of unknown version");
        write!(f, " (DCMI {version}{})", if self.emulated { ", emulated" } else { "" })
    }
}

/// Which of the driver's chips the runtime shows, with commas.
const VISIBLE: &str = "ASCEND_RT_VISIBLE_DEVICES";

/// The driver's number of the runtime's device.
fn logical(index: u32, visible: Option<&str>) -> u32 {
    let shown = visible.and_then(|list| list.split(',').nth(index as usize)?.trim().parse().ok());
    shown.unwrap_or(index)
}

/// How the device of this name is. A chip is asked through the driver's own DCMI, the emulator through its own: the two are
/// never mixed.
///
/// # Errors
/// The name or CANN is not right, or no DCMI that fits was found: where it was looked for.
pub fn health(name: &str) -> Result<Health, String> {
    let parsed = Name::parse(name).map_err(|error| error.to_string())?;
    let (emulator, files) = cann_of(name).map_err(|error| error.to_string())?;
    let beside = files.first().and_then(|file| file.parent()).filter(|folder| !folder.as_os_str().is_empty());
    let mut places: Vec<Option<PathBuf>> = vec![beside.map(Path::to_path_buf), None];
    places.push(Some(INSTALLED.into()));
    places.dedup();
    let mut tried = Vec::new();
    for place in places {
        let told =
            place.as_ref().map_or("the loader's path".to_string(), |folder| folder.display().to_string());
        match Dcmi::load(place.as_deref()) {
            Ok(dcmi) if dcmi.is_emulator() == emulator.is_some() => {
                // The driver counts all chips; the runtime those that the variable lets it see.
                let visible = std::env::var(VISIBLE).ok().filter(|_| emulator.is_none());
                let answers = dcmi.ask(logical(parsed.index, visible.as_deref()))?;
                return Ok(Health {
                    alarm: answers.alarm,
                    temperature: answers.temperature,
                    corrected: answers.errors.map(|(corrected, _)| corrected),
                    uncorrected: answers.errors.map(|(_, uncorrected)| uncorrected),
                    version: dcmi.version(),
                    emulated: emulator.is_some(),
                });
            }
            Ok(_) => tried.push(format!(
                "{told}: it is {}",
                if emulator.is_some() { "a chip's" } else { "the emulator's" }
            )),
            Err(reason) => tried.push(format!("{told}: {reason}")),
        }
    }
    Err(format!("no DCMI (libdcmi.so) tells of {name}; {}", tried.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_asked_of_the_chip_that_the_runtime_shows() {
        assert_eq!((logical(0, Some("3,5")), logical(1, Some("3, 5"))), (3, 5));
        assert_eq!((logical(1, None), logical(2, Some("3,5")), logical(0, Some(""))), (1, 2, 0));
    }

    #[test]
    fn what_is_not_known_is_said_to_be_so() {
        let text = Health::default().to_string();
        assert_eq!(
            text,
            "alarms unknown, temperature unknown, memory errors not counted (DCMI of unknown version)"
        );
        assert!(Health::default().problems().is_empty());
        let ill = Health {
            alarm: Some(2),
            temperature: Some(91),
            corrected: Some(7),
            uncorrected: Some(1),
            version: Some("1".into()),
            emulated: true,
        };
        assert_eq!(ill.to_string(), "alarm 2, 91 °C, memory errors 7 corrected, 1 not (DCMI 1, emulated)");
        assert_eq!(ill.problems().len(), 2);
    }
}
