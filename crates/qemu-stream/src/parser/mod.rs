//! The push parser: bytes of a source's stream in, events out.
//!
//! ```text
//! Header --> Configuration --> Between <--> Blocks/Records (section ram) ---------\
//!                                 ^  \----> Bitmap (section dirty-bitmap, dropped) |
//!                                 \-------------------------------------------------/
//!                              Between, RAM ended: device state --> Tail
//!                                                  a package    --> Package --> Between <--> Bitmap, EmptyRam
//!                                                                                 \--> End
//! ```
//!
//! A tail has no end of its own: it ends where the stream does, and [`Parser::finish`] tells whether it is whole. A
//! package has a length, so its tail is whole before the stream's end ([`Event::TailComplete`]).
//!
//! Each step takes one whole element (a header, a block, a page) or nothing: a step changes the parser only after its
//! element was read to the end, so an element that is not there yet is read again from its start the next time.

mod bitmap;
mod event;
mod package;
mod ram;
mod sections;
mod tail;

use sterna_model::Layout;

use crate::configuration::Configuration;
use crate::cursor::{Cursor, Stop};
use crate::error::{Fault, StreamError, printable};
use crate::format::{MAGIC, VERSION};

use bitmap::BitmapState;
pub use event::{Event, RamPartKind, RamSection, StreamEnd};
use ram::Ram;
use sections::footer;
pub(crate) use tail::{Place, TailScan};

/// Where the parser is.
#[derive(Clone, Debug)]
enum State {
    Header,
    Configuration,
    Between,
    Ram(Ram),
    Bitmap(BitmapState),
    Tail,
    /// In the packaged device state.
    Package {
        /// Bytes of the package that are to come.
        left_bytes: u64,
    },
    /// In a RAM section behind the package.
    EmptyRam,
    /// Behind the end of file that follows a package.
    End,
}

/// How far guest memory is.
#[derive(Clone, Copy, Debug)]
enum Memory {
    Expected,
    Open(RamSection),
    Complete(RamSection),
    /// Complete, and so is the device state, which came in a package.
    Packaged(RamSection),
}

/// How far the bitmap is that may hold the source.
#[derive(Clone, Copy, Debug)]
enum Bitmap {
    None,
    Open(u32),
    Ended,
}

