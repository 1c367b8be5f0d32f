//! AMX through inline assembly: the intrinsics are not stable, the assembler knows the instructions.

use super::tiles::Tiles;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// The processor's tile registers, between [`configure`] and [`release`].
pub(super) struct Amx;

/// The operand of `ldtilecfg`: palette 1, eight tiles of 16 rows of 64 bytes (Intel SDM, volume 1, section 18.2).
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const fn configuration() -> Configuration {
    let mut configuration =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        configuration.row_bytes[tile] = 64;
        configuration.rows[tile] = 16;
        tile += 1;
    }
    configuration
}

static CONFIGURATION: Configuration = configuration();

/// Asks once whether the processor has AMX with bf16 (CPUID leaf 7, EDX bits 22 and 24) and the kernel lets this
/// process use tile data (Linux `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, since 5.16).
pub(crate) fn is_available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let leaves = __cpuid_count(0, 0).eax;
        if leaves < 7 {
            return false;
        }
        let features = __cpuid_count(7, 0).edx;
        let has = |bit: u32| features & (1 << bit) != 0;
        has(22) && has(24) && request_permission()
    })
}

/// The system call; 0 is success.
fn request_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this call only changes the process's permission for tile data; `syscall` clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// `ldtilecfg`: on this thread all eight registers are 16 rows of 64 bytes, until [`release`].
///
/// # Safety
/// AMX is available.
pub(super) unsafe fn configure() {
    // SAFETY: the operand is 64 readable bytes; the caller knows that the instruction is there.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIGURATION, options(nostack, preserves_flags, readonly));
    }
}

/// `tilerelease`: switching threads is cheaper while no registers are in use.
///
/// # Safety
/// AMX is available.
pub(super) unsafe fn release() {
    // SAFETY: the caller knows that the instruction is there.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// One arm for each register, because a register's number is part of the instruction.
macro_rules! by_register {
    ($tile:expr, $before:literal, $after:literal $(, $operand:tt)*) => {
        match $tile {
            0 => by_register!(@one $before, "tmm0", $after $(, $operand)*),
            1 => by_register!(@one $before, "tmm1", $after $(, $operand)*),
            2 => by_register!(@one $before, "tmm2", $after $(, $operand)*),
            3 => by_register!(@one $before, "tmm3", $after $(, $operand)*),
            4 => by_register!(@one $before, "tmm4", $after $(, $operand)*),
            5 => by_register!(@one $before, "tmm5", $after $(, $operand)*),
            6 => by_register!(@one $before, "tmm6", $after $(, $operand)*),
            _ => by_register!(@one $before, "tmm7", $after $(, $operand)*),
        }
    };
    (@one $before:literal, $register:literal, $after:literal, ($pointer:expr, $stride:expr)) => {
        asm!(
            concat!($before, $register, $after),
            pointer = in(reg) $pointer,
            stride = in(reg) $stride,
            options(nostack, preserves_flags),
        )
    };
    (@one $before:literal, $register:literal, $after:literal) => {
        asm!(concat!($before, $register, $after), options(nomem, nostack, preserves_flags))
    };
}

// SAFETY: each method is the instruction of its name. Compiled code never uses tile registers itself.
unsafe impl Tiles for Amx {
    type State = ();

    #[inline(always)]
    fn registers() {}

    #[inline(always)]
    unsafe fn zero<const TILE: usize>((): &mut ()) {
        // SAFETY: configured.
        unsafe { by_register!(TILE, "tilezero ", "") };
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>((): &mut (), pointer: *const u8, stride: usize) {
        // SAFETY: configured, and the rows are readable.
        unsafe { by_register!(TILE, "tileloadd ", ", [{pointer} + {stride}*1]", (pointer, stride)) };
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>((): &mut (), pointer: *mut u8, stride: usize) {
        // SAFETY: configured, and the rows are writable.
        unsafe { by_register!(TILE, "tilestored [{pointer} + {stride}*1], ", "", (pointer, stride)) };
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>((): &mut ()) {
        // SAFETY: configured. The four combinations that the product uses.
        unsafe {
            match (C, A, B) {
                (0, 4, 6) => asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nomem, nostack, preserves_flags)),
                (1, 4, 7) => asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nomem, nostack, preserves_flags)),
                (2, 5, 6) => asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nomem, nostack, preserves_flags)),
                (3, 5, 7) => asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nomem, nostack, preserves_flags)),
                _ => const { panic_if_other::<C, A, B>() },
            }
        }
    }
}

/// Stops the compilation of a combination that `dot` has no arm for.
const fn panic_if_other<const C: usize, const A: usize, const B: usize>() {
    assert!(
        matches!((C, A, B), (0, 4, 6) | (1, 4, 7) | (2, 5, 6) | (3, 5, 7)),
        "tdpbf16ps: no arm for these registers"
    );
}
