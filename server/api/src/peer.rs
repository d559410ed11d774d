//! Who calls, and how long he waits.

use std::time::Duration;

use piecewised_scheduler::Peer;
use tonic::{Request, metadata::MetadataMap};

use crate::access::Caller;

/// The caller as far as taking turns and limits go: the process at the other end of the Unix socket, the connection over TCP. Who the
/// system cannot tell apart (processes of another PID namespace have no number here) are one peer.
pub(crate) fn peer<T>(request: &Request<T>) -> Peer {
    caller(request).map_or_else(|| Peer::new("unknown"), |caller| caller.peer.clone())
}

/// Who was let in; `None`: nobody was asked, which the daemon's services never are.
pub(crate) fn caller<T>(request: &Request<T>) -> Option<&Caller> {
    request.extensions().get::<Caller>()
}

/// How long the caller waits, as gRPC's `grpc-timeout` header has it: up to eight digits and a unit. One that is malformed counts as none.
pub(crate) fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("a header's value"));
            deadline(&metadata)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("10S"), Some(Duration::from_secs(10)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        assert_eq!(read("5n"), Some(Duration::from_nanos(5)));
        for wrong in ["", "S", "5", "5X", "-5S", "123456789S", "1.5S", " 5S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert_eq!(deadline(&MetadataMap::new()), None);
    }
}
