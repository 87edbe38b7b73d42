//! zstd, one frame for all packed bytes of a batch (or a device state), with its contexts reused.

use alloc::vec::Vec;

use zstd_safe::{CCtx, CParameter, DCtx, DParameter};

use crate::FormatError;
use crate::format::MAX_BODY_BYTES;

/// Largest window, as a power of two, that the decoder accepts: that of the longest body.
const WINDOW_LOG_MAX: u32 = MAX_BODY_BYTES.ilog2();

/// A zstd level that Sterna uses: -7 (fastest) to 19, without 0, which zstd takes for its default.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Level(i8);

impl Level {
    /// The fastest level that still codes entropy well.
    pub const FAST: Self = Self(1);
    /// zstd's own default.
    pub const NORMAL: Self = Self(3);

    /// The level, if Sterna uses it.
    #[must_use]
    pub const fn new(level: i8) -> Option<Self> {
        if level >= -7 && level <= 19 && level != 0 { Some(Self(level)) } else { None }
    }

    /// The level as zstd counts.
    #[must_use]
    pub const fn get(self) -> i8 {
        self.0
    }
}

/// How much work a batch is worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effort {
    /// No compression. Zero pages, refs and deltas are still used: they cost less than they save on any link.
    Raw,
    /// zstd for what it can shrink.
    Zstd(Level),
}

/// Compressor.
pub(crate) struct Packer {
    context: CCtx<'static>,
    level: Option<Level>,
    packed: Vec<u8>,
}

impl Packer {
    /// `None` when there is no memory for it.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { context: CCtx::try_create()?, level: None, packed: Vec::new() })
    }

    /// `body` compressed, if that is shorter by a sixteenth or more.
    pub(crate) fn pack(&mut self, body: &[u8], level: Level) -> Option<&[u8]> {
        let limit = body.len() - body.len() / 16;
        if self.level != Some(level) {
            let level_parameter = CParameter::CompressionLevel(level.get().into());
            self.context.set_parameter(level_parameter).ok()?;
            self.level = Some(level);
        }
        // The rest of zstd's frame header is by default as we want it: content size, no checksum.
        if self.packed.len() < limit {
            self.packed.resize(limit, 0);
        }
        // zstd gives up as soon as the output does not fit.
        let length = self.context.compress2(&mut self.packed[..limit], body).ok()?;
        self.packed.get(..length)
    }
}

/// Decompressor.
pub(crate) struct Unpacker {
    context: DCtx<'static>,
    limit_bytes: usize,
    body: Vec<u8>,
}

impl Unpacker {
    /// One that unpacks at most `limit_bytes` at a time; `None` when there is no memory for it.
    pub(crate) fn new(limit_bytes: usize) -> Option<Self> {
        let mut context = DCtx::try_create()?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).ok()?;
        Some(Self { context, limit_bytes, body: Vec::new() })
    }

    /// What `packed` was made of, which must be one frame of exactly `length_bytes`. The caller has checked that this
    /// is at most the limit; zstd writes no further, whatever the frame says.
    pub(crate) fn unpack(
        &mut self,
        packed: &[u8],
        length_bytes: usize,
    ) -> Result<&[u8], FormatError> {
        let expected = length_bytes.min(self.limit_bytes);
        if expected == 0 {
            return if packed.is_empty() { Ok(&[]) } else { Err(FormatError::Packed { expected }) };
        }
        let whole = zstd_safe::find_frame_compressed_size(packed) == Ok(packed.len());
        let size = zstd_safe::get_frame_content_size(packed);
        if !whole || !matches!(size, Ok(Some(size)) if size == expected as u64) {
            return Err(FormatError::Packed { expected });
        }
        if self.body.len() < expected {
            self.body.resize(expected, 0);
        }
        let body = &mut self.body[..expected];
        if self.context.decompress(body, packed) != Ok(expected) {
            return Err(FormatError::Packed { expected });
        }
        Ok(&self.body[..expected])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn packs_what_shrinks_at_all_levels() {
        let body = b"a guest page has its habits, ".repeat(3000);
        let mut packer = Packer::new().unwrap();
        let mut unpacker = Unpacker::new(MAX_BODY_BYTES).unwrap();
        for level in (-7..=19).filter_map(Level::new) {
            let packed = packer.pack(&body, level).unwrap();
            assert!(packed.len() < body.len() / 10);
            assert_eq!(unpacker.unpack(packed, body.len()), Ok(&body[..]));
            let wrong = body.len() - 1;
            assert_eq!(
                unpacker.unpack(packed, wrong),
                Err(FormatError::Packed { expected: wrong })
            );
        }
        assert_eq!(Level::new(0), None);
        assert_eq!(Level::new(20), None);
    }

    #[test]
    fn does_not_pack_what_does_not_shrink() {
        let mut body = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut body);
        assert_eq!(Packer::new().unwrap().pack(&body, Level::NORMAL), None);
        assert_eq!(Packer::new().unwrap().pack(&[], Level::NORMAL), None);
    }

    #[test]
    fn a_bomb_does_not_go_off() {
        let bomb = Packer::new().unwrap().pack(&vec![0; 8 << 20], Level::FAST).unwrap().to_vec();
        let mut unpacker = Unpacker::new(MAX_BODY_BYTES).unwrap();
        assert!(unpacker.unpack(&bomb, 8 << 20).is_err());
        assert!(unpacker.unpack(&bomb, 4096).is_err());
        assert!(unpacker.body.is_empty());
        let two = [&bomb[..], &bomb[..]].concat();
        assert!(unpacker.unpack(&two, 8 << 20).is_err());
    }
}
