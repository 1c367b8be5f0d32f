//! The two phases of a call: planning makes an executor, which owns copies of all arguments; launching uses it up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::call::{call, write_out};
use crate::code;
use crate::defect;
use crate::fault::Fault;
use crate::objects::LISTS;
use crate::objects::snapshot;
use crate::operator::arguments::{Argument, Arguments, invalid};
use crate::operator::run::Run;
use crate::operator::{Kernel, Operator};
use crate::registry::{Registry, lock};
use crate::runtime::context::current_stream;

/// A planned call.
pub struct Executor {
    operator: &'static Operator,
    state: Mutex<State>,
}

struct State {
    arguments: Arc<Arguments>,
    kernel: Kernel,
    repeatable: bool,
}

static EXECUTORS: Registry<Executor> = Registry::new(11, "executor");

/// Executors that were planned but not launched, oldest first: those beyond the bound are dropped, so that a client
/// that plans without launching does not fill the host's memory.
static PENDING: Mutex<VecDeque<usize>> = Mutex::new(VecDeque::new());
const PENDING_MAX: usize = 1 << 16;

/// The first phase.
///
/// # Safety
/// `workspace` and `executor` are null or may be written to.
pub unsafe fn plan(
    operator: &'static Operator,
    arguments: Result<Vec<Argument>, Fault>,
    workspace: *mut u64,
    executor: *mut usize,
) -> i32 {
    call(operator.planner, || {
        if workspace.is_null() || executor.is_null() {
            return Err(Fault::new(code::PARAM_NULLPTR, "workspaceSize or executor is null"));
        }
        // A handle that is none, or of a destroyed object, is an invalid argument here.
        let handle = |fault: Fault| match fault.code {
            code::INVALID_HANDLE => Fault { code: code::ACLNN_PARAM_INVALID, ..fault },
            _ => fault,
        };
        let arguments = Arguments(arguments.map_err(handle)?);
        let kernel = (operator.plan)(&arguments)?;
        let size = kernel.workspace;
        let state = State { arguments: Arc::new(arguments), kernel, repeatable: false };
        let made = EXECUTORS.insert(Executor { operator, state: Mutex::new(state) });
        let mut pending = lock(&PENDING);
        pending.push_back(made);
        if pending.len() > PENDING_MAX
            && let Some(oldest) = pending.pop_front()
            && EXECUTORS.get(oldest).is_ok_and(|executor| !lock(&executor.state).repeatable)
        {
            let _ = EXECUTORS.remove(oldest);
        }
        drop(pending);
        // SAFETY: not null, and the caller's promise.
        unsafe {
            write_out("workspaceSize", workspace, size)?;
            write_out("executor", executor, made)
        }
    })
}

/// A failed runtime call inside an operator's launch is told as 361001; the runtime's own code is in the text, and
/// `aclrtPeekAtLastError` gives it.
fn within(fault: Fault) -> Fault {
    match fault.code {
        100000..160000 | 200000..360000 | 500000..560000 | 570000.. => {
            crate::fault::keep(&fault);
            let text = format!("runtime call failed with {}: {}", fault.code, fault.text);
            Fault { code: code::ACLNN_RUNTIME_ERROR, text, ..fault }
        }
        _ => fault,
    }
}

fn executor(handle: usize) -> Result<Arc<Executor>, Fault> {
    EXECUTORS.get(handle).map_err(|fault| Fault { code: code::EXECUTOR_NULLPTR, ..fault })
}

