//! Every operator of the record against PyTorch, dense, spread out and transposed in memory.

mod elementary;
mod training;
mod wider;

use std::collections::BTreeSet;

use crate::library::begin;
use crate::record::{ALL, Case, cases};
use crate::{ok, run};

/// Largest distance of an f32 result from the f64 one, of the tensor's largest number.
const CLOSE: f64 = 2e-6;

#[test]
fn operators_give_what_pytorch_gives() {
    begin();
    let mut done = BTreeSet::new();
    for name in cases() {
        for placed in ALL {
            let c = Case::new(&name, placed);
            let close = match name.split('.').next().unwrap() {
                "unary" => {
                    elementary::unary(&name, &c);
                    CLOSE
                }
                "softmax" | "log_softmax" => {
                    elementary::softmax(&name, &c);
                    CLOSE
                }
                "swiglu" => {
                    run!("SwiGlu", c.t("x"), -1i64, c.o("out"));
                    run!("SwiGluGrad", c.t("gradOut"), c.t("x"), -1i64, c.o("dx"));
                    CLOSE
                }
                "rms_norm" | "layer_norm" => {
                    elementary::norm(&name, &c);
                    CLOSE
                }
                "rope" => {
                    training::rope(&c);
                    CLOSE
                }
                "attention" => {
                    training::attention(&c);
                    5e-6
                }
                "bmm" | "matmul" | "addmm" => {
                    training::product(&name, &c);
                    CLOSE
                }
                "grouped" => {
                    training::grouped(&c);
                    CLOSE
                }
                "take" | "index_add" | "embedding_gradient" | "gather" | "scatter_add" | "index_put"
                | "masked_fill" => {
                    elementary::indexing(&name, &c);
                    CLOSE
                }
                "sort" | "topk" | "argmax" | "cumsum" => {
                    elementary::ordering(&name, &c);
                    CLOSE
                }
                "sum" => {
                    elementary::reductions(&c);
                    CLOSE
                }
                "nll" | "cross_entropy" | "labelled" => {
                    training::loss(&name, &c);
                    CLOSE
                }
                "permute" | "unpermute" => {
                    training::experts(&name, &c);
                    CLOSE
                }
                "adamw" => {
                    training::adamw(&c);
                    1e-5
                }
                "packed_attention" => {
                    wider::packed_attention(&c);
                    5e-6
                }
                "move" => {
                    wider::movement(&c);
                    CLOSE
                }
                "conv2d" | "conv_transpose1d" | "pool" => {
                    wider::convolution(&name, &c);
                    CLOSE
                }
                "solve" => {
                    wider::solve(&c);
                    CLOSE
                }
                "gating" => {
                    wider::gating(&c);
                    CLOSE
                }
                "lists" => {
                    wider::lists(&c);
                    CLOSE
                }
                other => panic!("no call for {other}"),
            };
            ok!("aclrtSynchronizeDevice");
            c.check(close);
            done.insert(name.clone());
        }
    }
    assert_eq!(done.len(), cases().len());
    println!("{} cases of PyTorch's record agree", done.len());
}
