//! What the processor calls itself.

/// The processor's brand string, or the architecture where it has none.
pub(crate) fn name() -> String {
    brand().unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// Leaves 0x80000002 to 0x80000004 hold 48 characters (AMD64 Architecture Programmer's Manual, volume 3, appendix E.4).
#[cfg(target_arch = "x86_64")]
fn brand() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    if __cpuid(0x8000_0000).eax < 0x8000_0004 {
        return None;
    }
    let mut bytes = Vec::new();
    for leaf in 0x8000_0002u32..=0x8000_0004 {
        let words = __cpuid(leaf);
        for word in [words.eax, words.ebx, words.ecx, words.edx] {
            bytes.extend(word.to_le_bytes());
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(char::from(0)).trim();
    (!text.is_empty()).then(|| text.to_string())
}

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    None
}
