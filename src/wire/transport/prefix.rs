//! Source prefixes: what a bound counts as one sender.
//!
//! Owns nothing. Promises: addresses that one subscriber can choose among have one prefix; who maps IPv4 into IPv6 gains none.

use std::net::{IpAddr, SocketAddr};

/// An IPv4 address, or the upper 64 bits of an IPv6 one: what a provider gives to one subscriber.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SourcePrefix {
    /// A whole IPv4 address.
    V4([u8; 4]),
    /// The network of an IPv6 address.
    V6([u8; 8]),
}

impl SourcePrefix {
    /// The prefix of an address, whatever its port.
    pub fn of(address: &SocketAddr) -> SourcePrefix {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => SourcePrefix::V4(ip.octets()),
            IpAddr::V6(ip) => SourcePrefix::V6(*ip.octets().first_chunk().expect("16 bytes begin with 8")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_has_one_prefix_however_it_writes_its_address() {
        let of = |text: &str| SourcePrefix::of(&text.parse().expect("an address"));
        assert_eq!(of("10.0.0.1:1"), of("10.0.0.1:2"));
        assert_eq!(of("10.0.0.1:1"), of("[::ffff:10.0.0.1]:1"));
        assert_ne!(of("10.0.0.1:1"), of("10.0.0.2:1"));
        assert_eq!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:2:ffff::9]:1"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
    }
}
