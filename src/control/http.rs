//! Control HTTP: `/status` and `/healthz`.
//!
//! Promises: read-only, small answers, an unknown page is answered in words. Never blocks the control thread.

use std::net::TcpListener;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Json;
use axum::routing::get;

use super::status::{Board, StatusPage};

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, board: Arc<Board>) {
    let app = axum::Router::new()
        .route("/status", get(status))
        .route("/healthz", get(async || "alive\n"))
        .fallback(unknown)
        .with_state(board);
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener does not block");
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
