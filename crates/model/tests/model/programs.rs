//! The programs as programs.

use crate::support::{dense, experts, options};
use toprope_model::deepseek_v3::{build_evaluate, build_logits, build_train};
use toprope_program::{DType, text, validate};

#[test]
fn look() {
    for config in [dense(), experts()] {
        let program = build_train(&config, &options(DType::Bf16), "tiny").unwrap();
        println!("{}", text::print(&program));
        validate(program).unwrap_or_else(|defects| panic!("{defects:#?}"));
        for program in [build_evaluate(&config, &options(DType::Bf16), "tiny").unwrap(), build_logits(&config, DType::Bf16, 9, "tiny").unwrap()] {
        println!("{}", text::print(&program));
        validate(program).unwrap_or_else(|defects| panic!("{defects:#?}"));
        }
    }
}
