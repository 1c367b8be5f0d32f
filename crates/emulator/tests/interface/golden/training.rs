//! Calls of products, attention, losses, experts and optimizers.

use crate::library::{BOOL, I32, list, scalar};
use crate::record::Case;
use crate::run;

pub fn rope(c: &Case) {
    let mode = c.attribute("mode").as_i64().unwrap();
    run!("RotaryPositionEmbedding", c.t("x"), c.t("cos"), c.t("sin"), mode, c.o("out"));
    let (dx, dcos, dsin) = (c.o("dx"), c.o("dcos"), c.o("dsin"));
    run!("RotaryPositionEmbeddingGrad", c.t("dy"), c.t("cos"), c.t("sin"), c.t("x"), mode, dx, dcos, dsin);
}

pub fn attention(c: &Case) {
    let (mode, scale) = (c.attribute("mode").as_i64().unwrap(), c.attribute("scale").as_f64().unwrap());
    // Modes 2 and 3 take the compressed mask of 2048 by 2048, whose content they imply.
    let compressed = || {
        let address = crate::library::allocate(2048 * 2048);
        crate::library::tensor(BOOL, &[2048, 2048], None, 0, address)
    };
    let mask = match mode {
        2 | 3 => compressed(),
        _ if c.attribute("masked") == true => c.t("attenMask"),
        _ => 0,
    };
    let (q, k, v) = (c.t("query"), c.t("key"), c.t("value"));
    let (far, none) = (i64::from(i32::MAX), 0usize);
    let layout = c"BSND".as_ptr();
    let empty = crate::library::tensor(0, &[0], None, 0, 0);
    let (max, sum, out) = (c.o("softmaxMax"), c.o("softmaxSum"), c.o("attentionOut"));
    run!(
        "FlashAttentionScore",
        q,
        k,
        v,
        none,
        none,
        none,
        mask,
        none,
        scale,
        1.0f64,
        far,
        far,
        4i64,
        layout,
        0i64,
        mode,
        max,
        sum,
        empty,
        out
    );
    let (dq, dk, dv) = (c.o("dq"), c.o("dk"), c.o("dv"));
    let (max, sum, out) = (c.t("softmaxMax"), c.t("softmaxSum"), c.t("attentionOut"));
    run!(
        "FlashAttentionScoreGradV2",
        q,
        k,
        v,
        c.t("dy"),
        none,
        none,
        none,
        mask,
        max,
        sum,
        none,
        out,
        none,
        none,
        none,
        scale,
        1.0f64,
        far,
        far,
        4i64,
        layout,
        0i64,
        mode,
        1i64,
        dq,
        dk,
        dv,
        none
    );
}

pub fn product(name: &str, c: &Case) {
    match name {
        "bmm" => {
            run!("BatchMatMul", c.t("self"), c.t("mat2"), c.o("out"), 0i8);
            run!("Matmul", c.t("self"), c.t("mat2"), c.o("out"), 0i8);
        }
        "matmul.broadcast" => run!("Matmul", c.t("self"), c.t("mat2"), c.o("out"), 0i8),
        "addmm" => {
            let (beta, alpha) = (scalar(0.5), scalar(2.0));
            run!("Addmm", c.t("self"), c.t("mat1"), c.t("mat2"), beta, alpha, c.o("out"), 0i8);
            run!("InplaceAddmm", c.in_place("self", "out"), c.t("mat1"), c.t("mat2"), beta, alpha, 0i8);
        }
        other => panic!("no call for {other}"),
    }
}

pub fn grouped(c: &Case) {
    let n = 0usize;
    let (x, w, y) = (list(&[c.t("x")]), list(&[c.t("weight")]), list(&[c.o("y")]));
    let groups = c.t("groupList");
    run!("GroupedMatmulV3", x, w, n, n, n, n, n, groups, 3i64, 0i64, y);
    let (counts, y) = (c.t("counts"), list(&[c.o("y")]));
    run!("GroupedMatmulV5", x, w, n, n, n, n, n, n, counts, n, n, n, 3i64, 0i64, 1i64, 0i64, n, y, n, n);
    // The gradient of x: the matrices transposed, as windows.
    let transposed = c.swapped("weight");
    let (dy, dx) = (list(&[c.t("dy")]), list(&[c.o("dx")]));
    let groups = c.t("groupList");
    run!(
        "GroupedMatmulV4",
        dy,
        list(&[transposed]),
        n,
        n,
        n,
        n,
        n,
        n,
        groups,
        n,
        n,
        n,
        3i64,
        0i64,
        0i64,
        0i64,
        dx,
        n,
        n
    );
    // The gradient of the matrices: the inner dimension is grouped, x a transposed window.
    let (x, dw) = (list(&[c.swapped("x")]), list(&[c.o("dw")]));
    let dy = list(&[c.t("dy")]);
    run!("GroupedMatmulV5", x, dy, n, n, n, n, n, n, groups, n, n, n, 3i64, 2i64, 0i64, 0i64, n, dw, n, n);
}

