//! The contract: a training step as data. Operators, programs, validation, autodiff, the memory plan, and the interface
//! that devices implement. Knows nothing of models, recipes, devices or guards.

pub mod around; // devices around devices
pub mod autodiff; // program to program: gradients
pub mod builder; // an operator at a time
pub mod check; // checks put in and taken out by a pass
pub mod constant; // what constants hold
pub mod cost; // FLOPs and bytes
pub mod device; // the interface that devices implement
pub mod dtype; // element types
pub mod fault; // the taxonomy of what goes wrong
pub mod hash; // the stable hash
pub mod initial; // initial state
pub mod json; // the form for other languages
pub mod memory; // where every value lies
pub mod operator; // the closed set of operators
pub mod order; // canonical order, dead code
pub mod philox; // counter-based random bits
pub mod placed; // names of devices some of whose operators run elsewhere
pub mod program; // instructions in two ranges
pub mod recompute; // what the backward pass computes again
pub mod session; // a program with its buffers on a device
pub mod shape; // dimensions, symbols, views
pub mod tensor; // values on the host
pub mod text; // the printed form
pub mod tolerance; // where floats are judged
pub mod validate; // every defect with its place
pub mod value; // typed values with roles
pub mod variant; // variants in a device's name

pub use around::Around;
pub use builder::{BuildError, Builder};
pub use device::{
    Allocation, Bindings, BufferId, CheckMask, Description, Device, HostRegion, PreparedId, Progress,
    ProgressPlace, ProgressWord, SharedWord, Span, Ticket,
};
pub use dtype::{DType, Width};
pub use fault::{Fault, FaultClass, FaultKind, Place};
pub use initial::Initial;
pub use memory::{Location, MemoryPlan, Region, Slice, StateLayout};
pub use operator::{Definition, Invariant, OPERATORS, Operator, Record, Slot};
pub use program::{Instruction, Phase, Program, Range};
pub use session::{Homes, Outputs, Session};
pub use shape::{Concrete, Dim, Shape, Symbol, SymbolId, Type, View};
pub use tensor::{MagnitudeFunction, Tensor};
pub use tolerance::Tolerance;
pub use validate::{Defect, Validated, validate};
pub use value::{Operand, Role, Value, ValueId};
