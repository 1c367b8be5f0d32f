//! The contract: operators, programs, validation, autodiff, memory plan, the device interface.
