//! ggml's numbers for the formats of elements.

use crate::stored::Stored;

/// The format of a number; those that are not read have a name and a size all the same, so that they can be listed.
pub(super) fn stored(kind: u32) -> Option<Stored> {
    let other = |name: &str, elements, bytes| Some(Stored::Other(name.into(), elements, bytes));
    match kind {
        0 => Some(Stored::F32),
        1 => Some(Stored::F16),
        2 => Some(Stored::Q4_0),
        3 => Some(Stored::Q4_1),
        6 => Some(Stored::Q5_0),
        7 => Some(Stored::Q5_1),
        8 => Some(Stored::Q8_0),
        9 => other("Q8_1", 32, 36),
        10 => other("Q2_K", 256, 84),
        11 => other("Q3_K", 256, 110),
        12 => Some(Stored::Q4K),
        13 => Some(Stored::Q5K),
        14 => Some(Stored::Q6K),
        15 => other("Q8_K", 256, 292),
        16 => other("IQ2_XXS", 256, 66),
        17 => other("IQ2_XS", 256, 74),
        18 => other("IQ3_XXS", 256, 98),
        19 => other("IQ1_S", 256, 50),
        20 => other("IQ4_NL", 32, 18),
        21 => other("IQ3_S", 256, 110),
        22 => other("IQ2_S", 256, 82),
        23 => other("IQ4_XS", 256, 136),
        24 => other("I8", 1, 1),
        25 => other("I16", 1, 2),
        26 => other("I32", 1, 4),
        27 => other("I64", 1, 8),
        28 => Some(Stored::F64),
        29 => other("IQ1_M", 256, 56),
        30 => Some(Stored::Bf16),
        34 => other("TQ1_0", 256, 54),
        35 => other("TQ2_0", 256, 66),
        39 => other("MXFP4", 32, 17),
        _ => None,
    }
}
