//! `libopapi.so`: the operators, two phases each. A file per family holds its table (prototypes as CANN's callers know
//! them) and its kernels; what is known but has no kernel stands in `absent`.

pub mod absent;
pub mod activation;
pub mod arguments;
pub mod attention;
pub mod attention_fused;
pub mod binary;
pub mod compare;
pub mod convolution;
pub mod executor;
pub mod experts;
pub mod filling;
pub mod gating;
pub mod gemm;
pub mod grouped;
pub mod indexing;
pub mod losses;
pub mod movement;
pub mod norms;
pub mod optimizer;
pub mod ordering;
pub mod products;
pub mod reductions;
pub mod rotary;
pub mod run;
pub mod scatter;
pub mod softmax;
pub mod solve;
pub mod store;
pub mod unary;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use crate::fault::Fault;
use arguments::Arguments;
use run::Run;

/// One operator of CANN's.
pub struct Operator {
    /// Without its prefix: `Matmul`.
    pub name: &'static str,
    /// The second phase's name.
    pub function: &'static str,
    /// The first phase's name.
    pub planner: &'static str,
    /// Names of the first phase's arguments, and their types in C.
    pub parameters: &'static [(&'static str, &'static str)],
    /// Checks arguments and makes what runs later.
    pub plan: fn(&Arguments) -> Planned,
}

/// An operator with the addresses of its two phases.
pub struct Entry {
    operator: &'static Operator,
    first_phase: usize,
    second_phase: usize,
}

type Body = dyn Fn(&Run) -> Result<(), Fault> + Send + Sync;

/// What a planned call runs on its stream.
#[derive(Clone)]
pub struct Kernel {
    pub run: Arc<Body>,
    /// Bytes of workspace that the client must give.
    pub workspace: u64,
}

/// A kernel, or why the call is refused.
pub type Planned = Result<Kernel, Fault>;

/// A kernel without workspace.
pub fn kernel(run: impl Fn(&Run) -> Result<(), Fault> + Send + Sync + 'static) -> Planned {
    Ok(Kernel { run: Arc::new(run), workspace: 0 })
}

/// A kernel that asks for a workspace: an odd number of bytes, so that a client that rounds is not relied upon.
pub fn kernel_with_workspace(
    elements: usize,
    run: impl Fn(&Run) -> Result<(), Fault> + Send + Sync + 'static,
) -> Planned {
    Ok(Kernel { run: Arc::new(run), workspace: 33 + 4 * elements.min(1 << 14) as u64 })
}

/// Declares operators: for each its record and its two C functions, and `entries`, their table.
macro_rules! operators {
    ($($name:ident($($argument:ident: $kind:ty),* $(,)?) = $plan:expr;)*) => {
        $(
            #[allow(non_snake_case, clippy::too_many_arguments, reason = "CANN's names and arguments")]
            mod $name {
                use super::*;
                use $crate::operator::arguments::*;

                pub static OPERATOR: $crate::operator::Operator = $crate::operator::Operator {
                    name: stringify!($name),
                    function: concat!("aclnn", stringify!($name)),
                    planner: concat!("aclnn", stringify!($name), "GetWorkspaceSize"),
                    parameters: &[$((stringify!($argument), <$kind as Parameter>::C)),*],
                    plan: $plan,
                };

                pub unsafe extern "C" fn first_phase(
                    $($argument: <$kind as Parameter>::Raw,)*
                    workspace: *mut u64,
                    executor: *mut usize,
                ) -> i32 {
                    let take = || {
                        Ok(vec![$(Argument {
                            name: stringify!($argument),
                            output: <$kind as Parameter>::OUTPUT,
                            // SAFETY: the caller gives what CANN's documentation says.
                            value: unsafe { <$kind as Parameter>::take($argument)? },
                        }),*])
                    };
                    // SAFETY: the caller gives places for the answers, or null, which is refused.
                    unsafe { $crate::operator::executor::plan(&OPERATOR, take(), workspace, executor) }
                }

                pub extern "C" fn second_phase(workspace: usize, size: u64, executor: usize, stream: usize) -> i32 {
                    $crate::operator::executor::launch(&OPERATOR, workspace, size, executor, stream)
                }
            }
        )*

        /// This family's operators.
        pub fn entries() -> Vec<$crate::operator::Entry> {
            vec![$(
                $crate::operator::Entry {
                    operator: &$name::OPERATOR,
                    first_phase: $name::first_phase as *const () as usize,
                    second_phase: $name::second_phase as *const () as usize,
                },
            )*]
        }
    };
}
use operators;

fn every() -> impl Iterator<Item = Entry> {
    let families = [
        absent::entries(),
        activation::entries(),
        attention_fused::entries(),
        binary::entries(),
        compare::entries(),
        convolution::entries(),
        experts::entries(),
        filling::entries(),
        gating::entries(),
        grouped::entries(),
        indexing::entries(),
        losses::entries(),
        movement::entries(),
        norms::entries(),
        optimizer::entries(),
        ordering::entries(),
        products::entries(),
        reductions::entries(),
        rotary::entries(),
        scatter::entries(),
        softmax::entries(),
        solve::entries(),
        unary::entries(),
    ];
    families.into_iter().flatten()
}

/// All operators, by name.
pub fn all() -> Vec<&'static Operator> {
    let mut all: Vec<_> = every().map(|entry| entry.operator).collect();
    all.sort_unstable_by_key(|operator| operator.name);
    all
}

/// Addresses of all aclnn functions.
pub fn functions() -> &'static BTreeMap<&'static str, usize> {
    static FUNCTIONS: OnceLock<BTreeMap<&'static str, usize>> = OnceLock::new();
    FUNCTIONS.get_or_init(|| {
        let pairs = every().flat_map(|entry| {
            [(entry.operator.planner, entry.first_phase), (entry.operator.function, entry.second_phase)]
        });
        let single = products::single_calls().into_iter().chain(absent::single_calls());
        pairs.chain(single).collect()
    })
}
