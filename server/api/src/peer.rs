//! Who calls, and how long he waits.

use std::time::Duration;

use piecewised_scheduler::Peer;
use tonic::{
    Request,
    metadata::MetadataMap,
    transport::server::{TcpConnectInfo, UdsConnectInfo},
};

/// The caller as far as taking turns and limits go: the process at the other end of the Unix socket, the connection over TCP. Who the
/// system cannot tell apart (processes of another PID namespace have no number here) are one peer.
pub(crate) fn peer<T>(request: &Request<T>) -> Peer {
    let extensions = request.extensions();
    if let Some(credentials) = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred) {
        return match credentials.pid() {
            Some(pid) if pid > 0 => Peer::new(format!("process {pid} of user {}", credentials.uid())),
            _ => Peer::new(format!("user {}", credentials.uid())),
        };
    }
    match extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr) {
        Some(address) => Peer::new(address.to_string()),
        None => Peer::new("unknown"),
    }
}

/// The caller's user, where it comes through the Unix socket.
pub(crate) fn uid<T>(request: &Request<T>) -> Option<u32> {
    Some(request.extensions().get::<UdsConnectInfo>()?.peer_cred?.uid())
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
