//! Two-phase calls: the first plans and names its workspace, the second queues.

use super::abi::{ACLNN_PARAM_INVALID, ACLNN_PARAM_NULLPTR, Code, Handle, SUCCESS};
use super::library::Libraries;
use super::object::{Bases, Built, Objects, OfHandle};
use super::prototype::{PROTOTYPES, Prototype};
use super::runtime::Stream;
use crate::call::Call;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::null_mut;

type SecondPhase = unsafe extern "C" fn(*mut c_void, u64, Handle, Handle) -> Code;

#[derive(Clone, Copy, Debug)]
struct Phases {
    first: *const c_void,
    second: SecondPhase,
}

/// The vendor's operators, as far as this library has them.
#[derive(Debug)]
pub(crate) struct Operators {
    objects: Objects,
    phases: BTreeMap<&'static str, Phases>,
    repeatable: Option<OfHandle>,
    destroy: Option<OfHandle>,
}

// SAFETY: addresses of functions, which any thread may call.
unsafe impl Send for Operators {}
// SAFETY: as above.
unsafe impl Sync for Operators {}

/// A call that was planned: at fixed addresses, to be queued as often as wanted where it is repeatable.
#[derive(Debug)]
pub(crate) struct Plan {
    executor: Handle,
    second: SecondPhase,
    /// Destroys a repeatable executor; none for one that its only launch consumes.
    destroy: Option<OfHandle>,
    /// Bytes of device memory that a launch must be given.
    pub(crate) workspace_bytes: u64,
}

// SAFETY: an executor is used by one thread at a time: whoever owns the plan.
unsafe impl Send for Plan {}

impl Operators {
    /// Resolves both phases of every operator that is there; the objects must be.
    pub(crate) fn load(libraries: &Libraries) -> Result<Operators, Vec<&'static str>> {
        let objects = Objects::load(libraries)?;
        let mut phases = BTreeMap::new();
        for Prototype { name, .. } in PROTOTYPES {
            let first = libraries.symbol(&format!("aclnn{name}GetWorkspaceSize"));
            let second = libraries.symbol(&format!("aclnn{name}"));
            if let (Some(first), Some(second)) = (first, second) {
                // SAFETY: every operator's second phase has this prototype.
                let second = unsafe { std::mem::transmute::<*const c_void, SecondPhase>(second) };
                phases.insert(*name, Phases { first, second });
            }
        }
        let of_handle = |name: &str| {
            // SAFETY: both functions take an executor and answer a code.
            libraries.symbol(name).map(|at| unsafe { std::mem::transmute::<*const c_void, OfHandle>(at) })
        };
        let (repeatable, destroy) =
            (of_handle("aclSetAclOpExecutorRepeatable"), of_handle("aclDestroyAclOpExecutor"));
        Ok(Operators { objects, phases, repeatable, destroy })
    }

    /// Whether both phases of an operator are there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.phases.contains_key(name)
    }

    /// Whether an executor that is not launched can be given back, and one be launched again.
    pub(crate) fn can_repeat(&self) -> bool {
        self.repeatable.is_some() && self.destroy.is_some()
    }

    /// Runs the first phase.
    pub(crate) fn plan(&self, call: &Call, bases: &Bases) -> Result<Plan, Code> {
        let Some(phases) = self.phases.get(call.prototype.name) else { return Err(ACLNN_PARAM_NULLPTR) };
        let built = Built::new(&self.objects, call, bases)?;
        let (mut workspace_bytes, mut executor) = (0u64, null_mut());
        // SAFETY: the symbol is this prototype's first phase, and the objects live until it returns.
        let code =
            unsafe { (call.prototype.call)(phases.first, &built.raws, &mut workspace_bytes, &mut executor) };
        match code {
            Some(SUCCESS) => {}
            Some(code) => return Err(code),
            None => return Err(ACLNN_PARAM_INVALID),
        }
        let destroy = match (self.repeatable, self.destroy) {
            // SAFETY: the executor that the first phase just gave, before anything else is done with it.
            (Some(repeatable), Some(destroy)) if unsafe { repeatable(executor) } == SUCCESS => Some(destroy),
            _ => None,
        };
        Ok(Plan { executor, second: phases.second, destroy, workspace_bytes })
    }
}

impl Plan {
    /// Whether it may be launched again.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.destroy.is_some()
    }

    /// Runs the second phase: queues the work. `workspace` is the address of `workspace_bytes` bytes that nothing else uses
    /// in another stream.
    pub(crate) fn launch(&self, workspace: u64, stream: Stream) -> Code {
        let address = if self.workspace_bytes == 0 { null_mut() } else { workspace as *mut c_void };
        // SAFETY: the executor is this plan's and not yet consumed; the workspace is large enough.
        unsafe { (self.second)(address, self.workspace_bytes, self.executor, stream.handle()) }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: a repeatable executor of this plan, destroyed once.
            unsafe { destroy(self.executor) };
        }
    }
}
