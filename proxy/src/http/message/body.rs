//! Where a body ends, and what of it is data (RFC 9112, 6 and 7).

use super::head::Storage;
use crate::options::limits;

/// How a message says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    /// There is none.
    Empty,
    Length(u64),
    Chunked,
    /// Responses only: it ends with the connection.
    UntilClose,
}

/// Why a body can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::http) enum BodyError {
    #[error("a chunk's size is not a number, or too large")]
    Size,
    #[error(
        "a chunk's extensions are malformed, or longer than {} bytes",
        limits::CHUNK_EXTENSION_BYTES
    )]
    Extension,
    #[error("a chunk does not end where it says")]
    ChunkEnd,
    #[error(
        "the trailers are malformed, or longer than {} bytes",
        limits::TRAILER_BYTES
    )]
    Trailers,
}

/// What was read of a body in one go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Decoded {
    /// So many bytes at the buffer's front are data now.
    pub(in crate::http) data: usize,
    /// So many bytes of the buffer belonged to the body. What follows belongs to the next message, and is where it was.
    pub(in crate::http) consumed: usize,
}

/// Reads a body.
#[derive(Debug)]
pub(in crate::http) enum Decoder {
    Length(u64),
    Chunked(Box<Chunked>),
    UntilClose,
    Ended,
}

impl Decoder {
    pub(in crate::http) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Empty | Framing::Length(0) => Decoder::Ended,
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => Decoder::Chunked(Box::default()),
            Framing::UntilClose => Decoder::UntilClose,
        }
    }

    /// Whether the whole body was read.
    pub(in crate::http) fn ended(&self) -> bool {
        match self {
            Decoder::Ended => true,
            Decoder::Chunked(chunked) => chunked.state == State::Ended,
            Decoder::Length(_) | Decoder::UntilClose => false,
        }
    }

    /// The sender has closed; whether that is where this body ends.
    pub(in crate::http) fn closed(&mut self) -> bool {
        if matches!(self, Decoder::UntilClose) {
            *self = Decoder::Ended;
        }
        self.ended()
    }

    /// How much is still to come, where that is known.
    pub(in crate::http) fn remaining(&self) -> Option<u64> {
        match self {
            Decoder::Length(left) => Some(*left),
            Decoder::Ended => Some(0),
            Decoder::Chunked(_) | Decoder::UntilClose => None,
        }
    }

    /// So many bytes were moved elsewhere without being looked at; only where [`Decoder::remaining`] allows it.
    pub(in crate::http) fn skip(&mut self, n: u64) {
        if let Decoder::Length(left) = self {
            *left = left.saturating_sub(n);
            if *left == 0 {
                *self = Decoder::Ended;
            }
        }
    }

    /// Reads what `buffer` holds, and gathers the data at its front.
    ///
    /// # Errors
    /// The framing is broken: nothing that follows can be understood.
    pub(in crate::http) fn decode(&mut self, buffer: &mut [u8]) -> Result<Decoded, BodyError> {
        let all = |n| Decoded {
            data: n,
            consumed: n,
        };
        match self {
            Decoder::Ended => Ok(Decoded::default()),
            Decoder::UntilClose => Ok(all(buffer.len())),
            Decoder::Length(left) => {
                let n = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
                self.skip(n as u64);
                Ok(all(n))
            }
            Decoder::Chunked(chunked) => chunked.decode(buffer),
        }
    }

    /// The trailers that came, as lines with their ends; empty before the body has ended.
    pub(in crate::http) fn trailers(&self) -> &[u8] {
        match self {
            Decoder::Chunked(chunked) if chunked.state == State::Ended => &chunked.trailers,
            _ => &[],
        }
    }
}

/// A body in chunks. A size has at most 16 digits; extensions are dropped, and bounded like the trailers.
#[derive(Debug, Default)]
pub(in crate::http) struct Chunked {
    state: State,
    /// Of the chunk being read: what is left of it, or what its size is so far.
    left: u64,
    digits: u32,
    extension: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailers,
    Ended,
}

