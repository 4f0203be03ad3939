//! Connect tokens: who may join which servers until when.
//!
//! Owns the layout of the 2,048 bytes and of the private part, and what we put into the user data. Promises: reading
//! never panics, allocates nothing and believes only what the private key proves. Draws random bytes only in
//! [`random_bytes`], for those who issue tokens; never reads a clock.

use super::crypto::{KEY_BYTES, TAG_BYTES, TOKEN_NONCE_BYTES, TokenKey};
use crate::limits::TOKEN_BYTES;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The protocol that both sides must name: "RING", layout 1, version 1.
pub const PROTOCOL_ID: u64 = 0x5249_4e47_0001_0001;
/// The private key of development servers. Known to all: a server takes it on loopback only.
pub const DEV_KEY: [u8; KEY_BYTES] = *b"ringshard development key, loop.";
/// The version of netcode, as it stands in tokens, requests and associated data.
pub const VERSION: &[u8; 13] = b"NETCODE 1.02\0";
/// Bytes of the sealed private part, its tag included.
pub const PRIVATE_BYTES: usize = 1_024;
/// Bytes of the user data.
pub const USER_DATA_BYTES: usize = 256;
/// Servers that one token can name.
pub const TOKEN_SERVERS_MAX: usize = 32;

const IPV4: u8 = 1;
const IPV6: u8 = 2;
const USER_DATA_MAGIC: [u8; 4] = *b"RSU1";
const FLAG_SPAWN_POINT: u8 = 1;
const FLAG_PEACEFUL: u8 = 2;
const FLAG_REUSABLE: u8 = 4;

/// Random bytes from the operating system, for keys and nonces of new tokens.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}

/// Why bytes are no connect token, or fields cannot be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenError {
    /// Not 2,048 bytes.
    Length,
    /// Not netcode 1.02.
    Version,
    /// Another protocol id than [`PROTOCOL_ID`].
    Protocol,
    /// Created after it expires.
    CreatedAfterExpiry,
    /// No server, or more than [`TOKEN_SERVERS_MAX`].
    ServerCount,
    /// A server's address is neither IPv4 nor IPv6.
    AddressKind,
}

impl fmt::Display for TokenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            TokenError::Length => "a connect token has 2048 bytes; decode the base64 line first",
            TokenError::Version => "the connect token is not of netcode 1.02; issue it with `ringshard token`",
            TokenError::Protocol => "the connect token is for another protocol; issue it with this version's backend",
            TokenError::CreatedAfterExpiry => {
                "the connect token expires before it was created; check the backend's clock"
            }
            TokenError::ServerCount => "a connect token names 1 to 32 servers; give it that many",
            TokenError::AddressKind => "the connect token has a server that is neither IPv4 nor IPv6; issue it again",
        };
        formatter.write_str(what)
    }
}

impl std::error::Error for TokenError {}

/// Wishes of a token about its character. Bytes that are not ours mean no wishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserData {
    /// Where to stand at first: x and y in 1/256 m.
    pub spawn_point: Option<(i32, i32)>,
    /// Monsters are to ignore the character. There are none yet: it is kept as a tag.
    pub peaceful: bool,
    /// The token may be shown again and again, each time for a new guest. Development servers only, never by UDP.
    pub reusable: bool,
}

impl UserData {
    /// The 256 bytes that go into a token.
    pub fn write(&self) -> [u8; USER_DATA_BYTES] {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let (x, y) = self.spawn_point.unwrap_or_default();
        let mut bytes = [0; USER_DATA_BYTES];
        bytes[..4].copy_from_slice(&USER_DATA_MAGIC);
        bytes[4] = flag(self.spawn_point.is_some(), FLAG_SPAWN_POINT)
            | flag(self.peaceful, FLAG_PEACEFUL)
            | flag(self.reusable, FLAG_REUSABLE);
        bytes[8..12].copy_from_slice(&x.to_le_bytes());
        bytes[12..16].copy_from_slice(&y.to_le_bytes());
        bytes
    }

