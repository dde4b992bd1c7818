//! The block formats of GGML, as codes with a scale and an offset.
//!
//! Decision: every format in common use stores a weight as `code · scale + offset`, with a few bits
//! of code each and one scale and offset for 16 or 32 neighbours; so one kernel reads them all, and
//! this file only takes the blocks apart. Each of these products and sums is exact or rounds once,
//! as in the dequantisers of ggml and candle, so the weights are theirs to the bit. Layouts:
//! `ggml-common.h` of llama.cpp.

use candle_core::quantized::GgmlDType;
use half::f16;

use super::weights::{Bits, Coded};

/// Takes quantised weights apart; nothing for a type that is not read so.
pub(super) fn coded(dtype: GgmlDType, bytes: &[u8]) -> Option<Coded> {
    type Block = fn(&[u8], &mut Coded);
    let (size, bits, group, block): (usize, Bits, usize, Block) = match dtype {
        GgmlDType::Q4_0 => (18, Bits::Four, 32, q4_0),
        GgmlDType::Q4_1 => (20, Bits::Four, 32, q4_1),
        GgmlDType::Q5_0 => (22, Bits::Eight, 32, q5_0),
        GgmlDType::Q5_1 => (24, Bits::Eight, 32, q5_1),
        GgmlDType::Q8_0 => (34, Bits::Eight, 32, q8_0),
        GgmlDType::Q4K => (144, Bits::Four, 32, q4_k),
        GgmlDType::Q5K => (176, Bits::Eight, 32, q5_k),
        GgmlDType::Q6K => (210, Bits::Eight, 16, q6_k),
        _ => return None,
    };
    let mut coded = Coded::new(bits, group);
    bytes.chunks_exact(size).for_each(|bytes| block(bytes, &mut coded));
    Some(coded)
}

fn number(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn low(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15)
}

fn high(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte >> 4)
}

/// 32 weights `(code − 8) · d`.
fn q4_0(bytes: &[u8], coded: &mut Coded) {
    let d = number(bytes, 0);
    coded.push(d, -8.0 * d, low(&bytes[2..]).chain(high(&bytes[2..])));
}

/// 32 weights `code · d + m`.
fn q4_1(bytes: &[u8], coded: &mut Coded) {
    coded.push(number(bytes, 0), number(bytes, 2), low(&bytes[4..]).chain(high(&bytes[4..])));
}

/// The codes of a block whose fifth bits lie in four bytes of their own.
fn five_bits(fifth: &[u8], fours: &[u8]) -> impl Iterator<Item = u8> {
    let fours = low(fours).chain(high(fours));
    fours.enumerate().map(|(i, four)| four | (fifth[i / 8] >> (i % 8) & 1) << 4)
}

/// 32 weights `(code − 16) · d`.
fn q5_0(bytes: &[u8], coded: &mut Coded) {
    let d = number(bytes, 0);
    coded.push(d, -16.0 * d, five_bits(&bytes[2..6], &bytes[6..]));
}

/// 32 weights `code · d + m`.
fn q5_1(bytes: &[u8], coded: &mut Coded) {
    coded.push(number(bytes, 0), number(bytes, 2), five_bits(&bytes[4..8], &bytes[8..]));
}

/// 32 weights `byte · d`, the byte signed.
fn q8_0(bytes: &[u8], coded: &mut Coded) {
    let d = number(bytes, 0);
    coded.push(d, -128.0 * d, bytes[2..].iter().map(|byte| byte ^ 128));
}

/// Scale and minimum of group `j` of eight, six bits each, in twelve bytes.
fn six_bits(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, least) = match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4),
    };
    (f32::from(scale), f32::from(least))
}

/// 256 weights `code · (d · scale) − least · minimum`, in eight groups.
fn q4_k(bytes: &[u8], coded: &mut Coded) {
    let (d, least) = (number(bytes, 0), number(bytes, 2));
    for j in 0..8 {
        let (scale, minimum) = six_bits(j, &bytes[4..16]);
        let fours = &bytes[16 + j / 2 * 32..][..32];
        let shift = j % 2 * 4;
        coded.push(d * scale, -(least * minimum), fours.iter().map(|byte| byte >> shift & 15));
    }
}

/// [`q4_k`] with fifth bits in bytes of their own: bit `j` of byte `i` is that of weight `i` of group `j`.
fn q5_k(bytes: &[u8], coded: &mut Coded) {
    let (d, least) = (number(bytes, 0), number(bytes, 2));
    let fifth = &bytes[16..48];
    for j in 0..8 {
        let (scale, minimum) = six_bits(j, &bytes[4..16]);
        let fours = &bytes[48 + j / 2 * 32..][..32];
        let shift = j % 2 * 4;
        let codes = fours.iter().zip(fifth).map(|(four, fifth)| four >> shift & 15 | (fifth >> j & 1) << 4);
        coded.push(d * scale, -(least * minimum), codes);
    }
}

/// 256 weights `(code − 32) · (d · scale)` in sixteen groups; of each half, the low four bits in 64
/// bytes and the high two in 32.
fn q6_k(bytes: &[u8], coded: &mut Coded) {
    let d = number(bytes, 208);
    for group in 0..16 {
        let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2);
        let fours = &bytes[half * 64 + quarter % 2 * 32 + side * 16..][..16];
        let twos = &bytes[128 + half * 32 + side * 16..][..16];
        let (four, two) = (quarter / 2 * 4, quarter * 2);
        let scale = d * f32::from(bytes[192 + group].cast_signed());
        let codes = fours.iter().zip(twos).map(|(f, t)| f >> four & 15 | (t >> two & 3) << 4);
        coded.push(scale, -32.0 * scale, codes);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::lm::testing::noise;
    use crate::lm::weights::Rows;

    #[test]
    fn weights_are_those_of_candle_to_the_bit() {
        let values = Tensor::from_vec(noise(31, 6 * 512), (6, 512), &Device::Cpu).unwrap();
        let types = [
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
            GgmlDType::Q4K,
            GgmlDType::Q5K,
            GgmlDType::Q6K,
        ];
        for dtype in types {
            let tensor = QTensor::quantize(&values, dtype).unwrap();
            let expected = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let found = Rows::Coded(coded(dtype, &tensor.data().unwrap()).unwrap());
            assert_eq!(found.to_f32(), expected.to_vec1::<f32>().unwrap(), "{dtype:?}");
        }
    }

    #[test]
    fn other_types_are_left_to_candle() {
        assert!(coded(GgmlDType::Q2K, &[0; 84]).is_none());
    }
}
