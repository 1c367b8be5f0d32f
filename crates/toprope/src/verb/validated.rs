//! The programs that this binary builds itself.

use crate::exit::{Exit, Failure};
use std::sync::Arc;
use toprope_program::{Program, Validated, validate};

/// Validates a program of our own making; that it is not valid is our mistake.
pub fn validated(program: Program) -> Result<Arc<Validated>, Failure> {
    validate(program).map(Arc::new).map_err(|defects| {
        let listed: Vec<String> = defects.iter().map(ToString::to_string).collect();
        Failure::new(Exit::Internal, format!("the program is not valid:\n{}", listed.join("\n")))
    })
}