    /// Reads the wishes out of a token's user data.
    pub fn read(bytes: &[u8; USER_DATA_BYTES]) -> UserData {
        let int = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != USER_DATA_MAGIC {
            return UserData::default();
        }
        let flag = |flag: u8| bytes[4] & flag != 0;
        UserData {
            spawn_point: flag(FLAG_SPAWN_POINT).then(|| (int(8), int(12))),
            peaceful: flag(FLAG_PEACEFUL),
            reusable: flag(FLAG_REUSABLE),
        }
    }
}

/// The servers that a token is good for: 1 to 32 addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerList {
    addresses: [SocketAddr; TOKEN_SERVERS_MAX],
    count: usize,
}

impl ServerList {
    /// Errors: [`TokenError::ServerCount`].
    pub fn new(servers: &[SocketAddr]) -> Result<ServerList, TokenError> {
        if servers.is_empty() || servers.len() > TOKEN_SERVERS_MAX {
            return Err(TokenError::ServerCount);
        }
        let mut addresses = [SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0); TOKEN_SERVERS_MAX];
        addresses[..servers.len()].copy_from_slice(servers);
        Ok(ServerList { addresses, count: servers.len() })
    }

    /// The addresses in the order in which a client tries them.
    pub fn as_slice(&self) -> &[SocketAddr] {
        &self.addresses[..self.count]
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.put(&(self.count as u32).to_le_bytes());
        for address in self.as_slice() {
            match address.ip() {
                IpAddr::V4(ip) => {
                    writer.put(&[IPV4]);
                    writer.put(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    writer.put(&[IPV6]);
                    for segment in ip.segments() {
                        writer.put(&segment.to_le_bytes());
                    }
                }
            }
            writer.put(&address.port().to_le_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<ServerList, TokenError> {
        let count = u32::from_le_bytes(reader.take()) as usize;
        if count == 0 || count > TOKEN_SERVERS_MAX {
            return Err(TokenError::ServerCount);
        }
        let mut addresses = [SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0); TOKEN_SERVERS_MAX];
        for address in &mut addresses[..count] {
            let ip = match reader.take() {
                [IPV4] => IpAddr::V4(Ipv4Addr::from(reader.take::<4>())),
                [IPV6] => {
                    let mut segments = [0; 8];
                    segments.fill_with(|| u16::from_le_bytes(reader.take()));
                    IpAddr::V6(Ipv6Addr::from(segments))
                }
                _ => return Err(TokenError::AddressKind),
            };
            *address = SocketAddr::new(ip, u16::from_le_bytes(reader.take()));
        }
        Ok(ServerList { addresses, count })
    }
}

/// What a backend grants, before it is sealed.
#[derive(Clone, Copy, Debug)]
pub struct TokenGrant<'a> {
    /// The account; in this version also the character.
    pub client_id: u64,
    /// Unix seconds.
    pub create_unix_s: u64,
    /// Unix seconds; the token is good before, not at, this second.
    pub expire_unix_s: u64,
    /// Seconds of silence after which either side gives up; zero or less: never.
    pub timeout_s: i32,
    /// Where to connect, in this order.
    pub servers: &'a [SocketAddr],
    /// Wishes about the character.
    pub user_data: UserData,
}

/// What makes one token unlike all others. Never use one twice.
#[derive(Clone, Debug)]
pub struct TokenSecrets {
    /// Nonce of the private part.
    pub nonce: [u8; TOKEN_NONCE_BYTES],
    /// Seals what the client sends.
    pub client_to_server_key: [u8; KEY_BYTES],
    /// Seals what the server sends.
    pub server_to_client_key: [u8; KEY_BYTES],
}

impl TokenSecrets {
    /// Fresh ones from the operating system.
    pub fn random() -> TokenSecrets {
        TokenSecrets {
            nonce: random_bytes(),
            client_to_server_key: random_bytes(),
            server_to_client_key: random_bytes(),
        }
    }
}

/// A connect token as a client holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectToken {
    /// Unix seconds.
    pub create_unix_s: u64,
    /// Unix seconds.
    pub expire_unix_s: u64,
    /// Nonce of the private part.
    pub nonce: [u8; TOKEN_NONCE_BYTES],
    /// The sealed private part, for the server alone.
    pub sealed: [u8; PRIVATE_BYTES],
    /// Seconds of silence after which either side gives up; zero or less: never.
    pub timeout_s: i32,
    /// Where to connect, in this order.
    pub servers: ServerList,
    /// Seals what the client sends.
    pub client_to_server_key: [u8; KEY_BYTES],
    /// Seals what the server sends.
    pub server_to_client_key: [u8; KEY_BYTES],
}

