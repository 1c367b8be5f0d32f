//! What general compressors make of the same bytes: the yardstick beside a model's bits per byte.

use std::io::{self, Write};

/// Sizes of the same bytes as one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedBytes {
    /// The bytes themselves.
    pub plain: u64,
    /// By DEFLATE at level 9 in gzip's frame, as `gzip -9` does. The encoder is zlib-rs, whose choices differ a little
    /// from GNU gzip's (by less than 1 % on source text).
    pub gzip: u64,
    /// By LZMA2 with liblzma's preset 9 and a CRC-64, as `xz -9` does.
    pub xz: u64,
}

impl CompressedBytes {
    /// gzip's bits for each plain byte; 0 where there are none.
    pub fn gzip_bits_per_byte(&self) -> f64 {
        per_byte(self.gzip as f64 * 8.0, self.plain)
    }

    /// xz's bits for each plain byte; 0 where there are none.
    pub fn xz_bits_per_byte(&self) -> f64 {
        per_byte(self.xz as f64 * 8.0, self.plain)
    }
}

/// Compresses `parts` one after the other as one stream, with nothing between them.
///
/// # Errors
/// Where a compressor gets no memory; xz takes eleven times its window, which is as long as the input and at most preset 9's
/// 64 MiB. A longer one would find nothing more.
pub fn compressed_bytes<'a>(parts: impl Iterator<Item = &'a [u8]> + Clone) -> io::Result<CompressedBytes> {
    let mut gzip = flate2::write::GzEncoder::new(Count(0), flate2::Compression::new(9));
    let all = parts.clone().map(<[u8]>::len).fold(0, usize::saturating_add);
    let window = all.clamp(XZ_WINDOW_BYTES_MIN, XZ_WINDOW_BYTES_MAX).next_power_of_two();
    let mut options = liblzma::stream::LzmaOptions::new_preset(9)?;
    options.dict_size(window as u32);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc64)?;
    let mut xz = liblzma::write::XzEncoder::new_stream(Count(0), stream);
    let mut plain = 0;
    for part in parts {
        plain += part.len() as u64;
        gzip.write_all(part)?;
        xz.write_all(part)?;
    }
    Ok(CompressedBytes { plain, gzip: gzip.finish()?.0, xz: xz.finish()?.0 })
}

/// The windows that xz has: its own least, and preset 9's.
const XZ_WINDOW_BYTES_MIN: usize = 4 << 10;
const XZ_WINDOW_BYTES_MAX: usize = 64 << 20;

/// Bits for each byte of a text whose tokens' negative log-likelihoods sum to `nats`: nats / (bytes · ln 2).
pub fn bits_per_byte(nats: f64, bytes: u64) -> f64 {
    per_byte(nats / std::f64::consts::LN_2, bytes)
}

fn per_byte(bits: f64, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { bits / bytes as f64 }
}

/// Counts what is written and keeps none of it.
struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{bits_per_byte, compressed_bytes};
    use std::io::{Read, Write};

    /// Bytes that look random, from a linear congruence.
    fn noise(count: usize) -> Vec<u8> {
        let mut state = 1_u64;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn noise_stays_and_repetition_goes() {
        let bytes = noise(50_000);
        let sizes = compressed_bytes([bytes.as_slice()].into_iter()).unwrap();
        assert_eq!(sizes.plain, 50_000);
        assert!(sizes.gzip_bits_per_byte() > 7.99 && sizes.gzip_bits_per_byte() < 8.1);
        assert!(sizes.xz_bits_per_byte() > 7.99 && sizes.xz_bits_per_byte() < 8.1);
        // One stream: the second copy lies outside gzip's window of 32 KiB and inside xz's.
        let twice = compressed_bytes([bytes.as_slice(), &bytes].into_iter()).unwrap();
        assert!(twice.gzip > sizes.gzip * 19 / 10, "{twice:?}");
        assert!(twice.xz < sizes.xz * 11 / 10, "{twice:?}");
    }

    #[test]
    fn counts_what_the_encoders_write() {
        let text = "fn main() { println!(\"as it is written\"); }\n".repeat(300);
        let sizes = compressed_bytes(text.as_bytes().chunks(1000)).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(9));
        gzip.write_all(text.as_bytes()).unwrap();
        assert_eq!(sizes.gzip, gzip.finish().unwrap().len() as u64);
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(text.as_bytes(), 9).read_to_end(&mut xz).unwrap();
        assert_eq!(sizes.xz, xz.len() as u64);
    }

    #[test]
    fn nothing_is_no_bits_and_a_bit_a_byte_is_one() {
        let nothing = compressed_bytes(std::iter::empty()).unwrap();
        assert_eq!(nothing.gzip_bits_per_byte(), 0.0);
        assert_eq!(nothing.plain, 0);
        assert!((bits_per_byte(100.0 * std::f64::consts::LN_2, 100) - 1.0).abs() < 1e-12);
        assert_eq!(bits_per_byte(0.0, 0), 0.0);
    }
}
