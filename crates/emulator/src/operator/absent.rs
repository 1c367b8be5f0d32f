//! Operators that CANN has and this emulator has no kernel for: their first phase refuses, by name.

use crate::operator::arguments::not_implemented;
use crate::operator::{Planned, operators};

fn refuse(name: &str) -> Planned {
    Err(not_implemented(format!("aclnn{name}")))
}

extern "C" fn quant_parameter() -> i32 {
    crate::fault::tell("aclnnTransQuantParam", &not_implemented("aclnnTransQuantParam"))
}

/// Functions of one phase.
pub fn single_calls() -> Vec<(&'static str, usize)> {
    vec![("aclnnTransQuantParam", quant_parameter as *const () as usize)]
}

operators! {
    MatmulWeightNz(self_: T, mat2: T, out: To, cubeMathType: i8) = |_| refuse("MatmulWeightNz");
    Bincount(self_: T, weights: T, minlength: i64, out: To) = |_| refuse("Bincount");
    Unique2(
        self_: T, sorted: Flag, returnInverse: Flag, returnCounts: Flag, valueOut: To, inverseOut: To,
        countsOut: To,
    ) = |_| refuse("Unique2");
    FusedInferAttentionScoreV3(
        query: T, key: TL, value: TL, pseShift: T, attenMask: T, actualSeqLen: I, actualSeqLenKv: I,
        deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T,
        antiquantOffset: T, blockTable: T, queryPaddingSize: T, kvPaddingSize: T, keyAntiquantScale: T,
        keyAntiquantOffset: T, valueAntiquantScale: T, valueAntiquantOffset: T, keySharedPrefix: T,
        valueSharedPrefix: T, actualSharedPrefixLen: I, queryRope: T, keyRope: T, keyRopeAntiquantScale: T,
        numHeads: i64, scale: f64, preTokens: i64, nextTokens: i64, inputLayout: Str, numKeyValueHeads: i64,
        sparseMode: i64, innerPrecise: i64, blockSize: i64, antiquantMode: i64, softmaxLseFlag: Flag,
        keyAntiquantMode: i64, valueAntiquantMode: i64, out: To, softmaxLse: To,
    ) = |_| refuse("FusedInferAttentionScoreV3");
    IncreFlashAttentionV4(
        query: T, key: TL, value: TL, pseShift: T, attenMask: T, actualSeqLen: I, dequantScale1: T,
        quantScale1: T, dequantScale2: T, quantScale2: T, quantOffset2: T, antiquantScale: T,
        antiquantOffset: T, blockTable: T, kvPaddingSize: T, numHeads: i64, scale: f64, inputLayout: Str,
        numKeyValueHeads: i64, blockSize: i64, innerPrecise: i64, out: To,
    ) = |_| refuse("IncreFlashAttentionV4");
    PromptFlashAttentionV3(
        query: T, key: T, value: T, pseShift: T, attenMask: T, actualSeqLen: I, actualSeqLenKv: I,
        deqScale1: T, quantScale1: T, deqScale2: T, quantScale2: T, quantOffset2: T, numHeads: i64,
        scale: f64, preTokens: i64, nextTokens: i64, inputLayout: Str, numKeyValueHeads: i64,
        sparseMode: i64, innerPrecise: i64, out: To,
    ) = |_| refuse("PromptFlashAttentionV3");
    MoeInitRouting(
        x: T, rowIdx: T, expertIdx: T, activeNum: i64, expandedX: To, expandedRowIdx: To,
        expandedExpertIdx: To,
    ) = |_| refuse("MoeInitRouting");
    MoeInitRoutingV2(
        x: T, expertIdx: T, activeNum: i64, expertCapacity: i64, expertNum: i64, dropPadMode: i64,
        expertTokensCountOrCumsumFlag: i64, expertTokensBeforeCapacityFlag: Flag, expandedX: To,
        expandedRowIdx: To, expertTokensCountOrCumsum: To, expertTokensBeforeCapacity: To,
    ) = |_| refuse("MoeInitRoutingV2");
    MoeFinalizeRouting(
        expandedX: T, skip1: T, skip2: T, bias: T, scales: T, expandedRowIdx: T, expertIdx: T, out: To,
    ) = |_| refuse("MoeFinalizeRouting");
    MoeFinalizeRoutingV2(
        expandedX: T, expandedRowIdx: T, skip1: T, skip2: T, bias: T, scales: T, expertIdx: T,
        dropPadMode: i64, out: To,
    ) = |_| refuse("MoeFinalizeRoutingV2");
    StridedSlice(
        self_: T, begin: I, end: I, strides: I, beginMask: i64, endMask: i64, ellipsisMask: i64,
        newAxisMask: i64, shrinkAxisMask: i64, out: To,
    ) = |_| refuse("StridedSlice");
    RepeatInterleave(self_: T, repeats: T, outputSize: i64, out: To) = |_| refuse("RepeatInterleave");
    InplaceNormal(selfRef: To, mean: f32, std: f32, seed: i64, offset: i64) = |_| refuse("InplaceNormal");
    InplaceUniform(selfRef: To, from: f64, to: f64, seed: u64, offset: u64) = |_| refuse("InplaceUniform");
    InplaceBernoulli(selfRef: To, prob: S, seed: i64, offset: i64) = |_| refuse("InplaceBernoulli");
    InplaceRandom(selfRef: To, from: i64, to: i64, seed: i64, offset: i64) = |_| refuse("InplaceRandom");
    Multinomial(
        self_: T, numsamples: i64, replacement: Flag, seed: i64, offset: i64, out: To,
    ) = |_| refuse("Multinomial");
    DropoutGenMask(shape: I, prob: f64, seed: i64, offset: i64, out: To) = |_| refuse("DropoutGenMask");
    DropoutGenMaskV2(
        shape: I, prob: f64, seed: i64, offset: i64, probDataType: Dt, out: To,
    ) = |_| refuse("DropoutGenMaskV2");
    DropoutDoMask(self_: T, mask: T, prob: f64, out: To) = |_| refuse("DropoutDoMask");
    WeightQuantBatchMatmul(
        x1: T, x2: T, diagonalMatrix: T, deqOffset: T, deqScale: T, addOffset: T, mulScale: T, bias: T,
        transposeX1: Flag, transposeX2: Flag, antiquantScale: f32, antiquantOffset: f32, out: To,
    ) = |_| refuse("WeightQuantBatchMatmul");
    WeightQuantBatchMatmulV2(
        x: T, weight: T, antiquantScale: T, antiquantOffset: T, quantScale: T, quantOffset: T, bias: T,
        antiquantGroupSize: i32, y: To,
    ) = |_| refuse("WeightQuantBatchMatmulV2");
    WeightQuantBatchMatmulV3(
        x: T, weight: T, antiquantScale: T, antiquantOffset: T, quantScale: T, quantOffset: T, bias: T,
        antiquantGroupSize: i32, innerPrecise: i32, y: To,
    ) = |_| refuse("WeightQuantBatchMatmulV3");
    QuantMatmul(x1: T, x2: T, bias: T, deqScale: f32, out: To) = |_| refuse("QuantMatmul");
    QuantMatmulV2(
        x1: T, x2: T, bias: T, deqScale: T, adjX1: Flag, adjX2: Flag, out: To,
    ) = |_| refuse("QuantMatmulV2");
    QuantMatmulV3(
        x1: T, x2: T, scale: T, offset: T, bias: T, transposeX1: Flag, transposeX2: Flag, out: To,
    ) = |_| refuse("QuantMatmulV3");
    QuantMatmulV4(
        x1: T, x2: T, scale: T, offset: T, pertokenScale: T, bias: T, transposeX1: Flag, transposeX2: Flag,
        out: To,
    ) = |_| refuse("QuantMatmulV4");
    QuantMatmulV5(
        x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T,
        transposeX1: Flag, transposeX2: Flag, groupSize: i64, out: To,
    ) = |_| refuse("QuantMatmulV5");
    QuantMatmulWeightNz(
        x1: T, x2: T, x1Scale: T, x2Scale: T, yScale: T, x1Offset: T, x2Offset: T, yOffset: T, bias: T,
        transposeX1: Flag, transposeX2: Flag, groupSize: i64, out: To,
    ) = |_| refuse("QuantMatmulWeightNz");
    DynamicQuant(x: T, smoothScales: T, yOut: To, scaleOut: To) = |_| refuse("DynamicQuant");
    DynamicQuantV2(
        x: T, smoothScales: T, groupIndex: T, dstType: i64, yOut: To, scaleOut: To, offsetOut: To,
    ) = |_| refuse("DynamicQuantV2");
    DynamicQuantV3(
        x: T, smoothScales: T, groupIndex: T, dstType: i64, isSymmetrical: Flag, quantMode: Str, y: To,
        scale: To, offset: To,
    ) = |_| refuse("DynamicQuantV3");
    AscendQuant(
        x: T, scale: T, offset: T, sqrtMode: Flag, roundMode: Str, dstType: i32, y: To,
    ) = |_| refuse("AscendQuant");
    AscendQuantV3(
        x: T, scale: T, offset: T, sqrtMode: Flag, roundMode: Str, dstType: i32, axis: i32, y: To,
    ) = |_| refuse("AscendQuantV3");
    AscendAntiQuant(
        x: T, scale: T, offset: T, dstType: i64, sqrtMode: Flag, y: To,
    ) = |_| refuse("AscendAntiQuant");
    TransQuantParamV2(scale: T, offset: T, out: To) = |_| refuse("TransQuantParamV2");
}