impl Chunked {
    fn decode(&mut self, buffer: &mut [u8]) -> Result<Decoded, BodyError> {
        let mut decoded = Decoded::default();
        while self.state != State::Ended && decoded.consumed < buffer.len() {
            let at = decoded.consumed;
            if self.state == State::Data {
                let here = buffer.len() - at;
                let n = usize::try_from(self.left).map_or(here, |left| left.min(here));
                buffer.copy_within(at..at + n, decoded.data);
                decoded.data += n;
                decoded.consumed += n;
                self.left -= n as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            decoded.consumed += 1;
            self.byte(buffer[at])?;
        }
        Ok(decoded)
    }

    fn byte(&mut self, byte: u8) -> Result<(), BodyError> {
        match self.state {
            State::Size => match char::from(byte).to_digit(16) {
                Some(digit) => {
                    self.digits += 1;
                    if self.digits > 16 {
                        return Err(BodyError::Size);
                    }
                    self.left = self.left << 4 | u64::from(digit);
                    // Sizes that can't be added up are nobody's.
                    if self.left > i64::MAX as u64 {
                        return Err(BodyError::Size);
                    }
                }
                None if self.digits == 0 => return Err(BodyError::Size),
                None => match byte {
                    b'\r' => self.state = State::SizeLf,
                    b';' | b' ' | b'\t' => self.state = State::Extension,
                    _ => return Err(BodyError::Size),
                },
            },
            State::Extension => {
                self.extension += 1;
                match byte {
                    b'\r' => self.state = State::SizeLf,
                    b'\t' | b' '..=b'~' | 0x80..
                        if self.extension <= limits::CHUNK_EXTENSION_BYTES => {}
                    _ => return Err(BodyError::Extension),
                }
            }
            State::SizeLf => {
                if byte != b'\n' {
                    return Err(BodyError::Size);
                }
                self.digits = 0;
                self.state = if self.left == 0 {
                    State::Trailers
                } else {
                    State::Data
                };
            }
            State::DataCr | State::DataLf => {
                let (wanted, next) = match self.state {
                    State::DataCr => (b'\r', State::DataLf),
                    _ => (b'\n', State::Size),
                };
                if byte != wanted {
                    return Err(BodyError::ChunkEnd);
                }
                self.state = next;
            }
            State::Trailers => {
                self.trailers.push(byte);
                if self.trailers.len() > limits::TRAILER_BYTES {
                    return Err(BodyError::Trailers);
                }
                let whole = self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n");
                if whole {
                    // Malformed ones must be found out before the body counts as whole.
                    let mut storage = Storage::new();
                    storage
                        .trailers(&self.trailers)
                        .map_err(|_| BodyError::Trailers)?;
                    self.state = State::Ended;
                } else if self.trailers.starts_with(b"\n") {
                    return Err(BodyError::Trailers);
                }
            }
            State::Data | State::Ended => debug_assert!(false, "not read byte by byte"),
        }
        Ok(())
    }
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Coding {
    /// As it is: its length was said, or the connection's end is its end.
    Raw,
    Chunked,
}

/// Appends data in a coding.
pub(in crate::http) fn encode(out: &mut Vec<u8>, coding: Coding, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    if coding == Coding::Chunked {
        let mut size = [0; 18];
        out.extend_from_slice(chunk_size(&mut size, data.len()));
    }
    out.extend_from_slice(data);
    if coding == Coding::Chunked {
        out.extend_from_slice(b"\r\n");
    }
}

/// A chunk's size with the end of its line.
fn chunk_size(room: &mut [u8; 18], mut size: usize) -> &[u8] {
    room[16..].copy_from_slice(b"\r\n");
    let mut at = 16;
    loop {
        at -= 1;
        room[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
        if size == 0 {
            return &room[at..];
        }
    }
}