impl ConnectToken {
    /// Seals a grant under the key that backend and servers share.
    ///
    /// Errors: [`TokenError::ServerCount`], [`TokenError::CreatedAfterExpiry`].
    pub fn issue(
        grant: &TokenGrant<'_>,
        secrets: &TokenSecrets,
        private_key: &[u8; KEY_BYTES],
    ) -> Result<ConnectToken, TokenError> {
        if grant.create_unix_s > grant.expire_unix_s {
            return Err(TokenError::CreatedAfterExpiry);
        }
        let servers = ServerList::new(grant.servers)?;
        let private = PrivateToken {
            client_id: grant.client_id,
            timeout_s: grant.timeout_s,
            servers,
            client_to_server_key: secrets.client_to_server_key,
            server_to_client_key: secrets.server_to_client_key,
            user_data: grant.user_data.write(),
        };
        Ok(ConnectToken {
            create_unix_s: grant.create_unix_s,
            expire_unix_s: grant.expire_unix_s,
            nonce: secrets.nonce,
            sealed: private.seal(&TokenKey::new(private_key), grant.expire_unix_s, &secrets.nonce),
            timeout_s: grant.timeout_s,
            servers,
            client_to_server_key: secrets.client_to_server_key,
            server_to_client_key: secrets.server_to_client_key,
        })
    }

    /// The bytes that a client gets from the backend.
    pub fn write(&self) -> [u8; TOKEN_BYTES] {
        let mut bytes = [0; TOKEN_BYTES];
        let mut writer = Writer(&mut bytes);
        writer.put(VERSION);
        writer.put(&PROTOCOL_ID.to_le_bytes());
        writer.put(&self.create_unix_s.to_le_bytes());
        writer.put(&self.expire_unix_s.to_le_bytes());
        writer.put(&self.nonce);
        writer.put(&self.sealed);
        writer.put(&self.timeout_s.to_le_bytes());
        self.servers.write(&mut writer);
        writer.put(&self.client_to_server_key);
        writer.put(&self.server_to_client_key);
        bytes
    }

    /// Reads a token; what stands in clear is checked, the private part stays sealed.
    pub fn parse(bytes: &[u8]) -> Result<ConnectToken, TokenError> {
        let bytes: &[u8; TOKEN_BYTES] = bytes.try_into().map_err(|_| TokenError::Length)?;
        let mut reader = Reader(bytes);
        if reader.take() != *VERSION {
            return Err(TokenError::Version);
        }
        if u64::from_le_bytes(reader.take()) != PROTOCOL_ID {
            return Err(TokenError::Protocol);
        }
        let token = ConnectToken {
            create_unix_s: u64::from_le_bytes(reader.take()),
            expire_unix_s: u64::from_le_bytes(reader.take()),
            nonce: reader.take(),
            sealed: reader.take(),
            timeout_s: i32::from_le_bytes(reader.take()),
            servers: ServerList::read(&mut reader)?,
            client_to_server_key: reader.take(),
            server_to_client_key: reader.take(),
        };
        if token.create_unix_s > token.expire_unix_s {
            return Err(TokenError::CreatedAfterExpiry);
        }
        Ok(token)
    }
}

