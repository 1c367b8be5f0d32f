//! One body for either float dtype.

/// Runs `$body` with `$values` the slice inside.
macro_rules! with_floats {
    ($floats:expr, $values:ident => $body:expr) => {
        match $floats {
            $crate::kernel::Floats::F32($values) => $body,
            $crate::kernel::Floats::Bf16($values) => $body,
        }
    };
}
pub(crate) use with_floats;

/// As `with_floats!`, for floats to write.
macro_rules! with_floats_mut {
    ($floats:expr, $values:ident => $body:expr) => {
        match $floats {
            $crate::kernel::FloatsMut::F32($values) => $body,
            $crate::kernel::FloatsMut::Bf16($values) => $body,
        }
    };
}
pub(crate) use with_floats_mut;
