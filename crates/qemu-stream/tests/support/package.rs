//! A small stream whose device state comes in a package: whole, or with one of its parts replaced.

use super::small_head;

/// A small stream whose device state comes in a package, in its parts. Held by a bitmap that is open when it comes.
pub(crate) struct SmallPackage {
    /// The package's length, if it is not to be the true one.
    pub(crate) length_bytes: Option<u32>,
    pub(crate) listen: &'static [u8],
    pub(crate) sections: &'static [u8],
    /// Commands between the device sections and the end of the package.
    pub(crate) pings: &'static [u8],
    pub(crate) run: &'static [u8],
    /// What comes behind the package.
    pub(crate) behind: Vec<u8>,
}

/// The device sections of small packages.
pub(crate) const SMALL_SECTIONS: &[u8] =
    b"\x04\0\0\0\x09\x03cpu\0\0\0\0\0\0\0\x01state of a processor\x7e\0\0\0\x09";
/// The rest of the bitmap that holds small streams.
pub(crate) const SMALL_BITMAP_END: &[u8] =
    b"\x03\0\0\0\x03\x40\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x04bits\x20\x01\x7e\0\0\0\x03";
/// The end of guest memory that comes a second time, behind the package.
pub(crate) const SMALL_RAM_END: &[u8] = b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";

impl Default for SmallPackage {
    /// As QEMU sends it.
    fn default() -> Self {
        Self {
            length_bytes: None,
            listen: b"\x08\0\x04\0\0",
            sections: SMALL_SECTIONS,
            pings: b"",
            run: b"\x08\0\x05\0\0",
            behind: [SMALL_BITMAP_END, SMALL_RAM_END, b"\0"].concat(),
        }
    }
}

impl SmallPackage {
    /// What comes before the package's command, up to and with the end of guest memory.
    pub(crate) fn before() -> Vec<u8> {
        let bitmap: &[u8] = b"\x01\0\0\0\x03\x0cdirty-bitmap\0\0\0\0\0\0\0\x01\x1c\x01n\x01b\0\0\x10\0\0\x01\x7e\0\0\0\x03";
        [&small_head(), bitmap, SMALL_RAM_END].concat()
    }

    /// The package alone, with its command.
    pub(crate) fn package(&self) -> Vec<u8> {
        let inside = [self.listen, self.sections, self.pings, self.run].concat();
        let length = self.length_bytes.unwrap_or(u32::try_from(inside.len()).unwrap());
        [b"\x08\0\x07\0\x04", &length.to_be_bytes()[..], &inside].concat()
    }

    /// The whole stream.
    pub(crate) fn stream(&self) -> Vec<u8> {
        [Self::before(), self.package(), self.behind.clone()].concat()
    }
}
