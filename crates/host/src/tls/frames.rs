//! Frames over connections: the wire crate says what a frame is, this moves its bytes.
//!
//! Reading puts bytes straight into the frame's buffer. The functions for tokio are cancel-safe where they read: what has
//! arrived stays in the reader. A write that is cancelled leaves half a frame; the connection is then to be closed.

use sterna_wire::{FrameError, FrameKind, FrameReader, FrameWriter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::data::DataStream;
use super::error::TlsError;

/// Why no frame came, or none was sent.
#[derive(Debug, thiserror::Error)]
pub enum FrameStreamError {
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] TlsError),
    /// The peer broke the format's rules, or we would have.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads until a frame is complete; it is then in [`FrameReader::frame`]. `false` when the peer has finished, between two
/// frames.
///
/// # Errors
/// When the connection fails or ends within a frame, or what arrives is no frame.
pub async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    reader: &mut FrameReader,
) -> Result<bool, FrameStreamError> {
    loop {
        let failed = |error| TlsError::of_io(error, None);
        let count = stream.read(reader.buffer_mut()).await.map_err(failed)?;
        if let Some(more) = take(reader, count)? {
            return Ok(more);
        }
    }
}

/// Writes one frame and flushes it.
///
/// # Errors
/// When the payload is above its kind's limit (nothing is written then), or the connection fails.
pub async fn write_frame<S: AsyncWrite + Unpin>(
    stream: &mut S,
    writer: &mut FrameWriter,
    kind: FrameKind,
    payload: &[u8],
) -> Result<(), FrameStreamError> {
    let header = writer.header(kind, payload.len())?;
    let frame = [&header[..], payload].concat();
    let failed = |error| TlsError::of_io(error, None);
    stream.write_all(&frame).await.map_err(failed)?;
    Ok(stream.flush().await.map_err(failed)?)
}

impl DataStream {
    /// Reads until a frame is complete; it is then in [`FrameReader::frame`]. `false` when the peer has finished, between
    /// two frames.
    ///
    /// # Errors
    /// When the connection fails or ends within a frame, or what arrives is no frame.
    pub fn read_frame(&mut self, reader: &mut FrameReader) -> Result<bool, FrameStreamError> {
        loop {
            let count = self.read(reader.buffer_mut())?;
            if let Some(more) = take(reader, count)? {
                return Ok(more);
            }
        }
    }

    /// Writes one frame and hands it to the system.
    ///
    /// # Errors
    /// When the payload is above its kind's limit (nothing is written then), or the connection fails.
    pub fn write_frame(
        &mut self,
        writer: &mut FrameWriter,
        kind: FrameKind,
        payload: &[u8],
    ) -> Result<(), FrameStreamError> {
        let header = writer.header(kind, payload.len())?;
        Ok(self.write_parts(&header, payload)?)
    }
}

/// What `count_bytes` read bytes amount to: a frame, the end, or (`None`) too little yet.
fn take(reader: &mut FrameReader, count_bytes: usize) -> Result<Option<bool>, FrameStreamError> {
    if count_bytes == 0 {
        return if reader.is_between_frames() {
            Ok(Some(false))
        } else {
            Err(TlsError::Truncated.into())
        };
    }
    Ok(reader.advance(count_bytes)?.map(|_| true))
}
