//! The printed form: what people read, what tests and bug reports are written in, and what the hash is taken over.
//! `parse(print(p)) == p` for every program in canonical order.
//!
//! ```text
//! program "example" train
//! symbol sequences <= 4
//! state %w: f32[16, 8] {"initial":"normal","std":0.02}
//! next %w' of %w
//! input %tokens: i32[32*sequences]
//! carried %g: f32[16, 8]
//!
//! accumulate {
//!   %h: f32[32*sequences, 8] = gather(%w, %tokens) {"output":"f32"} @"embed"
//!   ...
//! }
//! update {
//!   ...
//! }
//! ```
//! An operand may be a view: `%x@offset[shape][strides]`. `!3` behind an instruction is its check bit; lines that start
//! with `#` are comments.

mod parser;
mod printer;

pub use parser::{ParseError, parse};
pub use printer::print;