/// An incremental parser of one stream from a source's QEMU. It holds the block list and some words, never a page.
///
/// ```
/// use sterna_qemu_stream::{Event, MIN_BUFFER_BYTES, Parser};
///
/// # fn main() -> Result<(), sterna_qemu_stream::StreamError> {
/// # let mut source = b"QEVM\0\0\0\x03\x07\0\0\0\x0dpc-i440fx-7.2\x01".chunks(5);
/// let mut parser = Parser::new();
/// let mut buffer = Vec::with_capacity(MIN_BUFFER_BYTES);
/// # let mut machine = String::new();
/// while let Some(bytes) = source.next() {
///     buffer.extend_from_slice(bytes);
///     let taken = parser.feed(&buffer, |event| match event {
///         Event::Configuration(configuration) => machine = configuration.machine().into(),
///         Event::Page { .. } | Event::ZeroPage { .. } => { /* to the tracker */ }
///         _ => {}
///     })?;
///     buffer.drain(..taken);
/// }
/// assert_eq!(machine, "pc-i440fx-7.2");
/// assert!(parser.finish().is_err(), "a stream does not end here");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    offset: u64,
    state: State,
    memory: Memory,
    bitmap: Bitmap,
    layout: Option<Layout>,
    /// The block of the last record, as an index into the layout. It outlives sections, as it does in QEMU.
    block: Option<usize>,
    dropped_bytes: u64,
    /// Commands that were delivered.
    commands: u32,
    tail: TailScan,
    failed: Option<StreamError>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the start of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            offset: 0,
            state: State::Header,
            memory: Memory::Expected,
            bitmap: Bitmap::None,
            layout: None,
            block: None,
            dropped_bytes: 0,
            commands: 0,
            tail: TailScan::new(),
            failed: None,
        }
    }

    /// Takes what is whole at the front of `buffer`, delivers its events, and tells how many bytes were taken. The
    /// caller drops these and comes again when more bytes stand behind the rest; an element is never more than
    /// [`MIN_BUFFER_BYTES`](crate::MIN_BUFFER_BYTES) long.
    ///
    /// # Errors
    /// When the stream is damaged or of a kind that is not read. Every later call fails alike.
    pub fn feed(
        &mut self,
        buffer: &[u8],
        mut sink: impl FnMut(Event<'_>),
    ) -> Result<usize, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut cursor = Cursor::new(buffer, self.offset);
        loop {
            let taken = cursor.position();
            match self.step(&mut cursor, &mut sink) {
                Ok(()) => {}
                Err(Stop::NeedMore) => {
                    self.offset += taken as u64;
                    return Ok(taken);
                }
                Err(Stop::Fault(error)) => {
                    self.offset += taken as u64;
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            }
        }
    }

    /// Tells the parser that the stream has ended: everything was fed and, but for a rest that makes no whole
    /// element, taken.
    ///
    /// # Errors
    /// When the end is not where a stream can end: after device state whose description has the length that it says, or
    /// after the end of file behind packaged device state.
    pub fn finish(self) -> Result<StreamEnd, StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let cut = |expected| Err(Fault::Truncated { expected });
        let end = match (&self.state, &self.memory) {
            (State::Header, _) => cut("the header"),
            (State::Configuration, _) => cut("the configuration"),
            (State::Between, Memory::Packaged(_)) => match self.bitmap {
                Bitmap::Open(_) => cut("the rest of the dirty bitmap"),
                _ => cut("the end of the file"),
            },
            (State::Between, Memory::Complete(_)) => cut("device state"),
            (State::Between, _) => cut("a section"),
            (State::Ram(_), _) => cut("the rest of a RAM section"),
            (State::Bitmap(_), _) => cut("the rest of a dirty-bitmap section"),
            (State::Package { .. }, _) => cut("the rest of the packaged device state"),
            (State::EmptyRam, _) => cut("the rest of a RAM section"),
            (State::End, _) => Ok(()),
            (State::Tail, _) => {
                self.tail.end().map(drop).map_err(|found| Fault::Description { found })
            }
        };
        let complete = StreamEnd {
            bytes: self.offset,
            tail_bytes: self.tail.bytes(),
            dropped_bytes: self.dropped_bytes,
        };
        end.map(|()| complete).map_err(|fault| StreamError { offset: self.offset, fault })
    }

    /// The guest's memory blocks, once they came.
    #[must_use]
    pub const fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// The offset of the first byte that was not taken yet.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes dropped so far: what belongs to the bitmap that holds the source.
    #[must_use]
    pub const fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    #[inline]
    fn step(
        &mut self,
        cursor: &mut Cursor<'_>,
        sink: &mut impl FnMut(Event<'_>),
    ) -> Result<(), Stop> {
        match &self.state {
            State::Ram(_) => self.ram(cursor, sink),
            State::Header => self.header(cursor),
            State::Configuration => {
                let configuration = Configuration::take(cursor)?;
                self.state = State::Between;
                sink(Event::Configuration(&configuration));
                Ok(())
            }
            State::Between => self.between(cursor, sink),
            State::Bitmap(_) => self.bitmap(cursor),
            State::Tail => self.tail(cursor, sink),
            State::Package { left_bytes } => self.package(*left_bytes, cursor, sink),
            State::EmptyRam => self.empty_ram(cursor),
            State::End => {
                let found = cursor.peek()?;
                Err(cursor.fault(Fault::SectionType { expected: "the stream's end", found }))
            }
        }
    }

    fn header(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
        let magic = cursor.array::<4>()?;
        if *magic != MAGIC {
            return Err(cursor.fault(Fault::Magic { found: printable(magic) }));
        }
        let found = cursor.u32()?;
        if found != VERSION {
            return Err(cursor.fault(Fault::Version { found }));
        }
        self.state = State::Configuration;
        Ok(())
    }
}
