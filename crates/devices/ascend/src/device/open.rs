//! Opening: CANN found and whole, the device there and ours, its settings made before anything runs on it.

use super::cann::Cann;
use super::{AscendDevice, CAREFUL_RUNS};
use crate::code::lookup;
use crate::ffi::abi::{Code, REPEAT_INITIALIZE, SUCCESS};
use crate::name::{Name, NameError, PREFIX};
use crate::queue::Queue;
use crate::search::{self, NotFound};
use crate::table;
use std::path::PathBuf;
use std::sync::Arc;
use toprope_program::{DType, Description, ProgressPlace};

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where progress is written.
    pub progress: ProgressPlace,
}

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// CANN is not there.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// A CANN without functions that everything needs.
    #[error("{} is no CANN that serves: it lacks {}, which every operator needs; take CANN 8.1 or newer", files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", "), missing.join(", "))]
    Symbols {
        /// What was loaded.
        files: Vec<PathBuf>,
        /// What is missing.
        missing: Vec<String>,
    },
    /// There is no such device.
    #[error(
        "there is no NPU {index}: CANN sees {count}; look at `npu-smi info`, and at ASCEND_RT_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// The number asked for.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// The device node is not ours.
    #[error(
        "no permission on NPU {index} (/dev/davinci{index}, /dev/davinci_manager): join the group that owns them, or run in a container that was given them; CANN says: {text}"
    )]
    Permission {
        /// The number asked for.
        index: u32,
        /// The vendor's text.
        text: String,
    },
    /// The vendor's software refused.
    #[error("{during}: {} {}", lookup(*code), text)]
    Driver {
        /// The vendor's number.
        code: i32,
        /// What was asked for.
        during: &'static str,
        /// The vendor's text.
        text: String,
    },
}

/// What CANN sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// How many devices there are.
    pub count: u32,
    /// What the emulator calls itself, where CANN is the emulator.
    pub emulator: Option<String>,
}

/// How many devices a CANN sees; `name` is one of them, with the library that it names.
///
/// # Errors
/// The name, or CANN, is not right.
pub fn devices(name: &str) -> Result<Listing, OpenError> {
    let (_, cann) = load(name)?;
    let count = cann.runtime.device_count().map_err(|code| driver(&cann, code, "counting devices"))?;
    Ok(Listing { count, emulator: cann.emulator.clone() })
}

/// What the CANN of a name calls itself where it is the emulator, and its files.
pub(crate) fn cann_of(name: &str) -> Result<(Option<String>, Vec<PathBuf>), OpenError> {
    let (_, cann) = load(name)?;
    Ok((cann.emulator.clone(), cann.files.clone()))
}

fn load(name: &str) -> Result<(Name, Arc<Cann>), OpenError> {
    let parsed = Name::parse(name)?;
    let variable =
        |variable: &str| std::env::var_os(variable).filter(|set| !set.is_empty()).map(PathBuf::from);
    let libraries = search::load(parsed.folder.as_deref(), variable)?;
    let cann = Cann::new(&libraries).map_err(|missing| OpenError::Symbols {
        files: libraries.files.clone(),
        missing: missing.into_iter().map(Into::into).collect(),
    })?;
    match cann.runtime.init() {
        // Somebody else in this process may have been first.
        SUCCESS | REPEAT_INITIALIZE => Ok((parsed, Arc::new(cann))),
        code => Err(driver(&cann, code, "aclInit")),
    }
}

/// The CANN that a name finds, where there is one.
pub(crate) fn loaded(name: &str) -> Option<Arc<Cann>> {
    load(name).ok().map(|(_, cann)| cann)
}

fn driver(cann: &Cann, code: Code, during: &'static str) -> OpenError {
    OpenError::Driver { code, during, text: cann.runtime.message() }
}