/// The private part of a token, as only backend and servers can read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrivateToken {
    /// The account; in this version also the character.
    pub client_id: u64,
    /// Seconds of silence after which the server gives up; zero or less: never.
    pub timeout_s: i32,
    /// The servers that take this token.
    pub servers: ServerList,
    /// Seals what the client sends.
    pub client_to_server_key: [u8; KEY_BYTES],
    /// Seals what the server sends.
    pub server_to_client_key: [u8; KEY_BYTES],
    /// Wishes about the character, see [`UserData::read`].
    pub user_data: [u8; USER_DATA_BYTES],
}

impl PrivateToken {
    /// The sealed bytes; their last 16, the MAC, tell tokens apart.
    pub fn seal(&self, key: &TokenKey, expire_unix_s: u64, nonce: &[u8; TOKEN_NONCE_BYTES]) -> [u8; PRIVATE_BYTES] {
        let mut bytes = [0; PRIVATE_BYTES];
        let mut writer = Writer(&mut bytes);
        writer.put(&self.client_id.to_le_bytes());
        writer.put(&self.timeout_s.to_le_bytes());
        self.servers.write(&mut writer);
        writer.put(&self.client_to_server_key);
        writer.put(&self.server_to_client_key);
        writer.put(&self.user_data);
        key.seal(nonce, &associated(expire_unix_s), &mut bytes);
        bytes
    }

    /// Opens the sealed bytes in place. `None`: the key or anything around them is another.
    /// Errors inside: what the private part says makes no sense.
    pub fn open(
        key: &TokenKey,
        expire_unix_s: u64,
        nonce: &[u8; TOKEN_NONCE_BYTES],
        sealed: &mut [u8; PRIVATE_BYTES],
    ) -> Option<Result<PrivateToken, TokenError>> {
        let text = key.open(nonce, &associated(expire_unix_s), sealed)?;
        Some(PrivateToken::read(&mut Reader(text)))
    }

    fn read(reader: &mut Reader<'_>) -> Result<PrivateToken, TokenError> {
        Ok(PrivateToken {
            client_id: u64::from_le_bytes(reader.take()),
            timeout_s: i32::from_le_bytes(reader.take()),
            servers: ServerList::read(reader)?,
            client_to_server_key: reader.take(),
            server_to_client_key: reader.take(),
            user_data: reader.take(),
        })
    }
}

fn associated(expire_unix_s: u64) -> [u8; VERSION.len() + 16] {
    let mut bytes = [0; VERSION.len() + 16];
    let mut writer = Writer(&mut bytes);
    writer.put(VERSION);
    writer.put(&PROTOCOL_ID.to_le_bytes());
    writer.put(&expire_unix_s.to_le_bytes());
    bytes
}

/// Writes fields one after another. The layouts have a fixed size that holds 32 IPv6 servers, so room is never short.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        self.0.split_off_mut(..field.len()).expect("the layout has room").copy_from_slice(field);
    }
}

/// Reads fields one after another; see [`Writer`] for why the bytes never run out.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the layout has room");
        self.0 = rest;
        *field
    }
}

