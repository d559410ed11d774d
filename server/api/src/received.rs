//! What came, byte by byte: the digest of a request's message, for the signed word for what it asked for.
//!
//! A message that was decoded cannot be encoded again as its sender did it: other encoders write other bytes. So it is the body that is digested,
//! while it passes.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use piecewised_graph::Digest;
use tonic::{Request, body::Body};

/// gRPC's prefix of a message: one byte that says whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The digest of the first message of a request's body, as far as it has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received(Arc<Mutex<Receiving>>);

#[derive(Debug, Default)]
struct Receiving {
    prefix: Vec<u8>,
    /// Bytes of the message that are still to come, once the prefix is here.
    left: usize,
    hasher: blake3::Hasher,
}

impl Receiving {
    fn take(&mut self, mut data: &[u8]) {
        if self.prefix.len() < PREFIX_BYTES {
            let (prefix, rest) = data.split_at(data.len().min(PREFIX_BYTES - self.prefix.len()));
            self.prefix.extend_from_slice(prefix);
            data = rest;
            if let [_, a, b, c, d] = self.prefix[..] {
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            }
        }
        let data = &data[..data.len().min(self.left)];
        self.left -= data.len();
        self.hasher.update(data);
    }
}

/// Has the body of a call of this path digested. For `MapRequestLayer`.
pub(crate) fn digest_compiles(request: http::Request<Body>) -> http::Request<Body> {
    if !request.uri().path().ends_with("/Compile") {
        return request;
    }
    let received = Received::default();
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(received.clone());
    let body = body.map_frame(move |frame| {
        if let Some(data) = frame.data_ref() {
            let data: &Bytes = data;
            received.0.lock().unwrap_or_else(PoisonError::into_inner).take(data);
        }
        frame
    });
    http::Request::from_parts(parts, Body::new(body))
}

/// The digest of a message that has been decoded. `None`: it did not come through the layer.
pub(crate) fn digest<T>(request: &Request<T>) -> Option<Digest> {
    let received = request.extensions().get::<Received>()?;
    let receiving = received.0.lock().unwrap_or_else(PoisonError::into_inner);
    (receiving.prefix.len() == PREFIX_BYTES && receiving.left == 0).then(|| Digest(receiving.hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_digested_however_its_body_is_cut() {
        let message = b"what was asked for";
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        // What follows the message is none of it.
        body.extend(b"more");
        for n_bytes in 1..body.len() {
            let mut receiving = Receiving::default();
            body.chunks(n_bytes).for_each(|chunk| receiving.take(chunk));
            assert_eq!(Digest(receiving.hasher.finalize().into()), Digest::of(message), "in chunks of {n_bytes}");
        }
    }
}
