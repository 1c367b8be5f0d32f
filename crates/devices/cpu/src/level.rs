//! The dispatch level: which instructions kernels use, found at run time.

use crate::lanes::{Lanes, Portable};
use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};

/// A set of instructions that kernels are compiled for, from the plainest to the fastest.
///
/// `Portable`, `Avx2` and `Avx512` give the same bits. `Avx512Bf16` and `Amx` differ from them in products whose
/// operands are both bf16 (the processor's bf16 instructions), and in nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust: any architecture.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// `Avx512` with `vdpbf16ps` for products of bf16.
    Avx512Bf16,
    /// `Avx512` with AMX tiles for products of bf16.
    Amx,
}

/// The level that was asked for has no such name, or this machine lacks it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level has this name.
    #[error("no dispatch level is called {0:?}; the levels are portable, avx2, avx512, avx512bf16 and amx")]
    Unknown(String),
    /// The level exists, but not on this machine.
    #[error("this machine has no {0}; it has {1}")]
    Absent(Level, String),
}

/// A piece of work written once over [`Lanes`].
pub(crate) trait Kernel {
    /// What the work gives.
    type Output;
    /// Does the work. Implementations are `#[inline(always)]`, so that they take the caller's target features.
    fn run<L: Lanes>(self) -> Self::Output;
}

impl Level {
    /// Every level, plainest first.
    pub const ALL: [Level; 5] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];

    /// Whether this machine (processor and operating system) can run this level.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Level::Portable => true,
                Level::Avx2 => avx2(),
                Level::Avx512 => avx512(),
                Level::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
                Level::Amx => avx512() && crate::kernel::tile_is_available(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Level::Portable
        }
    }

    /// The levels of this machine, plainest first.
    pub fn available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|level| level.is_available()).collect()
    }

    /// The fastest level of this machine.
    pub fn detect() -> Level {
        Level::ALL.into_iter().rev().find(|level| level.is_available()).unwrap_or(Level::Portable)
    }

    /// Parses a name and checks that this machine has the level.
    ///
    /// # Errors
    /// An unknown name, or a level that this machine lacks; both say what there is.
    pub fn named(name: &str) -> Result<Level, LevelError> {
        let level: Level = name.parse()?;
        if level.is_available() {
            return Ok(level);
        }
        let names: Vec<String> = Level::available().iter().map(Level::to_string).collect();
        Err(LevelError::Absent(level, names.join(", ")))
    }

    /// Runs `kernel` with this level's lanes, or with plain ones where this machine lacks the level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            Level::Avx2 if self.is_available() => {
                // SAFETY: the features were detected (std caches the answer).
                return unsafe { run_avx2(kernel) };
            }
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx if Level::Avx512.is_available() => {
                // SAFETY: as above.
                return unsafe { run_avx512(kernel) };
            }
            _ => {}
        }
        kernel.run::<Portable>()
    }
}

/// # Safety
/// The machine has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// # Safety
/// The machine has AVX2, FMA and AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        })
    }
}

impl FromStr for Level {
    type Err = LevelError;

    fn from_str(name: &str) -> Result<Level, LevelError> {
        let found = Level::ALL.into_iter().find(|level| level.to_string() == name);
        found.ok_or_else(|| LevelError::Unknown(name.to_string()))
    }
}

/// Defines a function over lanes: `kernel! { fn name['a, X: Element](arguments) -> Output { body } }` becomes
/// `fn name(level, arguments)`, in whose body `L` is the level's [`Lanes`].
macro_rules! kernel {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident [$($generic:ident : $bound:path),*]
        ($($argument:ident : $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name<'a, $($generic: $bound),*>(level: $crate::level::Level, $($argument: $type),*)
            $(-> $output)?
        {
            struct Arguments<'a, $($generic: $bound),*>(
                ($($type,)*),
                std::marker::PhantomData<(&'a (), $($generic),*)>,
            );
            #[allow(unused_parens)]
            impl<'a, $($generic: $bound),*> $crate::level::Kernel for Arguments<'a, $($generic),*> {
                type Output = ($($output)?);
                #[inline(always)]
                fn run<L: $crate::lanes::Lanes>(self) -> Self::Output {
                    let ($($argument,)*) = self.0;
                    $body
                }
            }
            level.run(Arguments::<'a, $($generic),*>(($($argument,)*), std::marker::PhantomData))
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_the_unknown_is_named() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse::<Level>(), Ok(level));
        }
        let error = "avx3".parse::<Level>().unwrap_err().to_string();
        assert!(error.contains("avx3") && error.contains("portable"), "{error}");
    }

    #[test]
    fn detection_is_the_last_of_what_is_there() {
        let available = Level::available();
        assert_eq!(available.first(), Some(&Level::Portable));
        assert_eq!(available.last(), Some(&Level::detect()));
        for level in Level::ALL {
            assert_eq!(Level::named(&level.to_string()).is_ok(), available.contains(&level));
        }
    }
}