/// The second phase.
pub fn launch(operator: &'static Operator, workspace: usize, size: u64, handle: usize, stream: usize) -> i32 {
    call(operator.function, || {
        let executor = executor(handle)?;
        if !std::ptr::eq(executor.operator, operator) {
            let text = format!("the executor was planned by {}", executor.operator.planner);
            return Err(Fault::new(code::EXECUTOR_NULLPTR, text));
        }
        let (kernel, arguments, repeatable) = {
            let state = lock(&executor.state);
            (state.kernel.clone(), state.arguments.clone(), state.repeatable)
        };
        if size < kernel.workspace {
            let text = format!("the workspace has {size} bytes, {} were asked for", kernel.workspace);
            return Err(invalid(text));
        }
        let stream = current_stream(stream).map_err(within)?;
        stream.device.usable().map_err(within)?;
        let active = defect::at_launch(operator, &arguments, stream.device).map_err(within)?;
        if !repeatable {
            EXECUTORS.remove(handle).map_err(|fault| Fault { code: code::EXECUTOR_NULLPTR, ..fault })?;
        }
        let pushed = stream.push(operator.function, move |stream| {
            let run = Run::new(operator, stream, &active);
            let outcome = run.enter(workspace, kernel.workspace as usize).and_then(|()| (kernel.run)(&run));
            let named =
                |fault: Fault| Fault { text: format!("{}: {}", operator.function, fault.text), ..fault };
            outcome.map_err(named)?;
            active.finish(stream)
        });
        pushed.map_err(within)
    })
}

pub extern "C" fn set_repeatable(handle: usize) -> i32 {
    call("aclSetAclOpExecutorRepeatable", || {
        lock(&executor(handle)?.state).repeatable = true;
        Ok(())
    })
}

pub extern "C" fn destroy(handle: usize) -> i32 {
    call("aclDestroyAclOpExecutor", || {
        let executor = executor(handle)?;
        if !lock(&executor.state).repeatable {
            return Err(Fault::new(561102, "the executor is not repeatable: launching ends it"));
        }
        EXECUTORS.remove(handle).map(drop)
    })
}

/// Which tensors an address function counts.
#[derive(Clone, Copy)]
enum Among {
    All,
    Inputs,
    Outputs,
}

fn set_address(
    handle: usize,
    among: Among,
    index: usize,
    relative: usize,
    address: usize,
) -> Result<(), Fault> {
    let executor = executor(handle)?;
    let mut state = lock(&executor.state);
    let mut arguments = (*state.arguments).clone();
    arguments.0.retain(|argument| match among {
        Among::All => true,
        Among::Inputs => !argument.output,
        Among::Outputs => argument.output,
    });
    let mut changed = false;
    if let Some(tensor) = arguments.flat().nth(index + relative) {
        tensor.data = address;
        changed = true;
    }
    if !changed {
        return Err(invalid(format!(
            "{} has no tensor number {}",
            executor.operator.function,
            index + relative
        )));
    }
    let mut all = (*state.arguments).clone();
    for argument in arguments.0 {
        for place in all.0.iter_mut().filter(|place| place.name == argument.name) {
            place.value = argument.value.clone();
        }
    }
    state.kernel = (executor.operator.plan)(&all)?;
    state.arguments = Arc::new(all);
    Ok(())
}

macro_rules! addresses {
    ($($single:ident $list:ident $single_name:literal $list_name:literal $among:ident;)*) => {
        $(
            pub extern "C" fn $single(executor: usize, index: usize, tensor: usize, address: usize) -> i32 {
                call($single_name, || {
                    snapshot(tensor)?;
                    set_address(executor, Among::$among, index, 0, address)
                })
            }

            pub extern "C" fn $list(executor: usize, index: usize, relative: usize, list: usize, address: usize) -> i32 {
                call($list_name, || {
                    LISTS.get(list)?;
                    set_address(executor, Among::$among, index, relative, address)
                })
            }
        )*
    };
}

addresses! {
    set_tensor set_list "aclSetTensorAddr" "aclSetDynamicTensorAddr" All;
    set_input set_input_list "aclSetInputTensorAddr" "aclSetDynamicInputTensorAddr" Inputs;
    set_output set_output_list "aclSetOutputTensorAddr" "aclSetDynamicOutputTensorAddr" Outputs;
}
