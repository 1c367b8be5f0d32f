//! Shared libraries and their symbols. They stay loaded: CANN's own threads outlive every device.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};

/// The runtime.
const RUNTIME: &str = "libascendcl.so";
/// Tensors, scalars, executors.
const OBJECTS: &str = "libnnopbase.so";
/// Operators, in one library or in parts; the vendor says not to mix the two.
const OPERATORS_SPLIT: [&str; 4] =
    ["libopapi_math.so", "libopapi_nn.so", "libopapi_cv.so", "libopapi_transformer.so"];
const OPERATORS: &str = "libopapi.so";
/// What only the emulator exports: its version as text.
const EMULATOR: &str = "cannEmulatorVersion";

/// The libraries of one CANN.
#[derive(Debug)]
pub(crate) struct Libraries {
    /// In the order in which symbols are looked for.
    handles: Vec<&'static Library>,
    /// Their files, as they were named to the loader.
    pub(crate) files: Vec<PathBuf>,
}

/// Why a folder has no usable CANN, in the loader's words.
pub(crate) type Reason = String;

impl Libraries {
    /// Loads CANN from a folder, or by the loader's own search where none is given.
    pub(crate) fn load(folder: Option<&Path>) -> Result<Libraries, Reason> {
        let place = |name: &str| folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let mut libraries = Libraries { handles: Vec::new(), files: Vec::new() };
        libraries.add(place(RUNTIME))?;
        libraries.add(place(OBJECTS))?;
        let split: Vec<Reason> =
            OPERATORS_SPLIT.iter().filter_map(|name| libraries.add(place(name)).err()).collect();
        match split.len() {
            0 => {}
            count if count == OPERATORS_SPLIT.len() => libraries.add(place(OPERATORS))?,
            // Some parts there: newer packages may leave parts out; what is missing is told operator by operator.
            _ => {}
        }
        Ok(libraries)
    }

    /// Loads one library from a folder, or by the loader's own search where none is given.
    pub(crate) fn one(name: &str, folder: Option<&Path>) -> Result<Libraries, Reason> {
        let mut libraries = Libraries { handles: Vec::new(), files: Vec::new() };
        libraries.add(folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name)))?;
        Ok(libraries)
    }

    fn add(&mut self, file: PathBuf) -> Result<(), Reason> {
        // SAFETY: loading runs the library's initialisers; whoever names a CANN trusts it as the vendor's own clients do.
        let library = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) };
        // The loader's own words, which name the file, stand behind the crate's.
        let library = library.map_err(|error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })?;
        self.handles.push(Box::leak(Box::new(library)));
        self.files.push(file);
        Ok(())
    }

    /// The address of a symbol.
    pub(crate) fn symbol(&self, name: &str) -> Option<*const c_void> {
        self.handles.iter().find_map(|library| {
            // SAFETY: the symbol is taken as an address only; who casts it to a function says why that is its type.
            let found = unsafe { library.get::<*const c_void>(name) }.ok()?;
            let address = found.into_raw().cast_const().cast::<c_void>();
            (!address.is_null()).then_some(address)
        })
    }

    /// What the emulator calls itself, where this is one.
    pub(crate) fn emulator(&self) -> Option<String> {
        let address = self.symbol(EMULATOR)?;
        // SAFETY: the emulator exports this name as a function without arguments that gives a static string; no CANN of
        // the vendor has it.
        let text = unsafe {
            let version: unsafe extern "C" fn() -> *const c_char = std::mem::transmute(address);
            version()
        };
        if text.is_null() {
            return Some("unnamed".into());
        }
        // SAFETY: a static NUL-terminated string, as above.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}
