//! The registry: opens a device by its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use toprope_ascend::Case as AscendCase;
use toprope_ascend::name::PREFIX as ASCEND;
use toprope_cpu::Level;
use toprope_placed::{Guest, PlacedDevice};
use toprope_program::placed::{PlacedName, PlacedNameError};
use toprope_program::variant::Variant;
use toprope_program::{Device, MagnitudeFunction, MemoryPlan, ProgressPlace, Validated, Width};
use toprope_protocol::remote::WorkerCommand;
pub use toprope_pytorch::chips::Chip;
pub use toprope_pytorch::collectives; // what goes between chips
use toprope_pytorch::name::PREFIX as PYTORCH;
use toprope_world::{RealWorld, SharedRegion};

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Threads that a device of the host may use; none lets it use every core.
    pub threads: Option<usize>,
    /// The dispatch level, such as `avx2`; none lets the device choose the best that is there.
    pub level: Option<String>,
    /// How float values are stored; only `reference` knows [`Width::Wide`].
    pub width: Width,
    /// Where the device writes its progress.
    pub progress: ProgressPlace,
    /// The interpreter of a `pytorch:` device; none looks for one.
    pub python: Option<PathBuf>,
    /// Shared memory that a device in a process of its own may adopt.
    pub regions: Vec<Arc<SharedRegion>>,
}

/// A device that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What opens it.
    pub name: &'static str,
    /// One line on what it is.
    pub description: &'static str,
}

/// Why a device could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No device has this name.
    #[error("there is no device `{name}`{}; there is {known}", nearest.as_ref().map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The name that is most like it, where one is.
        nearest: Option<String>,
        /// Every name.
        known: String,
    },
    /// The device is there and cannot start.
    #[error("device `{device}`: {reason}")]
    Start {
        /// The device's name.
        device: String,
        /// Why not, and what would be right.
        reason: String,
    },
    /// The device is there and an option does not fit it.
    #[error("device `{device}`: {option} {reason}")]
    Option {
        /// The device's name.
        device: String,
        /// The option with its value.
        option: String,
        /// Why not, and what would be right.
        reason: String,
    },
}

/// A device with how it is opened.
struct Entry {
    listed: Listed,
    open: fn(&OpenOptions) -> Result<Box<dyn Device>, OpenError>,
}

/// A new device is one entry here.
const DEVICES: &[Entry] = &[
    Entry {
        listed: Listed {
            name: "cpu",
            description: "this machine's processor: AMX, AVX-512, AVX2 or portable kernels",
        },
        open: open_cpu,
    },
    Entry {
        listed: Listed {
            name: "reference",
            description: "the oracle: plain loops in f64, slow and obviously right",
        },
        open: open_reference,
    },
    Entry {
        listed: Listed {
            name: "pytorch:cpu",
            description: "what your own PyTorch runs on: also pytorch:cuda:N, npu:N, xpu:N, mps (docs/pytorch.md)",
        },
        open: |options| open_pytorch("pytorch:cpu", options),
    },
    Entry {
        listed: Listed {
            name: "ascend:0",
            description: "an Ascend NPU through CANN itself; also ascend:N, and the emulator (docs/ascend.md)",
        },
        open: |options| open_ascend("ascend:0", options),
    },
];

/// Opens a device by its name.
///
/// # Errors
/// [`OpenError::Unknown`] with the nearest name, [`OpenError::Option`] where an option does not fit the device, or
/// [`OpenError::Start`] where the machine does not let it start.
pub fn open(name: &str, options: &OpenOptions) -> Result<Box<dyn Device>, OpenError> {
    let placed = placed(name)?;
    if !placed.moved.is_empty() {
        return open_placed(&placed, options);
    }
    // `cpu:avx2` is the cpu at that level: a device of its own in a list of fallbacks, since its bits may differ.
    if let Some((base, level)) = name.split_once(':')
        && base == "cpu"
        && options.level.is_none()
    {
        return open(base, &OpenOptions { level: Some(level.into()), ..options.clone() });
    }
    if name.starts_with(PYTORCH) {
        return open_pytorch(name, options);
    }
    if name.starts_with(ASCEND) {
        return open_ascend(name, options);
    }
    match DEVICES.iter().find(|entry| entry.listed.name == name) {
        Some(entry) => (entry.open)(options),
        None => Err(unknown(name)),
    }
}

