//! Health and metrics over HTTP, for operators and probes. Shares no task and no lock with the data path.

mod visitors;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::budget::Budget;
use crate::drain::{DrainGuard, Watcher};
use crate::metrics::Metrics;
use crate::netfilter::LiveTable;
use crate::netfilter::sidecar::PodTable;
use crate::record::LogState;
use visitors::BoundedListener;
pub use visitors::{Access, MAX_VISITORS};

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Pages {
    pub metrics: Arc<Metrics>,
    pub peek_memory: Arc<Budget>,
    pub watcher: Watcher,
    /// On a next hop: without its rules it lets nothing through.
    pub table: Option<Arc<LiveTable>>,
    /// In a sidecar: without it the pod's traffic leaves unjudged.
    pub pod_table: Option<Arc<PodTable>>,
    pub log: Arc<LogState>,
}

/// `/healthz` and `/readyz`.
pub fn health_pages(of: &Pages) -> Router {
    let of = of.clone();
    let ready = move || async move {
        let stands = of.table.as_ref().is_none_or(|table| table.is_in_place())
            && of.pod_table.as_ref().is_none_or(|table| table.is_in_place());
        let log_stops = of.log.stops_service();
        let (status, word) = match (of.watcher.is_serving(), stands, log_stops) {
            (true, true, false) => (StatusCode::OK, "ready"),
            (true, false, _) => (StatusCode::SERVICE_UNAVAILABLE, "the kernel's rules are not in place"),
            (true, true, true) => {
                (StatusCode::SERVICE_UNAVAILABLE, "the access log cannot be written (log.overflow: block)")
            }
            (false, ..) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        };
        of.log.count(&of.metrics);
        // A fault that every instance has alike is shown, and takes none of them out of service.
        let faults: String = of.metrics.faults().map(|fault| format!("fault: {fault}\n")).collect();
        (status, format!("{word}\n{faults}"))
    };
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

/// The health pages and `/metrics`.
pub fn admin_pages(of: &Pages) -> Router {
    let (metrics, budget, log) = (Arc::clone(&of.metrics), Arc::clone(&of.peek_memory), Arc::clone(&of.log));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let page = move || async move {
        log.count(&metrics);
        ([(header::CONTENT_TYPE, kind)], metrics.page(budget.held()))
    };
    health_pages(of).route("/metrics", get(page))
}

/// Serves pages until the guard must leave: probes may still ask while connections drain.
pub async fn serve(listener: TcpListener, access: Access, pages: Router, guard: DrainGuard) {
    tokio::select! {
        served = axum::serve(BoundedListener::new(listener, access), pages) => {
            if let Err(error) = served {
                tracing::error!(%error, "the admin pages stopped");
            }
        }
        () = guard.cut() => {}
    }
}

/// Asks a running egret for one of its pages.
///
/// # Errors
/// Where there is no answer within two seconds, or not with 200: then the page says why.
pub async fn ask(bind: SocketAddr, page: &str) -> io::Result<()> {
    let port = bind.port();
    // A wildcard answers on loopback; an IPv6 one may be asked for on a machine without IPv6 loopback.
    let places = match bind.ip() {
        ip if !ip.is_unspecified() => vec![bind],
        ip if ip.is_ipv4() => vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)],
        _ => vec![SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)],
    };
    let asking = async {
        let mut stream = TcpStream::connect(places.as_slice()).await?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: egret\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        if answer.starts_with(b"HTTP/1.1 200 ") {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&answer);
        let why = text.split_once("\r\n\r\n").and_then(|(_, body)| body.lines().next()).unwrap_or("no answer");
        Err(io::Error::other(why.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(2), asking).await?
}
