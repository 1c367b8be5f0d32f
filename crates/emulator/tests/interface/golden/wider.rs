//! Calls of what other clients use: packed sequences, movement, convolutions, lists.

use crate::library::{BOOL, I32, floats, ints, list, scalar, tensor};
use crate::record::Case;
use crate::run;

pub fn packed_attention(c: &Case) {
    let scale = c.attribute("scale").as_f64().unwrap();
    let (n, far, empty) = (0usize, i64::from(i32::MAX), tensor(0, &[0], None, 0, 0));
    let (q, k, v) = (c.t("query"), c.t("key"), c.t("value"));
    let (queries, keys) = (ints(&[3, 7]), ints(&[5, 9]));
    let (max, sum, out) = (c.o("softmaxMax"), c.o("softmaxSum"), c.o("attentionOut"));
    let layout = c"TND".as_ptr();
    run!(
        "FlashAttentionVarLenScore",
        q,
        k,
        v,
        n,
        n,
        n,
        n,
        n,
        queries,
        keys,
        scale,
        1.0f64,
        far,
        far,
        4i64,
        layout,
        0i64,
        0i64,
        max,
        sum,
        empty,
        out
    );
    let (dq, dk, dv) = (c.o("dq"), c.o("dk"), c.o("dv"));
    let (max, sum, out) = (c.t("softmaxMax"), c.t("softmaxSum"), c.t("attentionOut"));
    run!(
        "FlashAttentionUnpaddingScoreGrad",
        q,
        k,
        v,
        c.t("dy"),
        n,
        n,
        n,
        n,
        max,
        sum,
        n,
        out,
        n,
        queries,
        keys,
        scale,
        1.0f64,
        far,
        far,
        4i64,
        layout,
        0i64,
        0i64,
        dq,
        dk,
        dv,
        n
    );
}

pub fn movement(c: &Case) {
    let (x, y) = (c.t("self"), c.t("other"));
    run!("Cat", list(&[x, y]), 1i64, c.o("cat"));
    run!("Stack", list(&[x, y]), 1i64, c.o("stack"));
    run!("Slice", x, 1i64, 1i64, 4i64, 2i64, c.o("slice"));
    run!("SliceV2", x, ints(&[1]), ints(&[4]), ints(&[-1]), ints(&[2]), c.o("slice"));
    run!("Repeat", x, ints(&[2, 1, 3]), c.o("repeat"));
    run!("RepeatInterleaveIntWithDim", x, 2i64, 1i64, 8i64, c.o("each"));
    run!("ConstantPadNd", x, ints(&[1, 2, 0, 1]), scalar(9.0), c.o("pad"));
    run!("Roll", x, ints(&[1, -1]), ints(&[0, 1]), c.o("roll"));
    run!("Flip", x, ints(&[1]), c.o("flip"));
    run!("Tril", x, -1i64, c.o("tril"));
    run!("Triu", x, 1i64, c.o("triu"));
    run!("LtTensor", x, y, c.o("less"));
    run!("GtTensor", y, x, c.o("less"));
    run!("EqTensor", x, x, c.o("equal"));
    run!("SWhere", c.t("mask"), x, y, c.o("where"));
    run!("GtScalar", x, scalar(0.0), c.o("mask"));
    run!("Cast", c.t("mask"), BOOL, c.o("mask"));
    run!("Clamp", x, scalar(-0.5), scalar(0.7), c.o("clamp"));
    run!("Arange", scalar(1.0), scalar(4.0), scalar(0.5), c.o("range"));
    let (on, off) = (floats(&[1], &[1.0]).0, floats(&[1], &[0.0]).0);
    run!("OneHot", c.t("classes"), 4i32, on, off, -1i64, c.o("hot"));
    run!("Maximum", x, y, c.o("maximum"));
    run!("Addcmul", x, x, y, scalar(0.5), c.o("addcmul"));
    run!("Lerps", x, y, scalar(0.25), c.o("lerp"));
}

pub fn convolution(name: &str, c: &Case) {
    let none = 0usize;
    match name {
        "conv2d" => {
            let (stride, one) = (ints(&[2, 1]), ints(&[1, 1]));
            let (x, weight, bias, out) = (c.t("x"), c.t("weight"), c.t("bias"), c.o("out"));
            run!("Convolution", x, weight, bias, stride, one, one, 0u8, ints(&[0, 0]), 2i64, out, 0i8);
        }
        "conv_transpose1d" => {
            let (stride, zero, one) = (ints(&[2]), ints(&[0]), ints(&[1]));
            let (x, weight, out) = (c.t("x"), c.t("weight"), c.o("out"));
            run!("Convolution", x, weight, none, stride, zero, one, 1u8, zero, 1i64, out, 0i8);
        }
        _ => {
            let x = c.t("x");
            let (two, one) = (ints(&[2, 2]), ints(&[1, 1]));
            run!("AvgPool2d", x, ints(&[3, 3]), two, one, 0u8, 1u8, 0i64, 0i8, c.o("average"));
            run!("MaxPool", x, two, two, 0i64, ints(&[0, 0]), one, 0i64, c.o("maximum"));
            run!("Im2col", x, ints(&[2, 3]), one, one, two, c.o("columns"));
            run!("UpsampleNearest2d", x, ints(&[9, 12]), c.o("up"));
            run!("ReflectionPad1d", x, ints(&[2, 1]), c.o("reflect"));
        }
    }
}

pub fn solve(c: &Case) {
    let (a, b) = (c.t("A"), c.t("self"));
    run!("TriangularSolve", b, a, 1u8, 0u8, 0u8, c.o("out"), c.o("A"));
}

pub fn gating(c: &Case) {
    let (y, index) = (c.o("y"), c.o_as("index", Some(I32)));
    run!(
        "MoeGatingTopK",
        c.t("x"),
        c.t("bias"),
        4i64,
        2i64,
        4i64,
        1i64,
        0i64,
        1i64,
        0u8,
        2.5f64,
        1e-20f64,
        y,
        index,
        0usize
    );
}

pub fn lists(c: &Case) {
    let (x, y, z) = (list(&[c.t("x")]), list(&[c.t("y")]), list(&[c.t("z")]));
    let half = c.t("half");
    run!("ForeachMulScalar", x, half, list(&[c.o("scaled")]));
    run!("ForeachMulScalarV2", x, scalar(0.5), list(&[c.o("scaled")]));
    run!("ForeachAddList", x, y, half, list(&[c.o("added")]));
    run!("ForeachAddcdivScalar", x, y, z, half, list(&[c.o("addcdiv")]));
    run!("ForeachAddcmulScalar", x, y, z, half, list(&[c.o("addcmul")]));
    run!("ForeachNorm", x, scalar(2.0), list(&[c.o("norm")]));
    run!("ForeachCopy", x, list(&[c.o("x")]));
    let (found, address) = floats(&[1], &[0.0]);
    let (inverse, _) = floats(&[1], &[0.5]);
    run!("ForeachNonFiniteCheckAndUnscale", list(&[c.in_place("x", "scaled")]), found, inverse);
    assert_eq!(crate::library::read(address, 1), [0.0]);
    let (bad, _) = floats(&[2], &[f32::INFINITY, 1.0]);
    run!("ForeachNonFiniteCheckAndUnscale", list(&[bad]), found, inverse);
    assert_eq!(crate::library::read(address, 1), [1.0]);
}