/// How a device's own worker is started, where it brings one.
///
/// # Errors
/// A name that is none, or an interpreter that is not there.
pub fn own_worker(name: &str, python: Option<&Path>) -> Result<Option<WorkerCommand>, OpenError> {
    // One whose operators are on several devices is held by this binary.
    if !name.starts_with(PYTORCH) || !placed(name)?.moved.is_empty() {
        return Ok(None);
    }
    let refused = |reason: String| OpenError::Start { device: name.into(), reason };
    toprope_pytorch::name::Name::parse(name).map_err(|error| refused(error.reason))?;
    toprope_pytorch::command(name, python).map(Some).map_err(|error| refused(error.to_string()))
}

/// Whether a device computes in memory of the host, which a supervisor can share with its worker.
pub fn in_host_memory(name: &str) -> bool {
    if let Ok(PlacedName { device, moved }) = PlacedName::parse(name)
        && !moved.is_empty()
    {
        return in_host_memory(&device) && moved.iter().all(|(_, to)| in_host_memory(to));
    }
    match name.starts_with(PYTORCH) {
        true => toprope_pytorch::name::Name::parse(name).is_ok_and(|parsed| parsed.in_host_memory()),
        false => !name.starts_with(ASCEND),
    }
}

/// Bytes that a device takes for itself beside a program's plan, on so many threads (all where none are given); `None` where
/// nobody can say before it is opened.
pub fn workspace_bytes(
    name: &str,
    program: &Arc<Validated>,
    plan: &Arc<MemoryPlan>,
    threads: Option<usize>,
) -> Option<usize> {
    let base = name.split_once(':').map_or(name, |(base, _)| base);
    let threads =
        threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    match base {
        "cpu" => toprope_cpu::workspace_bytes(program.clone(), plan.clone(), threads).ok(),
        _ => None,
    }
}

/// The oracle in wide mode, and the magnitudes that the contract's tolerances are relative to.
pub fn oracle() -> (Box<dyn Device>, MagnitudeFunction) {
    let options = toprope_reference::Options { width: Width::Wide, ..Default::default() };
    (Box::new(toprope_reference::ReferenceDevice::new(options)), toprope_reference::magnitudes)
}

/// The contract's operators in plain torch, as Python source.
pub fn torch_operators() -> &'static str {
    toprope_pytorch::OPERATORS
}

/// Every device that can be opened, the default first.
pub fn list() -> Vec<Listed> {
    DEVICES.iter().map(|entry| entry.listed).collect()
}

/// What can be chosen of a `pytorch:` device.
pub fn pytorch_variants() -> &'static [Variant] {
    toprope_pytorch::name::VARIANTS
}

/// Names of devices of the same kinds beside the listed ones, as far as their software tells: further NPUs.
pub fn further() -> Vec<String> {
    let count = toprope_ascend::devices(&format!("{ASCEND}0")).map_or(0, |listing| listing.count);
    (1..count).map(|index| format!("{ASCEND}{index}")).collect()
}

/// What CANN's emulator calls itself, where an `ascend:` name leads to it rather than to a chip.
///
/// # Errors
/// The name, or no CANN and no emulator in reach.
pub fn ascend_emulator(name: &str) -> Result<Option<String>, OpenError> {
    match toprope_ascend::devices(name) {
        Ok(listing) => Ok(listing.emulator),
        Err(error) => Err(OpenError::Start { device: name.into(), reason: error.to_string() }),
    }
}