impl AscendDevice {
    /// Opens a device by its name.
    ///
    /// # Errors
    /// The name, CANN, or the device.
    pub fn open(name: &str, options: Options) -> Result<AscendDevice, OpenError> {
        let (parsed, cann) = load(name)?;
        let (runtime, index) = (&cann.runtime, parsed.index);
        let refused = |code: Code, during: &'static str| match code {
            207_006 => OpenError::Permission { index, text: runtime.message() },
            code => driver(&cann, code, during),
        };
        let count = runtime.device_count().map_err(|code| refused(code, "counting devices"))?;
        if index >= count {
            return Err(OpenError::NoDevice { index, count });
        }
        let done = |code: Code, during: &'static str| match code {
            SUCCESS => Ok(()),
            code => Err(refused(code, during)),
        };
        done(set_device(&cann, index), "aclrtSetDevice")?;
        let mut health = Vec::new();
        // Before streams are made, and before the first operator: later the vendor does not look at them.
        let ieee = runtime.knows_ieee() != Some(false);
        if runtime.set_ieee(parsed.ieee() && ieee).is_none_or(|code| code != SUCCESS)
            || (parsed.ieee() && !ieee)
        {
            health.push("overflow saturates on this chip: it shows by value, not by infinities".to_string());
        }
        if parsed.deterministic() && runtime.set_deterministic(true).is_none_or(|code| code != SUCCESS) {
            health.push("deterministic algorithms could not be asked for".to_string());
        }
        let context =
            runtime.create_context(index as i32).map_err(|code| refused(code, "making a context"))?;
        done(runtime.enter(context), "entering a context")?;
        let compute = runtime.create_stream().map_err(|code| refused(code, "making a stream"))?;
        let copies = runtime.create_stream().map_err(|code| refused(code, "making a stream"))?;
        for stream in [compute, copies] {
            // What follows a failed operator must not compute on what it left.
            if runtime.stop_on_failure(stream).is_none_or(|code| code != SUCCESS) {
                health.push("the stream runs on after an operator that failed".to_string());
            }
        }
        health.extend(table::lacking(&|operator| cann.operators.has(operator)));
        let description = describe(&parsed, &cann, health);
        Ok(AscendDevice {
            name: description.name.clone(),
            parsed,
            description,
            cann: cann.clone(),
            context,
            compute,
            copies,
            programs: Vec::new(),
            buffers: Vec::new(),
            scratch: None,
            generation: 0,
            workspace: None,
            queue: Queue::default(),
            progress: options.progress,
            lost: None,
            careful: CAREFUL_RUNS,
        })
    }
}

/// Times that a device is asked for before it is given up.
const ATTEMPTS: usize = 3;

/// Makes a device this thread's. One that an earlier process left behind with an error that sticks is reset first.
fn set_device(cann: &Cann, index: u32) -> Code {
    let mut code = SUCCESS;
    for _ in 0..ATTEMPTS {
        code = cann.runtime.set_device(index as i32);
        let reset = || cann.runtime.reset_by_force(index as i32);
        if code == SUCCESS || !lookup(code).remedy.is_sticky() || reset().is_none() {
            break;
        }
    }
    code
}

fn describe(parsed: &Name, cann: &Cann, health: Vec<String>) -> Description {
    let runtime = &cann.runtime;
    let mut versions = vec![("toprope-ascend".to_string(), env!("CARGO_PKG_VERSION").to_string())];
    versions.extend(runtime.versions());
    if let Some(version) = &cann.emulator {
        let version = version.strip_prefix("cann-emulator ").unwrap_or(version);
        versions.push(("cann-emulator".into(), version.into()));
    }
    let files = cann.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" ");
    versions.push(("libraries".into(), files));
    let soc = runtime.soc();
    Description {
        name: format!("{PREFIX}{}", parsed.index),
        hardware: if cann.emulator.is_some() { format!("{soc}, emulated") } else { soc },
        level: parsed.level(),
        versions,
        dtypes: DType::ALL.to_vec(),
        memory_bytes: runtime.memory().map(|(_, total)| total),
        units: runtime.cores(parsed.index).and_then(|cores| usize::try_from(cores).ok()).unwrap_or(1),
        deterministic: parsed.deterministic(),
        emulated: cann.emulator.is_some(),
        health,
    }
}
