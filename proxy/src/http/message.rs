//! HTTP/1.1 messages as bytes: read strictly, written anew (RFC 9112).
//!
//! # Layout
//! * `head`: a request's or response's head becomes its parts, or an error that names what is wrong with it
//! * `field`: which fields a proxy has to know
//! * `body`: where a body ends, and what of it is data
//! * `write`: heads as they leave: whatever the reader accepted has one meaning in them
//!
//! Nothing here does I/O: bytes in, bytes out.

mod body;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod check;
mod field;
mod head;
mod write;

#[cfg(test)]
mod tests;

pub(super) use body::{BodyError, Coding, Decoder, Framing, encode};
pub(super) use field::{Field, names_token};
pub(super) use head::{HeadError, RequestHead, ResponseHead, Storage, is_host, is_too_long};
pub(super) use write::{
    Forwarded, Reach, RequestLine, fields_of_trailers, last_chunk, request_head, response_head,
};