/// How an Ascend chip is, where its driver tells it: a line, and its problems.
///
/// # Errors
/// Who tells it was not found: where it was looked for.
pub fn ascend_health(name: &str) -> Result<(String, Vec<String>), String> {
    let health = toprope_ascend::health::health(name)?;
    Ok((health.to_string(), health.problems()))
}

/// Chips that the user's own torch sees, by name; importing it takes seconds.
///
/// # Errors
/// Why nobody can tell: no interpreter, no torch, or no answer.
pub fn torch_chips(python: Option<&Path>) -> Result<Vec<Chip>, String> {
    let limit = toprope_pytorch::START_LIMIT;
    toprope_pytorch::chips::chips(&RealWorld::new(), python, limit).map_err(|error| error.to_string())
}

/// What can be chosen of an `ascend:` device.
pub fn ascend_variants() -> &'static [Variant] {
    toprope_ascend::name::VARIANTS
}

/// One instruction as a C++ program that needs CANN alone, for an `ascend:` device; none for any other.
///
/// # Errors
/// In words: the operator is not lowered, or the case is none.
pub fn ascend_reproducer(name: &str, case: &AscendCase<'_>) -> Option<Result<String, String>> {
    let ascend = name.starts_with(ASCEND);
    ascend.then(|| toprope_ascend::source(name, case).map_err(|error| error.to_string()))
}

/// The page on `ascend:` devices, with its table of operators.
pub fn ascend_page() -> String {
    toprope_ascend::table::page()
}

fn unknown(name: &str) -> OpenError {
    let names = || DEVICES.iter().map(|entry| entry.listed.name);
    let distance = |known: &&str| strsim::damerau_levenshtein(known, &name.to_lowercase());
    let nearest = names().min_by_key(distance).filter(|known| distance(known) <= known.len() / 2);
    let known = names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    OpenError::Unknown { name: name.into(), nearest: nearest.map(Into::into), known }
}

fn placed(name: &str) -> Result<PlacedName, OpenError> {
    let refused = |error: PlacedNameError| OpenError::Start { device: error.name, reason: error.reason };
    PlacedName::parse(name).map_err(refused)
}

/// A device some of whose operators run on others; options but the level are for all of them.
fn open_placed(name: &PlacedName, options: &OpenOptions) -> Result<Box<dyn Device>, OpenError> {
    let main = open(&name.device, options)?;
    let mut guests: Vec<(&str, Guest)> = Vec::new();
    for (operator, to) in &name.moved {
        if let Some((_, guest)) = guests.iter_mut().find(|(known, _)| known == to) {
            guest.operators.push(operator.clone());
            continue;
        }
        let device = open(to, &OpenOptions { level: None, ..options.clone() })?;
        guests.push((to, Guest { device, operators: vec![operator.clone()] }));
    }
    let guests = guests.into_iter().map(|(_, guest)| guest).collect();
    Ok(Box::new(PlacedDevice::new(name, main, guests, Box::new(RealWorld::new()))))
}

fn open_cpu(options: &OpenOptions) -> Result<Box<dyn Device>, OpenError> {
    let refused = |option: String, reason: String| OpenError::Option { device: "cpu".into(), option, reason };
    if options.width == Width::Wide {
        return Err(refused("width `wide`".into(), "is not there: only `reference` has it".into()));
    }
    let level = match &options.level {
        None => None,
        Some(name) => {
            let level = name.parse::<Level>();
            Some(level.map_err(|error| refused(format!("level `{name}`:"), error.to_string()))?)
        }
    };
    let (threads, progress) = (options.threads, options.progress.clone());
    let device =
        toprope_cpu::CpuDevice::new(toprope_cpu::Options { threads, level, progress, profile: false });
    match device {
        Ok(device) => Ok(Box::new(device)),
        Err(error) => Err(OpenError::Start { device: "cpu".into(), reason: error.to_string() }),
    }
}

