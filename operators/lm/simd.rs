//! One body, several instruction sets, chosen at run time.
//!
//! Decision: kernels are plain safe loops over fixed-size arrays, compiled once more for AVX2 (and
//! where it pays AVX-512) by `target_feature`, so that a portable build is fast without intrinsics.
//! The loops fix the order of every sum themselves, and whether a multiply-add is fused is a
//! constant of the body; so all machines with fused multiply-add give the same bits.

/// `a·b + c`, in one rounding where the instruction set has it.
///
/// Without the instruction the fused form is a slow library call: two roundings are taken instead.
#[inline(always)]
pub(crate) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Whether the target always has fused multiply-add.
pub(crate) const FUSED_BY_DEFAULT: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Defines `fn name(args)` that runs `body::<FUSED>(args)` compiled for the machine it is on.
macro_rules! dispatched {
    ($(#[$doc:meta])* fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features the function is compiled for were just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body::<{ $crate::lm::simd::FUSED_BY_DEFAULT }>($($arg),*)
        }
    };
}
pub(crate) use dispatched;
