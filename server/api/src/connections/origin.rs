//! Who is at a connection's other end, as far as it is known before anything was read from it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A peer whose connections are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// By the numbers of process and user.
    Process(i32, u32),
    /// A process of another PID namespace, which has no number here.
    User(u32),
    Machine(IpAddr),
    /// The first 64 bits of an address: a machine has all the others.
    Network(Ipv6Addr),
    Unknown,
}

impl Origin {
    pub(crate) fn of_process(pid: Option<i32>, uid: u32) -> Self {
        match pid {
            Some(pid) if pid > 0 => Self::Process(pid, uid),
            _ => Self::User(uid),
        }
    }

    pub(crate) fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                Self::Network(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
            }
            address => Self::Machine(address),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid, uid) => write!(f, "process {pid} of user {uid}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Machine(address) => write!(f, "{address}"),
            Self::Network(address) => write!(f, "{address}/64"),
            Self::Unknown => f.write_str("an unknown peer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_one_peer_whatever_addresses_it_makes_up() {
        let of = |text: &str| Origin::of_address(text.parse().expect("an address"));
        assert_eq!(of("10.0.0.7").to_string(), "10.0.0.7");
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
        assert_ne!(of("10.0.0.8"), of("10.0.0.7"));
        assert_eq!(of("fd00::1"), of("fd00::ffff:2"));
        assert_ne!(of("fd00:0:0:1::1"), of("fd00::1"));
        assert_eq!(of("fd00::1").to_string(), "fd00::/64");
        assert_eq!(of("::1").to_string(), "::1");
        assert_eq!(Origin::of_process(Some(0), 7), Origin::User(7));
        assert_ne!(Origin::of_process(Some(1), 7), Origin::of_process(Some(2), 7));
    }
}
