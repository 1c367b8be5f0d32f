//! The defects, by name: what each does and in which operators it can show.

use std::fmt::Write;

use crate::code;
use crate::defect::rule::KEYS;

/// Wrong numbers of one kind.
pub struct Defect {
    pub name: &'static str,
    /// Operators that have it; empty: all.
    pub operators: &'static [&'static str],
    pub explanation: &'static str,
}

const PRODUCTS: &[&str] = &[
    "Matmul",
    "Mm",
    "BatchMatMul",
    "Addmm",
    "InplaceAddmm",
    "Baddbmm",
    "Mv",
    "GroupedMatmul",
    "GroupedMatmulV2",
    "GroupedMatmulV3",
    "GroupedMatmulV4",
    "GroupedMatmulV5",
    "GroupedMatmulAdd",
];
const GROUPED: &[&str] = &[
    "GroupedMatmul",
    "GroupedMatmulV2",
    "GroupedMatmulV3",
    "GroupedMatmulV4",
    "GroupedMatmulV5",
    "GroupedMatmulAdd",
];
const ATTENTION: &[&str] = &[
    "FlashAttentionScore",
    "FlashAttentionScoreV2",
    "FlashAttentionVarLenScore",
    "FlashAttentionScoreGrad",
    "FlashAttentionScoreGradV2",
    "FlashAttentionUnpaddingScoreGrad",
    "FusedInferAttentionScoreV2",
];
const ATTENTION_GRADIENT: &[&str] =
    &["FlashAttentionScoreGrad", "FlashAttentionScoreGradV2", "FlashAttentionUnpaddingScoreGrad"];
const SOFTMAX: &[&str] = &["Softmax", "LogSoftmax"];
const ROPE: &[&str] = &[
    "RotaryPositionEmbedding",
    "RotaryPositionEmbeddingV2",
    "RotaryPositionEmbeddingGrad",
    "ApplyRotaryPosEmb",
    "ApplyRotaryPosEmbV2",
];
const GATHERS: &[&str] = &["Gather", "GatherV2", "IndexSelect", "Embedding", "Index"];
const SUMS: &[&str] = &["ReduceSum", "Mean", "MeanV2"];
const SCATTERS: &[&str] =
    &["ScatterAdd", "IndexAdd", "EmbeddingDenseBackward", "IndexPutImpl", "Scatter", "InplaceScatter"];
const ADAMW: &[&str] = &["ApplyAdamW", "ApplyAdamWV2"];
const NORMS: &[&str] = &["RmsNorm", "AddRmsNorm"];

macro_rules! defects {
    ($($name:literal $operators:expr, $explanation:literal;)*) => {
        /// All defects of arithmetic.
        pub const ARITHMETIC: &[Defect] =
            &[$(Defect { name: $name, operators: $operators, explanation: $explanation }),*];
    };
}

defects! {
    "matmul.fp16_accumulate" PRODUCTS, "partial sums of 16 products are added up in fp16";
    "matmul.bf16_accumulate" PRODUCTS, "partial sums of 16 products are added up in bf16";
    "matmul.hf32" PRODUCTS, "operands lose 12 bits of their mantissa (HF32) where f32 was asked for";
    "matmul.tail_k" PRODUCTS, "the last tile of the inner dimension is dropped where 16 does not divide it";
    "matmul.tail_n" PRODUCTS, "the last tile of columns is zero where 16 does not divide them";
    "matmul.transposed" PRODUCTS, "a transposed right operand that is square is read as if it were not transposed";
    "experts.capacity" GROUPED, "rows of an expert beyond one and a half times the mean load give zeros";
    "attention.causal_corner" ATTENTION, "the causal mask hides the diagonal too";
    "attention.tail_keys" ATTENTION, "the last tile of keys is not seen where 16 does not divide them";
    "attention.gradient_scale" ATTENTION_GRADIENT, "the gradients of queries and keys lack the scale";
    "softmax.no_maximum" SOFTMAX, "the row's maximum is not subtracted, in fp16: large rows overflow";
    "softmax.tail" SOFTMAX, "the last tile of a row is left out of the sum where 16 does not divide it";
    "rope.layout" ROPE, "pairs are taken in the other layout (halves for interleaved and back)";
    "rope.sign" ROPE, "the rotation goes the other way round";
    "gather.off_by_one" GATHERS, "the last index of a call reads the row before its own";
    "topk.ties" &["Topk"], "equal values come in the order of the highest index";
    "sort.unstable" &["Sort", "Argsort"], "equal values come in reverse order though a stable sort was asked for";
    "scatter.lost_update" SCATTERS, "of several rows with one index only the last is added";
    "reduce.order" SUMS, "sums are taken in another order in every call";
    "reduce.fp16_accumulate" SUMS, "sums are kept in fp16";
    "accumulate.twice" &["InplaceAdd"], "the second operand is added twice (a weight gradient counted double)";
    "norm.no_epsilon" NORMS, "epsilon is left out";
    "norm.gradient_mean" &["RmsNormGrad"], "the gradient lacks the term of the mean";
    "swiglu.halves" &["SwiGlu", "SwiGluGrad"], "gate and value are taken from the wrong halves";
    "adamw.epsilon" ADAMW, "epsilon is added under the square root";
    "adamw.bias_correction" ADAMW, "bias corrections are those of the step before";
    "adamw.decay" ADAMW, "weight decay is added to the gradient (Adam with L2) instead of decoupled";
    "cast.truncate" &["Cast", "InplaceCopy"], "numbers are cut off instead of rounded";
    "exp.low_precision" &["Exp", "InplaceExp", "Sigmoid", "Silu", "SwiGlu", "Softmax"], "exponentials have 10 bits";
    "div.reciprocal" &["Div", "Divs", "InplaceDiv", "InplaceDivs"], "a quotient is a product with an 11-bit reciprocal";
    "any.saturate" &[], "infinities become the largest number, NaN becomes 0";
    "any.flush_denormals" &[], "denormal numbers are read and written as 0";
    "any.stale_tile" &[], "16 elements of each result stay what they were before";
    "any.race" &[], "once in a thousand calls (or as `rate` says) 16 elements stay what they were before";
    "any.bit_flip" &[], "one bit of one element of each result is flipped";
    "any.slow" &[], "the operator takes `factor` times as long (4 where it says nothing)";
}

/// All names.
pub fn names() -> Vec<String> {
    let arithmetic = ARITHMETIC.iter().map(|defect| defect.name.to_string());
    let runtime = code::RUNTIME.iter().map(|code| format!("runtime.{}", code.name.to_lowercase()));
    arithmetic.chain(["runtime.hang".into(), "runtime.device_lost".into()]).chain(runtime).collect()
}

/// What `list` prints.
pub fn list() -> String {
    let mut text = String::from(
        "Defects of cann-emulator: CANN_EMULATOR_DEFECTS=\"NAME@KEY=VALUE,...; ...\" or a file\n\n",
    );
    let mut line = |name: &str, what: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<36} {what}");
    };
    for defect in ARITHMETIC {
        line(defect.name, defect.explanation);
        if !defect.operators.is_empty() {
            line("", &format!("in {}", defect.operators.join(", ")));
        }
    }
    line("runtime.hang", "the operator, or the runtime function that op names, does not end");
    line("runtime.device_lost", "507010, and the device does not come back, not after a forced reset either");
    for code in code::RUNTIME {
        line(&format!("runtime.{}", code.name.to_lowercase()), &format!("{}: {}", code.number, code.text));
    }
    for (key, what) in KEYS {
        line(&format!("  @{key}="), what);
    }
    text
}
