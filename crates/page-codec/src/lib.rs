//! Pages on the wire: zero, same, ref, delta, zstd, raw.
