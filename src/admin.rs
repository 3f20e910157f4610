//! Health and metrics over HTTP, for operators and probes. Shares no task and no lock with the data path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::drain::{Guest, Watcher};
use crate::metrics::Metrics;
use crate::peek::PeekBudget;

/// What the pages tell about.
#[derive(Clone, Debug)]
pub struct Told {
    pub metrics: Arc<Metrics>,
    pub budget: Arc<PeekBudget>,
    pub watcher: Watcher,
}

/// `/healthz` and `/readyz`.
pub fn health_pages(told: &Told) -> Router {
    let watcher = told.watcher.clone();
    let ready = move || async move {
        if watcher.is_serving() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") }
    };
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

/// The health pages and `/metrics`.
pub fn admin_pages(told: &Told) -> Router {
    let (metrics, budget) = (Arc::clone(&told.metrics), Arc::clone(&told.budget));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let page = move || async move { ([(header::CONTENT_TYPE, kind)], metrics.page(budget.held())) };
    health_pages(told).route("/metrics", get(page))
}

/// Serves pages until the guest must leave: probes may still ask while connections drain.
pub async fn serve(listener: TcpListener, pages: Router, mut guest: Guest) {
    tokio::select! {
        served = axum::serve(listener, pages) => {
            if let Err(error) = served {
                tracing::error!(%error, "the admin pages stopped");
            }
        }
        () = guest.cut() => {}
    }
}

/// Asks a running egret for `/healthz`, for a container's health check.
///
/// # Errors
/// Where nobody answers within two seconds, or not with 200.
pub async fn ask(bind: SocketAddr) -> io::Result<()> {
    let mut address = bind;
    if address.ip().is_unspecified() {
        address.set_ip(if bind.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: egret\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(io::Error::other("not healthy")) }
    };
    tokio::time::timeout(Duration::from_secs(2), asking).await?
}