fn open_reference(options: &OpenOptions) -> Result<Box<dyn Device>, OpenError> {
    if let Some(level) = &options.level {
        return Err(OpenError::Option {
            device: toprope_reference::device::NAME.into(),
            option: format!("level `{level}`"),
            reason: "cannot be chosen: it has one level; leave the option out".into(),
        });
    }
    let (width, progress) = (options.width, options.progress.clone());
    Ok(Box::new(toprope_reference::ReferenceDevice::new(toprope_reference::Options { width, progress })))
}

/// Refuses a level and the wide mode for a device that has variants in its name instead.
fn variants_only(name: &str, example: &str, options: &OpenOptions) -> Result<(), OpenError> {
    let refused =
        |option: String, reason: String| Err(OpenError::Option { device: name.into(), option, reason });
    if let Some(level) = &options.level {
        let reason = format!("is not there: variants stand in the name, as in +{example}");
        return refused(format!("level `{level}`"), reason);
    }
    if options.width == Width::Wide {
        return refused("width `wide`".into(), "is not there: only `reference` has it".into());
    }
    Ok(())
}

fn open_pytorch(name: &str, options: &OpenOptions) -> Result<Box<dyn Device>, OpenError> {
    variants_only(name, "tf32=on", options)?;
    let (python, threads, regions) = (options.python.as_deref(), options.threads, options.regions.as_slice());
    let options = toprope_pytorch::OpenOptions { python, threads, regions };
    match toprope_pytorch::open(&RealWorld::new(), name, &options) {
        Ok(device) => Ok(Box::new(device)),
        Err(error) => Err(OpenError::Start { device: name.into(), reason: error.to_string() }),
    }
}

fn open_ascend(name: &str, options: &OpenOptions) -> Result<Box<dyn Device>, OpenError> {
    variants_only(name, "cube=hf32", options)?;
    let own = toprope_ascend::Options { progress: options.progress.clone() };
    match toprope_ascend::AscendDevice::open(name, own) {
        Ok(device) => Ok(Box::new(device)),
        Err(error) => Err(OpenError::Start { device: name.into(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(name: &str, options: &OpenOptions) -> String {
        match open(name, options) {
            Ok(device) => panic!("{} was opened", device.describe().name),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_listed_device_opens_and_says_its_name() {
        for listed in list() {
            match open(listed.name, &OpenOptions::default()) {
                Ok(device) => assert_eq!(device.describe().name, listed.name),
                // Without a torch or a CANN in reach it says so, and how to name one.
                Err(error) => {
                    let how = if listed.name.starts_with(PYTORCH) { "--python" } else { "+library=" };
                    assert!(listed.name.contains(':'), "{error}");
                    assert!(error.to_string().contains(how), "{error}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_device_is_told_what_there_is() {
        let message = failure("Referense", &OpenOptions::default());
        assert!(message.contains("there is no device `Referense`, did you mean `reference`?"), "{message}");
        for listed in list() {
            assert!(message.contains(&format!("`{}`", listed.name)), "{message}");
        }
        let message = failure("quantum:7", &OpenOptions::default());
        assert!(!message.contains("did you mean"), "{message}");
    }

    #[test]
    fn an_option_that_does_not_fit_is_refused() {
        let options = OpenOptions { level: Some("avx9".into()), ..OpenOptions::default() };
        assert!(failure("reference", &options).contains("level `avx9`"));
        let message = failure("cpu", &options);
        assert!(message.contains("level `avx9`") && message.contains("portable"), "{message}");
        let wide = OpenOptions { width: Width::Wide, ..OpenOptions::default() };
        assert!(failure("cpu", &wide).contains("only `reference` has it"));
        assert_eq!(open("reference", &wide).unwrap().describe().level, "wide");
        let none = OpenOptions { threads: Some(0), ..OpenOptions::default() };
        assert!(failure("cpu", &none).contains("at least one thread"));
        let portable = OpenOptions { level: Some("portable".into()), ..OpenOptions::default() };
        assert_eq!(open("cpu", &portable).unwrap().describe().level, "portable");
    }
}
