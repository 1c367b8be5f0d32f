//! Calls of operators on elements, rows and indices.

use crate::library::{bools, ints, list, scalar};
use crate::record::Case;
use crate::run;

pub fn unary(name: &str, c: &Case) {
    let (x, out) = (c.t("x"), c.o("out"));
    match name.trim_start_matches("unary.") {
        "silu" => {
            run!("Silu", x, out);
            run!("SiluBackward", c.t("dy"), x, c.o("dx"));
        }
        "sigmoid" => {
            run!("Sigmoid", x, out);
            run!("SigmoidBackward", c.t("dy"), c.t("out"), c.o("dx"));
        }
        "tanh" => {
            run!("Tanh", x, out);
            run!("TanhBackward", c.t("dy"), c.t("out"), c.o("dx"));
        }
        "gelu" => {
            run!("Gelu", x, out);
            run!("GeluV2", x, 0i64, c.o("out"));
            run!("GeluBackward", c.t("dy"), x, c.o("dx"));
        }
        "gelu_tanh" => run!("GeluV2", x, 1i64, out),
        "relu" => {
            run!("Relu", x, out);
            run!("ThresholdBackward", c.t("dy"), x, scalar(0.0), c.o("dx"));
        }
        "softplus" => run!("Softplus", x, scalar(1.0), scalar(20.0), out),
        "leaky_relu" => run!("LeakyRelu", x, scalar(0.1), out),
        "elu" => run!("Elu", x, scalar(1.0), scalar(1.0), scalar(1.0), out),
        "hardswish" => run!("Hardswish", x, out),
        "hardsigmoid" => run!("Hardsigmoid", x, out),
        "exp" => {
            run!("Exp", x, out);
            run!("InplaceExp", c.in_place("x", "out"));
        }
        "sin" => run!("Sin", x, out),
        "cos" => run!("Cos", x, out),
        "abs" => run!("Abs", x, out),
        "sign" => run!("Sign", x, out),
        "neg" => run!("Neg", x, out),
        "floor" => run!("Floor", x, out),
        "round" => run!("Round", x, out),
        "log" => run!("Log", x, out),
        "sqrt" => run!("Sqrt", x, out),
        "rsqrt" => run!("Rsqrt", x, out),
        "reciprocal" => run!("Reciprocal", x, out),
        other => panic!("no call for {other}"),
    }
}

pub fn softmax(name: &str, c: &Case) {
    let dim = c.attribute("dim").as_i64().unwrap();
    if name.starts_with("log") {
        run!("LogSoftmax", c.t("x"), dim, c.o("out"));
        run!("LogSoftmaxBackward", c.t("dy"), c.t("out"), dim, c.o("dx"));
    } else {
        run!("Softmax", c.t("x"), dim, c.o("out"));
        run!("SoftmaxBackward", c.t("dy"), c.t("out"), dim, c.o("dx"));
    }
}

pub fn norm(name: &str, c: &Case) {
    let epsilon = c.attribute("epsilon").as_f64().unwrap();
    if name == "rms_norm" {
        run!("RmsNorm", c.t("x"), c.t("gamma"), epsilon, c.o("y"), c.o("rstd"));
        run!("RmsNormGrad", c.t("dy"), c.t("x"), c.t("rstd"), c.t("gamma"), c.o("dx"), c.o("dgamma"));
        return;
    }
    let shape = ints(&[12]);
    run!(
        "LayerNorm",
        c.t("x"),
        shape,
        c.t("gamma"),
        c.t("beta"),
        epsilon,
        c.o("y"),
        c.o("mean"),
        c.o("rstd")
    );
    let (mean, rstd, mask) = (c.t("mean"), c.t("rstd"), bools(&[true; 3]));
    let (dx, dgamma, dbeta) = (c.o("dx"), c.o("dgamma"), c.o("dbeta"));
    run!(
        "LayerNormBackward",
        c.t("dy"),
        c.t("x"),
        shape,
        mean,
        rstd,
        c.t("gamma"),
        c.t("beta"),
        mask,
        dx,
        dgamma,
        dbeta
    );
}

pub fn indexing(name: &str, c: &Case) {
    match name {
        "take" => {
            run!("IndexSelect", c.t("self"), 0i64, c.t("index"), c.o("out"));
            run!("GatherV2", c.t("self"), 0i64, c.t("index32"), c.o("out"));
            run!("Embedding", c.t("self"), c.t("index"), c.o("out"));
            run!("Index", c.t("self"), list(&[c.t("index")]), c.o("out"));
        }
        "index_add" => {
            run!("IndexAdd", c.t("self"), 0i64, c.t("index"), c.t("source"), scalar(2.0), c.o("out"));
        }
        "embedding_gradient" => {
            run!("EmbeddingDenseBackward", c.t("grad"), c.t("indices"), 8u64, u64::MAX, 0u8, c.o("out"));
        }
        "gather" => run!("Gather", c.t("self"), 1i64, c.t("index"), c.o("out")),
        "scatter_add" => {
            run!("ScatterAdd", c.t("self"), 1i64, c.t("index"), c.t("src"), c.o("out"));
            run!("Scatter", c.t("self"), 1i64, c.t("index"), c.t("src"), 1i64, c.o("out"));
        }
        "index_put" => {
            let index = list(&[c.t("index")]);
            run!("IndexPutImpl", c.in_place("self", "out"), index, c.t("values"), 1u8, 0u8);
        }
        "masked_fill" => {
            run!("InplaceMaskedFillScalar", c.in_place("self", "out"), c.t("mask"), scalar(2.5));
        }
        other => panic!("no call for {other}"),
    }
}

pub fn ordering(name: &str, c: &Case) {
    match name {
        "topk" => run!("Topk", c.t("self"), 4i64, -1i64, 1u8, 1u8, c.o("values"), c.o("indices")),
        "argmax" => run!("ArgMax", c.t("self"), 1i64, 0u8, c.o("out")),
        "cumsum" => run!("Cumsum", c.t("self"), 1i64, 0i32, c.o("out")),
        _ => {
            let descending = u8::from(c.attribute("descending") == true);
            run!("Sort", c.t("self"), 1u8, -1i64, descending, c.o("values"), c.o("indices"));
            run!("Argsort", c.t("self"), -1i64, descending, c.o("indices"));
        }
    }
}

pub fn reductions(c: &Case) {
    let x = c.t("self");
    run!("ReduceSum", x, ints(&[0, 2]), 0u8, 0i32, c.o("out"));
    run!("ReduceSum", x, ints(&[]), 0u8, 0i32, c.o("all"));
    run!("Mean", x, ints(&[1]), 0u8, 0i32, c.o("mean"));
    run!("Amax", x, ints(&[2]), 0u8, c.o("most"));
    run!("Amin", x, ints(&[0, 1]), 0u8, c.o("least"));
    run!("Var", x, ints(&[1]), 1u8, 0u8, c.o("variance"));
    run!("Norm", x, scalar(2.0), ints(&[1, 2]), 0u8, c.o("norm"));
}
