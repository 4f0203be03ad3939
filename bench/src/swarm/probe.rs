//! A first look at the server: one guest joins over TCP, takes the Welcome and leaves.
//!
//! Owns nothing. Promises: leaves no character behind; ends within some seconds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringshard::exit::{Code, Failure};
use ringshard::limits::BODY_BYTES_MAX;
use ringshard::tools::dev_token;
use ringshard::wire::client::{ClientOptions, ClientSession};
use ringshard::wire::messages::{ServerMessage, Welcome};
use ringshard::wire::transport::stream::{LENGTH_BYTES, StreamReader, write_frame};
use ringshard::wire::transport::token::UserData;

/// Longest wait for a connection, and then for a Welcome.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two bodies.
const SEND_EVERY: Duration = Duration::from_millis(20);

/// What the server says about itself.
pub fn welcome_of(server: SocketAddr) -> Result<Welcome, Failure> {
    let nobody = |what: String| {
        let text = format!(
            "no ringshard --dev server admits anybody at {server}: {what}; start `ringshard serve --dev`, or see in `ringshard status` why it admits nobody"
        );
        Failure::new(Code::Unavailable, text)
    };
    let failed = |error: std::io::Error| nobody(error.to_string());
    let wishes = UserData { spawn_point: None, peaceful: true, reusable: true };
    let token = dev_token(&[server], 1, 60, wishes)?;
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).map_err(failed)?;
    stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(SEND_EVERY))).map_err(failed)?;
    send(&mut stream, &token).map_err(failed)?;
    let mut session = ClientSession::new(ClientOptions { packed: true, decode: false, reliable_transport: true });
    let mut reader = StreamReader::of_server();
    let (began, mut buffer) = (Instant::now(), vec![0; 65_536]);
    for tick in 0.. {
        let mut body = [0; BODY_BYTES_MAX];
        let length = session.poll_body(tick, 0, &mut body);
        send(&mut stream, &body[..length]).map_err(failed)?;
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Err(nobody("it closed the connection".to_owned())),
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(failed(error)),
        };
        let fed = reader.feed(&buffer[..length], |body| session.handle_body(body).is_ok());
        fed.map_err(|_| nobody("what answers does not speak our protocol".to_owned()))?;
        while let Some(message) = session.poll_message() {
            match message {
                ServerMessage::Welcome(welcome) => return Ok(welcome),
                ServerMessage::Closing { reason } => return Err(nobody(format!("it refused a guest: {reason:?}"))),
                // A guest has no goods, and nothing else is said before the Welcome.
                _ => (),
            }
        }
        if began.elapsed() > PATIENCE {
            break;
        }
    }
    Err(nobody(format!("it took the connection but said nothing for {} s", PATIENCE.as_secs())))
}

fn send(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    let mut frame = vec![0; LENGTH_BYTES + body.len()];
    write_frame(body, &mut frame);
    stream.write_all(&frame)
}