const LONGEST_SERVERS: usize = 4 + TOKEN_SERVERS_MAX * (1 + 16 + 2);
const _: () = assert!(8 + 4 + LONGEST_SERVERS + 2 * KEY_BYTES + USER_DATA_BYTES <= PRIVATE_BYTES - TAG_BYTES);
const _: () = assert!(13 + 8 + 16 + 24 + PRIVATE_BYTES + 4 + LONGEST_SERVERS + 2 * KEY_BYTES <= TOKEN_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grant(servers: &[SocketAddr]) -> TokenGrant<'_> {
        TokenGrant {
            client_id: 0x1122_3344_5566_7788,
            create_unix_s: 1_000,
            expire_unix_s: 1_030,
            timeout_s: 5,
            servers,
            user_data: UserData { spawn_point: Some((-300, 70_000)), peaceful: true, reusable: false },
        }
    }

    fn secrets() -> TokenSecrets {
        TokenSecrets { nonce: [3; 24], client_to_server_key: [4; 32], server_to_client_key: [5; 32] }
    }

    fn servers() -> [SocketAddr; 2] {
        ["10.1.2.3:7777".parse().unwrap(), "[2001:db8::a:1]:4660".parse().unwrap()]
    }

    #[test]
    fn public_part_lies_byte_for_byte_as_the_standard_says() {
        let token = ConnectToken::issue(&grant(&servers()), &secrets(), &DEV_KEY).unwrap();
        let bytes = token.write();
        assert_eq!(bytes[..13], *b"NETCODE 1.02\0");
        assert_eq!(bytes[13..21], [0x01, 0x00, 0x01, 0x00, 0x47, 0x4e, 0x49, 0x52]);
        assert_eq!(bytes[21..29], 1_000u64.to_le_bytes());
        assert_eq!(bytes[29..37], 1_030u64.to_le_bytes());
        assert_eq!(bytes[37..61], [3; 24]);
        assert_eq!(bytes[61..1085], token.sealed);
        assert_eq!(bytes[1085..1089], 5i32.to_le_bytes());
        assert_eq!(bytes[1089..1093], 2u32.to_le_bytes());
        assert_eq!(bytes[1093..1100], [1, 10, 1, 2, 3, 0x61, 0x1e]);
        let ipv6 = [2, 0x01, 0x20, 0xb8, 0x0d, 0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0, 1, 0, 0x34, 0x12];
        assert_eq!(bytes[1100..1119], ipv6);
        assert_eq!(bytes[1119..1151], [4; 32]);
        assert_eq!(bytes[1151..1183], [5; 32]);
        assert_eq!(bytes[1183..], [0; 2048 - 1183]);
        assert_eq!(ConnectToken::parse(&bytes), Ok(token));
    }

    #[test]
    fn private_part_opens_with_its_key_nonce_and_expiry_alone() {
        let token = ConnectToken::issue(&grant(&servers()), &secrets(), &DEV_KEY).unwrap();
        let open = |key: &[u8; 32], expire, nonce: &[u8; 24], sealed: [u8; PRIVATE_BYTES]| {
            PrivateToken::open(&TokenKey::new(key), expire, nonce, &mut { sealed })
        };
        let private = open(&DEV_KEY, 1_030, &[3; 24], token.sealed).unwrap().unwrap();
        assert_eq!(private.client_id, 0x1122_3344_5566_7788);
        assert_eq!(private.timeout_s, 5);
        assert_eq!(private.servers.as_slice(), servers());
        assert_eq!((private.client_to_server_key, private.server_to_client_key), ([4; 32], [5; 32]));
        assert_eq!(UserData::read(&private.user_data), grant(&servers()).user_data);

        assert!(open(&[0; 32], 1_030, &[3; 24], token.sealed).is_none());
        assert!(open(&DEV_KEY, 1_031, &[3; 24], token.sealed).is_none());
        assert!(open(&DEV_KEY, 1_030, &[0; 24], token.sealed).is_none());
        let mut forged = token.sealed;
        forged[0] ^= 1;
        assert!(open(&DEV_KEY, 1_030, &[3; 24], forged).is_none());
    }

    #[test]
    fn private_part_lies_byte_for_byte_as_the_standard_says() {
        let mut token = ConnectToken::issue(&grant(&servers()), &secrets(), &DEV_KEY).unwrap();
        let text = TokenKey::new(&DEV_KEY).open(&[3; 24], &associated(1_030), &mut token.sealed).unwrap();
        assert_eq!(text.len(), 1_008);
        assert_eq!(text[..8], 0x1122_3344_5566_7788u64.to_le_bytes());
        assert_eq!(text[8..12], 5i32.to_le_bytes());
        assert_eq!(text[12..16], 2u32.to_le_bytes());
        assert_eq!(text[16..23], [1, 10, 1, 2, 3, 0x61, 0x1e]);
        assert_eq!(text[42..74], [4; 32]);
        assert_eq!(text[74..106], [5; 32]);
        assert_eq!(text[106..110], *b"RSU1");
        assert_eq!(text[110..114], [FLAG_SPAWN_POINT | FLAG_PEACEFUL, 0, 0, 0]);
        assert_eq!(text[114..118], (-300i32).to_le_bytes());
        assert_eq!(text[118..122], 70_000i32.to_le_bytes());
        assert_eq!(text[122..], [0; 1_008 - 122]);
    }

    #[test]
    fn the_most_servers_fit_and_other_numbers_are_refused() {
        let most = [servers()[1]; TOKEN_SERVERS_MAX];
        let token = ConnectToken::issue(&grant(&most), &secrets(), &DEV_KEY).unwrap();
        assert_eq!(ConnectToken::parse(&token.write()).unwrap().servers.as_slice(), most);
        let issue = |servers: &[SocketAddr]| ConnectToken::issue(&grant(servers), &secrets(), &DEV_KEY).err();
        assert_eq!(issue(&[]), Some(TokenError::ServerCount));
        assert_eq!(issue(&[servers()[0]; 33]), Some(TokenError::ServerCount));
        let backwards = TokenGrant { create_unix_s: 1_031, ..grant(&most) };
        assert_eq!(ConnectToken::issue(&backwards, &secrets(), &DEV_KEY).err(), Some(TokenError::CreatedAfterExpiry));
    }

    #[test]
    fn parsing_refuses_each_fault_by_name() {
        let bytes = ConnectToken::issue(&grant(&servers()), &secrets(), &DEV_KEY).unwrap().write();
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes;
            bytes[at] = to;
            ConnectToken::parse(&bytes).err()
        };
        assert_eq!(ConnectToken::parse(&bytes[1..]), Err(TokenError::Length));
        assert_eq!(changed(12, b'!'), Some(TokenError::Version));
        assert_eq!(changed(20, 0), Some(TokenError::Protocol));
        assert_eq!(changed(28, 1), Some(TokenError::CreatedAfterExpiry));
        assert_eq!(changed(1089, 0), Some(TokenError::ServerCount));
        assert_eq!(changed(1089, 33), Some(TokenError::ServerCount));
        assert_eq!(changed(1092, 1), Some(TokenError::ServerCount));
        assert_eq!(changed(1093, 0), Some(TokenError::AddressKind));
        assert_eq!(changed(1093, 3), Some(TokenError::AddressKind));
    }

    #[test]
    fn user_data_that_is_not_ours_means_no_wishes() {
        assert_eq!(UserData::read(&[0xff; USER_DATA_BYTES]), UserData::default());
        assert_eq!(UserData::read(&[0; USER_DATA_BYTES]), UserData::default());
        let reusable = UserData { reusable: true, ..UserData::default() };
        assert_eq!(UserData::read(&reusable.write()), reusable);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(
            noise in prop::collection::vec((0..TOKEN_BYTES, any::<u8>()), 0..20),
            bytes in prop::collection::vec(any::<u8>(), 0..2_100),
        ) {
            let _ = ConnectToken::parse(&bytes);
            let mut token = ConnectToken::issue(&grant(&servers()), &secrets(), &DEV_KEY).unwrap().write();
            for (at, byte) in noise {
                token[at] = byte;
            }
            if let Ok(read) = ConnectToken::parse(&token) {
                prop_assert_eq!(ConnectToken::parse(&read.write()), Ok(read));
            }
        }

        #[test]
        fn any_private_text_reads_or_is_refused(mut text in prop::collection::vec(any::<u8>(), PRIVATE_BYTES), few: bool) {
            if few {
                text[13..16].fill(0);
            }
            let key = TokenKey::new(&DEV_KEY);
            key.seal(&[3; 24], &associated(9), &mut text);
            let mut sealed: [u8; PRIVATE_BYTES] = text.try_into().unwrap();
            prop_assert!(PrivateToken::open(&key, 9, &[3; 24], &mut sealed).is_some());
        }
    }
}
