use std::io::Read as _;

use super::*;

fn sample(bytes: usize) -> Vec<u8> {
    // Half noise, half repetition, so that neither stored nor matched blocks go untested.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..bytes)
        .map(|index| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if (index / 1000) % 2 == 0 { b'a' + (index % 23) as u8 } else { state as u8 }
        })
        .collect()
}

#[track_caller]
fn check(compression: Compression, bytes: usize, level: Option<i32>) {
    let plain = sample(bytes);
    let packed = compress(compression, &plain, &CodecOptions::new().level(level)).unwrap();
    for threads in [1, 3] {
        let options = CodecOptions::new().level(level).pool(CodecPool::new(threads));
        assert!(compress(compression, &plain, &options).unwrap() == packed, "{threads} threads differ");
    }
    let mut reader = decompressor(packed.as_slice()).unwrap();
    if bytes > 0 || compression != Compression::Uncompressed {
        assert_eq!(reader.compression(), compression);
    }
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    assert!(back == plain, "round trip of {bytes} bytes");
    if compression == Compression::Gzip {
        let mut single = Vec::new();
        let mut decoder = flate2::bufread::GzDecoder::new(packed.as_slice());
        decoder.read_to_end(&mut single).unwrap();
        assert!(single == plain, "one member holds everything");
        assert!(decoder.into_inner().is_empty());
    }
}

#[test]
fn round_trips() {
    for compression in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
        for bytes in [0, 1, 1000, 512 * 1024 - 1, 512 * 1024, 512 * 1024 + 1, 1_100_000] {
            check(compression, bytes, None);
        }
        check(compression, 700_000, Some(1));
        check(compression, 100_000, Some(9));
        check(compression, 100_000, Some(0));
        check(compression, 1000, Some(99));
    }
}

#[test]
fn a_limit_stops_a_bomb() {
    for compression in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
        let packed = compress(compression, &vec![0; 1 << 20], &CodecOptions::new()).unwrap();
        let mut out = Vec::new();
        let error =
            decompressor(packed.as_slice()).unwrap().with_limit(1000).read_to_end(&mut out).unwrap_err();
        assert_eq!(error.to_string(), "decompressed content is larger than allowed");
    }
}

#[test]
fn header_has_neither_time_nor_name() {
    let packed = compress(Compression::Gzip, b"x", &CodecOptions::new()).unwrap();
    assert_eq!(packed[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
}

#[test]
fn truncated_streams_fail() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = compress(compression, &sample(10_000), &CodecOptions::new()).unwrap();
        let mut out = Vec::new();
        assert!(decompressor(&packed[..packed.len() - 5]).unwrap().read_to_end(&mut out).is_err());
    }
}