pub fn loss(name: &str, c: &Case) {
    match name {
        "nll" => {
            let ones = crate::library::floats(&[9], &[1.0; 9]).0;
            run!("NLLLoss", c.t("log"), c.t("target"), ones, 1i64, -100i64, c.o("loss"), c.o("total"));
            let total = c.t("total");
            run!(
                "NLLLossBackward",
                c.t("dy"),
                c.t("log"),
                c.t("target"),
                ones,
                1i64,
                -100i64,
                total,
                c.o("dx")
            );
        }
        "cross_entropy" => {
            let (none, mean, empty) = (0usize, c"mean".as_ptr(), crate::library::tensor(0, &[0], None, 0, 0));
            let (loss, log) = (c.o("loss"), c.o("log"));
            run!(
                "CrossEntropyLoss",
                c.t("x"),
                c.t("target"),
                none,
                mean,
                -100i64,
                0.0f64,
                0.0f64,
                0u8,
                loss,
                log,
                empty,
                empty
            );
            run!(
                "CrossEntropyLossGrad",
                c.t("dy"),
                c.t("log"),
                c.t("target"),
                none,
                none,
                none,
                mean,
                -100i64,
                0.0f64,
                0.0f64,
                c.o("dx")
            );
        }
        _ => run!("SoftmaxCrossEntropyWithLogits", c.t("x"), c.t("labels"), c.o("loss"), c.o("dx")),
    }
}

pub fn experts(name: &str, c: &Case) {
    if name == "permute" {
        let places = c.o_as("places", Some(I32));
        run!("MoeTokenPermute", c.t("tokens"), c.t("indices"), 15i64, 0u8, c.o("permuted"), places);
        run!("MoeTokenPermuteGrad", c.t("dpermuted"), c.t("places"), 3i64, 0u8, c.o("dtokens"));
        return;
    }
    let none = 0usize;
    run!("MoeTokenUnpermute", c.t("permuted"), c.t("places"), c.t("probs"), 0u8, none, c.o("out"));
    let (drows, dprobs) = (c.o("drows"), c.o("dprobs"));
    run!(
        "MoeTokenUnpermuteGrad",
        c.t("permuted"),
        c.t("dout"),
        c.t("places"),
        c.t("probs"),
        0u8,
        none,
        drows,
        dprobs
    );
}

pub fn adamw(c: &Case) {
    let flag = |name| u8::from(c.attribute(name) == true);
    let (amsgrad, maximize) = (flag("amsgrad"), flag("maximize"));
    for old in [false, true] {
        let weight = c.in_place_from_part("initial", "parameters", 2);
        let (m, v) = (c.zeros("m"), c.zeros("v"));
        let largest = if amsgrad == 1 { c.zeros("largest") } else { 0 };
        for step in 0..3usize {
            let gradient = c.part("gradients", step);
            if old {
                let one = |x: f32| crate::library::floats(&[1], &[x]).0;
                let power = |beta: f32| one(beta.powi(step as i32 + 1));
                run!(
                    "ApplyAdamW",
                    weight,
                    m,
                    v,
                    power(0.9),
                    power(0.95),
                    one(0.02),
                    one(0.1),
                    one(0.9),
                    one(0.95),
                    one(1e-6),
                    gradient,
                    largest,
                    amsgrad,
                    maximize
                );
            } else {
                let before = crate::library::floats(&[1], &[step as f32]).0;
                run!(
                    "ApplyAdamWV2",
                    weight,
                    m,
                    v,
                    largest,
                    gradient,
                    before,
                    0.02f32,
                    0.9f32,
                    0.95f32,
                    0.1f32,
                    1e-6f32,
                    amsgrad,
                    maximize
                );
            }
        }
    }
}
