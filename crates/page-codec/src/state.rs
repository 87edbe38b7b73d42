//! Device state on the wire: one zstd frame.
//!
//! It is sent while the guest stands, on a connection that has been nearly idle and may therefore send only some 14 KB
//! before it has to wait for an answer. QEMU's device state is 60 to 110 KB for a small guest, most of it the description
//! of its own fields in JSON; packed it is 3 to 7 KB, so that it leaves at once. On a link of 100 ms this saves two to
//! three round trips of downtime.

use alloc::vec::Vec;

use crate::pack::{Level, Packer, Unpacker};

/// What came is no packed device state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected one zstd frame of {expected_bytes} bytes of device state")]
pub struct StateError {
    /// Bytes that it should unpack to.
    pub expected_bytes: usize,
}

/// `state` packed, if that is shorter.
#[must_use]
pub fn pack_state(state: &[u8]) -> Option<Vec<u8>> {
    Packer::new()?.pack(state, Level::FAST).map(<[u8]>::to_vec)
}

/// The `length_bytes` of state that `packed` was made of. The caller has checked that it wants to hold as much; zstd
/// writes no further, whatever the frame says.
///
/// # Errors
/// When `packed` is something else than one frame of that length, or there is no memory to unpack it.
pub fn unpack_state(packed: &[u8], length_bytes: usize) -> Result<Vec<u8>, StateError> {
    let mut unpacker = Unpacker::new(length_bytes);
    let state = unpacker.as_mut().and_then(|unpacker| unpacker.unpack(packed, length_bytes).ok());
    state.map(<[u8]>::to_vec).ok_or(StateError { expected_bytes: length_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn device_state_shrinks_and_comes_back() {
        let state = br#"{"name": "virtio-net", "type": "buffer", "size": 4},"#.repeat(2_000);
        let packed = pack_state(&state).unwrap();
        assert!(packed.len() < state.len() / 20, "{}", packed.len());
        assert_eq!(unpack_state(&packed, state.len()).as_ref(), Ok(&state));
        // Larger than any batch of pages.
        let large: Vec<u8> = (0..6_000_000_u32).flat_map(|n| (n % 60_000).to_le_bytes()).collect();
        let packed = pack_state(&large).unwrap();
        assert!(unpack_state(&packed, large.len()).is_ok_and(|state| state == large));
    }

    #[test]
    fn what_does_not_shrink_stays() {
        let mut state = vec![0; 5_000];
        blake3::Hasher::new().finalize_xof().fill(&mut state);
        assert_eq!(pack_state(&state), None);
        assert_eq!(pack_state(&[]), None);
    }

    #[test]
    fn another_length_is_refused() {
        let packed = pack_state(&[7; 4096]).unwrap();
        for wrong in [0, 1, 4095, 4097, usize::MAX] {
            assert_eq!(unpack_state(&packed, wrong), Err(StateError { expected_bytes: wrong }));
        }
    }

    proptest! {
        #[test]
        fn anything_may_come(packed in proptest::collection::vec(any::<u8>(), 0..200), length in 0..100_000_usize) {
            if let Ok(state) = unpack_state(&packed, length) {
                prop_assert_eq!(state.len(), length);
            }
        }
    }
}
