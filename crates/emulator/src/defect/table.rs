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
const DENSE_PRODUCTS: &[&str] = &["Matmul", "Mm", "BatchMatMul", "Addmm", "InplaceAddmm", "Baddbmm", "Mv"];
/// Products whose right operand is a matrix.
const MATRIX_PRODUCTS: &[&str] = &["Matmul", "Mm", "BatchMatMul", "Addmm", "InplaceAddmm", "Baddbmm"];
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
const ATTENTION_FORWARD: &[&str] = &[
    "FlashAttentionScore",
    "FlashAttentionScoreV2",
    "FlashAttentionVarLenScore",
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
const TAKES: &[&str] = &["GatherV2", "IndexSelect", "Embedding"];
const SUMS: &[&str] = &["ReduceSum", "Mean", "MeanV2"];
const SCATTERS: &[&str] =
    &["ScatterAdd", "IndexAdd", "EmbeddingDenseBackward", "IndexPutImpl", "Scatter", "InplaceScatter"];
const ADAMW: &[&str] = &["ApplyAdamW", "ApplyAdamWV2"];
const NORMS: &[&str] = &["RmsNorm", "AddRmsNorm"];
const SORTS: &[&str] = &["Sort", "Argsort"];

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
    "matmul.split_k" DENSE_PRODUCTS, "an inner dimension of 64 or more is split between two cores, and the second's partial sum is lost";
    "matmul.overhang" DENSE_PRODUCTS, "beyond 16 columns, where 16 does not divide them, the last tile's padding is stored over the next row";
    "matmul.fp16_out" DENSE_PRODUCTS, "a result in f32 passes through fp16 on its way out";
    "matmul.late_tile" DENSE_PRODUCTS, "once in fifty calls (or as `rate` says) the result is stored before the last tile of the inner dimension is added";
    "matmul.fractal" MATRIX_PRODUCTS, "a right operand whose sizes 16 divides is read as if it lay in FRACTAL_NZ, in columns of 16";
    "matmul.row_tail" DENSE_PRODUCTS, "beyond 16 rows, those behind the last whole tile of 16 are not stored";
    "matmul.truncate" DENSE_PRODUCTS, "a result in bf16 or fp16 is cut off instead of rounded";
    "matmul.order" DENSE_PRODUCTS, "tiles of the inner dimension are added in another order in every call";
    "experts.capacity" GROUPED, "rows of an expert beyond one and a half times the mean load give zeros";
    "experts.buffer" GROUPED, "an expert's buffer holds 32 rows: those beyond stay what they were before";
    "experts.offset" GROUPED, "each group ends one row late: the next one's first row gets the matrix of the group before";
    "experts.half_columns" GROUPED, "the second half of the columns is not stored (a grid of half as many tiles)";
    "experts.stale_weight" GROUPED, "a matrix is packed when it is first seen at its address, and never again";
    "experts.tail_rows" GROUPED, "in a group of more than 16 rows, those behind its last whole tile of 16 give zeros";
    "experts.gradient_rows" GROUPED, "where rows are summed over, the first 32 of a group count alone";
    "attention.causal_corner" ATTENTION, "the causal mask hides the diagonal too";
    "attention.tail_keys" ATTENTION, "the last tile of keys is not seen where 16 does not divide them";
    "attention.gradient_scale" ATTENTION_GRADIENT, "the gradients of queries and keys lack the scale";
    "attention.gradient_mask" ATTENTION_GRADIENT, "the gradient's mask shows each query the next key too";
    "attention.no_delta" ATTENTION_GRADIENT, "the gradient of the scores lacks the sum of the output times its gradient";
    "attention.no_value_gradient" ATTENTION_GRADIENT, "the gradient of the values is zero";
    "attention.head" ATTENTION_FORWARD, "the last head reads the keys of the first";
    "attention.window" ATTENTION_FORWARD, "a query sees the last 16 keys alone, whatever preTokens says";
    "attention.bf16_sum" ATTENTION_FORWARD, "the sum of a row's exponentials is kept in bf16";
    "attention.padded_scale" ATTENTION, "the scale is 1/√(columns of the tensors), whatever is asked for";
    "attention.late_mask" ATTENTION, "each tile of 16 queries is masked as the tile before it";
    "attention.tile_sum" ATTENTION_FORWARD, "the stored sum of a row's exponentials is that of its last tile of 16 keys alone";
    "attention.exp2" ATTENTION, "exponentials are powers of 2, and the scale is one for powers of e";
    "attention.late_keys" ATTENTION_FORWARD, "once in ten calls (or as `rate` says) the last tile of 16 keys is not there yet";
    "softmax.no_maximum" SOFTMAX, "the row's maximum is not subtracted, in fp16: large rows overflow";
    "softmax.tail" SOFTMAX, "the last tile of a row is left out of the sum where 16 does not divide it";
    "rope.layout" ROPE, "pairs are taken in the other layout (halves for interleaved and back)";
    "rope.sign" ROPE, "the rotation goes the other way round";
    "rope.next_position" ROPE, "each token is turned by the angles of the next";
    "rope.bf16_angles" ROPE, "cosines and sines are rounded to bf16";
    "rope.head_angles" ROPE, "each head is turned by the angles of the token of its number";
    "gather.off_by_one" GATHERS, "the last index of a call reads the row before its own";
    "gather.tail" TAKES, "beyond 16 indices, those behind the last whole tile of 16 give zeros";
    "gather.row_above" &["Gather"], "each row is read at the index of the row above it";
    "topk.ties" &["Topk"], "equal values come in the order of the highest index";
    "sort.unstable" SORTS, "equal values come in reverse order though a stable sort was asked for";
    "sort.merge" SORTS, "sorted tiles of 16 are merged so that of equal values the later tile's comes first";
    "sort.tail" SORTS, "the last tile of a row stays behind, unsorted, where 16 does not divide it";
    "sort.coarse" SORTS, "numbers of f32 are compared by their upper 16 bits";
    "scatter.lost_update" SCATTERS, "of several rows with one index only the last is added";
    "scatter.bf16_accumulate" SCATTERS, "rows are added up in bf16";
    "scatter.conflict" &["IndexAdd"], "of neighbouring rows with one index only the first is added";
    "scatter.order" SCATTERS, "rows are added in f32 in another order in every call";
    "scatter.first_row" &["IndexAdd"], "the first row of a call is not added";
    "scatter.no_self" &["ScatterAdd", "IndexAdd"], "rows are added to zeros, not to the first operand";
    "index_copy.swap" &["InplaceIndexCopy"], "the last two rows of a call land in each other's place";
    "index_copy.last" &["InplaceIndexCopy"], "the last row of a call is not copied";
    "reduce.order" SUMS, "sums are taken in another order in every call";
    "reduce.fp16_accumulate" SUMS, "sums are kept in fp16";
    "reduce.tail" SUMS, "the last tile of a sum of more than 16 is left out where 16 does not divide it";
    "reduce.strided" &["ReduceSum"], "of an axis that is not the last one the last element is left out";
    "accumulate.twice" &["InplaceAdd"], "the second operand is added twice (a weight gradient counted double)";
    "accumulate.overwrites" &["InplaceAdd"], "the second operand takes the first one's place instead of being added";
    "add.stuck_lane" &["Add"], "of each 64 elements the sixth is 0";
    "add.bf16_out" &["Add", "InplaceAdd"], "a sum in f32 passes through bf16 on its way out";
    "adds.fp16_scalar" &["Adds", "InplaceAdds"], "the scalar passes through fp16: 1e-8 becomes 0";
    "muls.bf16_scalar" &["Muls", "InplaceMuls"], "the scalar is rounded to bf16";
    "mul.broadcast" &["Mul", "InplaceMul"], "an operand of one column is dealt out along the rows: element i gets number i modulo their count";
    "norm.no_epsilon" NORMS, "epsilon is left out";
    "norm.gradient_mean" &["RmsNormGrad"], "the gradient lacks the term of the mean";
    "norm.padded_mean" NORMS, "the mean of squares is taken over the width rounded up to 64";
    "norm.epsilon_outside" NORMS, "epsilon is added to the root instead of under it";
    "norm.gamma_plus_one" NORMS, "gamma is taken as its distance from one";
    "norm.gradient_block" &["RmsNormGrad"], "the gradient of gamma is that of the last 16 rows alone";
    "norm.bf16_root" NORMS, "rows are multiplied by an inverse root rounded to bf16";
    "norm.fp16_squares" NORMS, "squares are summed in fp16";
    "norm.epsilon_in_sum" NORMS, "epsilon is added to the sum of squares before that is divided by the width";
    "norm.gamma_twice" &["RmsNormGrad"], "the gradient of gamma is added up twice";
    "swiglu.interleaved" &["SwiGlu", "SwiGluGrad"], "gate and value are taken from even and odd columns";
    "silu.half_derivative" &["SwiGluGrad", "SiluBackward"], "the derivative of x·sigmoid(x) lacks x·sigmoid'(x)";
    "sigmoid.table" &["Sigmoid"], "sigmoids are looked up for multiples of 1/16";
    "swiglu.halves" &["SwiGlu", "SwiGluGrad"], "gate and value are taken from the wrong halves";
    "swiglu.bf16_gate" &["SwiGlu"], "the activated gate is rounded to bf16 before it is multiplied";
    "adamw.epsilon" ADAMW, "epsilon is added under the square root";
    "adamw.bias_correction" ADAMW, "bias corrections are those of the step before";
    "adamw.decay" ADAMW, "weight decay is added to the gradient (Adam with L2) instead of decoupled";
    "cast.truncate" &["Cast", "InplaceCopy"], "numbers are cut off instead of rounded";
    "cast.floor" &["Cast", "InplaceCopy"], "numbers are rounded down, towards minus infinity";
    "copy.dense_target" &["InplaceCopy"], "a target whose last stride is not 1 is written as if it were 1";
    "copy.dense_source" &["InplaceCopy"], "a source that is not dense is read as if it were";
    "exp.clamp" &["Exp", "InplaceExp"], "arguments below -10, minus infinity too, count as -10";
    "sqrt.low_precision" &["Sqrt", "Rsqrt"], "roots have 11 bits";
    "sqrt.zero" &["Sqrt"], "a root is x times the inverse root of x, which is no number for 0";
    "log.low_precision" &["Log"], "logarithms have 10 bits";
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
