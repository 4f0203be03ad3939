//! Control HTTP: `/status` and `/healthz`.
//!
//! Promises: read-only, small answers, an unknown page is answered in words; connections and their time are bounded, so
//! that idle clients keep nobody out for long. Never blocks the control thread.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Json;
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::status::{Board, StatusPage};
use crate::limits::{CONTROL_HTTP_CONNECTIONS_MAX, CONTROL_HTTP_MS_MAX};

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, board: Arc<Board>) {
    let app = axum::Router::new()
        .route("/status", get(status))
        .route("/healthz", get(async || "alive\n"))
        .fallback(unknown)
        .with_state(board);
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener does not block");
    let listener = Bounded { listener, places: Arc::new(Semaphore::new(CONTROL_HTTP_CONNECTIONS_MAX)) };
    if let Err(error) = axum::serve(listener, app).await {
        eprintln!("control HTTP ended: {error}");
    }
}

async fn status(State(board): State<Arc<Board>>) -> Json<StatusPage> {
    Json(board.page())
}

async fn unknown(uri: Uri) -> (StatusCode, String) {
    (StatusCode::NOT_FOUND, format!("there is no {}; there are /status and /healthz\n", uri.path()))
}

/// A listener that holds a bounded number of connections; others wait in the kernel's queue.
struct Bounded {
    listener: tokio::net::TcpListener,
    places: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("nobody closes the semaphore");
        // axum's own listener waits out errors such as too many open files.
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let end = Box::pin(tokio::time::sleep(Duration::from_millis(CONTROL_HTTP_MS_MAX)));
        (Connection { stream, end, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that reads its end when its time is over.
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;
    use tokio::io::AsyncReadExt;

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_and_gives_its_place_to_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded { listener, places: Arc::new(Semaphore::new(1)) };
        let address = bounded.local_addr().unwrap();
        let _first = TcpStream::connect(address).await.unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let (mut held, _) = bounded.accept().await;
        let waits = tokio::time::timeout(Duration::from_millis(100), bounded.accept()).await;
        assert!(waits.is_err(), "the only place is taken");
        assert_eq!(held.read(&mut [0; 8]).await.unwrap(), 0, "its time is over");
        drop(held);
        bounded.accept().await;
    }
}
