//! A connection in the hands of one OS thread that moves bulk data one way: the source writes, the destination reads.
//!
//! Acknowledgements go over the control connection, so a data connection needs no second thread. Another thread can look
//! at it, or end it, at any time with a [`DataHandle`].

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::Connection;
use sterna_model::HostName;

use super::error::TlsError;
use crate::socket::unsent_bytes;

/// Ciphertext that is gathered before the system is asked to send it.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;
/// Ciphertext that is asked of the system at once; the TLS library takes it in pieces of 4 KiB.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// A blocking TLS connection to a peer whose name is proven.
#[derive(Debug)]
pub struct DataStream {
    socket: BufReader<TcpStream>,
    tls: Connection,
    peer: HostName,
    wait_limit: Option<Duration>,
}

impl DataStream {
    pub(crate) fn new(socket: TcpStream, mut tls: Connection, peer: HostName) -> Self {
        tls.set_buffer_limit(Some(WRITE_BUFFER_BYTES));
        let socket = BufReader::with_capacity(READ_BUFFER_BYTES, socket);
        Self { socket, tls, peer, wait_limit: None }
    }

    /// The peer's name, as its certificate says it.
    #[must_use]
    pub const fn peer(&self) -> &HostName {
        &self.peer
    }

    /// Ends a read or write that moves nothing for so long with [`TlsError::Timeout`]; `None` waits until the network
    /// gives the peer up. A read may be tried again; after a write the connection is of no use any more.
    ///
    /// # Errors
    /// When the system refuses; a limit of zero is refused.
    pub fn set_wait_limit(&mut self, limit: Option<Duration>) -> Result<(), TlsError> {
        let socket = self.socket.get_ref();
        socket.set_read_timeout(limit).map_err(TlsError::Io)?;
        socket.set_write_timeout(limit).map_err(TlsError::Io)?;
        self.wait_limit = limit;
        Ok(())
    }

    /// What another thread needs to look at this connection, or to end it, while a read or write waits.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn handle(&self) -> Result<DataHandle, TlsError> {
        self.socket.get_ref().try_clone().map(DataHandle).map_err(TlsError::Io)
    }

    /// Writes both parts, one after the other, and hands them to the system whole.
    ///
    /// # Errors
    /// When the peer, the link or the system fails; the connection is then of no use any more.
    pub fn write_parts(&mut self, head: &[u8], body: &[u8]) -> Result<(), TlsError> {
        let (mut head, mut body) = (head, body);
        while !(head.is_empty() && body.is_empty()) {
            let parts = [IoSlice::new(head), IoSlice::new(body)];
            let taken = self.tls.writer().write_vectored(&parts).map_err(|error| self.io(error))?;
            let of_head = taken.min(head.len());
            (head, body) = (&head[of_head..], &body[taken - of_head..]);
            self.send_pending()?;
        }
        Ok(())
    }

    /// Writes all of it and hands it to the system.
    ///
    /// # Errors
    /// As [`write_parts`](Self::write_parts).
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        self.write_parts(bytes, &[])
    }

    /// Reads what there is, at least one byte; waits for it. Zero when the peer said that it is finished.
    ///
    /// # Errors
    /// When the peer, the link or the system fails, or the connection ends without the peer having said so.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, TlsError> {
        loop {
            match self.tls.reader().read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive()?,
                Err(error) => return Err(self.io(error)),
            }
        }
    }

    /// Says that nothing more will be written. The peer's reads then end with zero. Reading goes on.
    ///
    /// # Errors
    /// When the peer, the link or the system fails.
    pub fn finish(&mut self) -> Result<(), TlsError> {
        self.tls.send_close_notify();
        self.send_pending()?;
        self.socket.get_ref().shutdown(Shutdown::Write).map_err(|error| self.io(error))
    }

    fn receive(&mut self) -> Result<(), TlsError> {
        match self.tls.read_tls(&mut self.socket) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(self.io(error)),
        }
        if let Err(error) = self.tls.process_new_packets() {
            // The alert that tells the peer why; the error that counts is the first one.
            _ = self.send_pending();
            return Err(TlsError::of_rustls(error, Some(&self.peer)));
        }
        self.send_pending()
    }

    fn send_pending(&mut self) -> Result<(), TlsError> {
        while self.tls.wants_write() {
            match self.tls.write_tls(self.socket.get_mut()) {
                Ok(0) => return Err(TlsError::Truncated),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
        Ok(())
    }

    fn io(&self, error: io::Error) -> TlsError {
        match (error.kind(), self.wait_limit) {
            (io::ErrorKind::WouldBlock, Some(limit)) => {
                TlsError::Timeout { step: "the peer to go on", limit }
            }
            _ => TlsError::of_io(error, Some(&self.peer)),
        }
    }
}

/// A [`DataStream`] in the hands of another thread than the one that reads or writes.
#[derive(Debug)]
pub struct DataHandle(TcpStream);

impl DataHandle {
    /// Another hand on the same connection.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ends both directions at once: reads and writes that wait return with an error.
    pub fn close(&self) {
        // It fails only when the connection has ended already.
        _ = self.0.shutdown(Shutdown::Both);
    }

    /// Bytes that were handed to the system and that the peer's system has not acknowledged: in our send buffer, in the
    /// link's queues, or on the way.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn unacknowledged_bytes(&self) -> io::Result<usize> {
        unsent_bytes(&self.0)
    }

    #[cfg(test)]
    pub(super) fn into_socket(self) -> TcpStream {
        self.0
    }
}
