//! Frames: `u32 json_len, u64 blob_len` (big endian), JSON text, blob.
//!
//! Lengths are checked before anything is read or allocated for them. Left out: what the JSON says.

use std::io;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest JSON text that an executor may send.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;

/// What is reserved before the bytes are there; beyond, the buffer grows with what really comes.
const RESERVED_BYTES: u64 = 1 << 20;

/// One frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) json: Vec<u8>,
    pub(crate) blob: Bytes,
}

/// A frame that could not be read.
#[derive(Debug, Error)]
pub(crate) enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its output ended in the middle of a frame")]
    Truncated,
    #[error("a frame announced {n_bytes} bytes of JSON, the limit is {limit}")]
    JsonTooLarge { n_bytes: u64, limit: u64 },
    #[error("a frame announced {n_bytes} bytes of artifact, the limit is {limit}")]
    BlobTooLarge { n_bytes: u64, limit: u64 },
}

/// Writes a frame.
pub(crate) async fn write(to: &mut (impl AsyncWrite + Unpin), json: &[u8], blob: &[u8]) -> io::Result<()> {
    let n_bytes = u32::try_from(json.len()).map_err(|_| io::Error::other("a message of 4 GiB or more"))?;
    let mut head = [0; 12];
    head[..4].copy_from_slice(&n_bytes.to_be_bytes());
    head[4..].copy_from_slice(&(blob.len() as u64).to_be_bytes());
    to.write_all(&head).await?;
    to.write_all(json).await?;
    to.write_all(blob).await?;
    to.flush().await
}

/// Reads a frame; none where the stream ended between two.
pub(crate) async fn read(
    from: &mut (impl AsyncRead + Unpin),
    max_json_bytes: u64,
    max_blob_bytes: u64,
) -> Result<Option<Frame>, FrameError> {
    let mut head = [0; 12];
    let mut n_read = 0;
    while n_read < head.len() {
        match from.read(&mut head[n_read..]).await? {
            0 if n_read == 0 => return Ok(None),
            0 => return Err(FrameError::Truncated),
            n => n_read += n,
        }
    }
    let [j0, j1, j2, j3, blob @ ..] = head;
    let n_json = u64::from(u32::from_be_bytes([j0, j1, j2, j3]));
    let n_blob = u64::from_be_bytes(blob);
    if n_json > max_json_bytes {
        return Err(FrameError::JsonTooLarge { n_bytes: n_json, limit: max_json_bytes });
    }
    if n_blob > max_blob_bytes {
        return Err(FrameError::BlobTooLarge { n_bytes: n_blob, limit: max_blob_bytes });
    }
    let json = read_exactly(from, n_json).await?;
    let blob = read_exactly(from, n_blob).await?;
    Ok(Some(Frame { json, blob: Bytes::from(blob) }))
}

async fn read_exactly(from: &mut (impl AsyncRead + Unpin), n_bytes: u64) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(usize::try_from(n_bytes.min(RESERVED_BYTES)).unwrap_or(0));
    from.take(n_bytes).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == n_bytes { Ok(bytes) } else { Err(FrameError::Truncated) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(json: &[u8], blob: &[u8]) -> Vec<u8> {
        let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
        bytes.extend((blob.len() as u64).to_be_bytes());
        bytes.extend(json);
        bytes.extend(blob);
        bytes
    }

    async fn read_all(mut bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        while let Some(frame) = read(&mut bytes, 100, 5_000_000).await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_follow_each_other() {
        let large = vec![7; 3_000_000];
        let frames = read_all(&[frame(b"{}", b""), frame(b"[1]", &large), frame(b"", b"")].concat()).await.unwrap();
        assert_eq!(frames.len(), 3);
        assert_eq!((frames[1].json.as_slice(), frames[1].blob.as_ref()), (b"[1]".as_slice(), large.as_slice()));
    }

    #[tokio::test]
    async fn what_is_written_reads_back() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"{\"hello\":1}", b"blob").await.unwrap();
        assert_eq!(bytes, frame(b"{\"hello\":1}", b"blob"));
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_told_from_one_between_frames() {
        let whole = frame(b"{}", b"blob");
        for n in 1..whole.len() {
            assert!(matches!(read_all(&whole[..n]).await, Err(FrameError::Truncated)), "{n}");
        }
        assert!(read_all(b"").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn lengths_are_refused_before_anything_is_read() {
        let mut head = [0xff; 12];
        assert!(matches!(read_all(&head).await, Err(FrameError::JsonTooLarge { n_bytes: 0xffff_ffff, .. })));
        head[..4].fill(0);
        assert!(matches!(read_all(&head).await, Err(FrameError::BlobTooLarge { n_bytes: u64::MAX, .. })));
    }
}
