//! Health and metrics over HTTP, for operators and probes. Shares no task and no lock with the data path.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::drain::{Guest, Watcher};
use crate::metrics::Metrics;
use crate::netfilter::Kernel;
use crate::peek::PeekBudget;

/// What the pages tell about.
#[derive(Clone, Debug)]
pub struct Told {
    pub metrics: Arc<Metrics>,
    pub budget: Arc<PeekBudget>,
    pub watcher: Watcher,
    /// On a next hop: without its rules it lets nothing through.
    pub kernel: Option<Arc<Kernel>>,
}

/// `/healthz` and `/readyz`.
pub fn health_pages(told: &Told) -> Router {
    let told = told.clone();
    let ready = move || async move {
        let stands = told.kernel.as_ref().is_none_or(|kernel| kernel.is_in_place());
        let (status, word) = match (told.watcher.is_serving(), stands) {
            (true, true) => (StatusCode::OK, "ready"),
            (true, false) => (StatusCode::SERVICE_UNAVAILABLE, "the kernel's rules are not in place"),
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        };
        // What every instance has alike is told, and takes none of them out of service.
        let faults: String = told.metrics.faults().map(|fault| format!("fault: {fault}\n")).collect();
        (status, format!("{word}\n{faults}"))
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

/// Visitors of one set of pages at once; more wait in the kernel's queue, and take no descriptor from
/// the connections that egret is for.
const MAX_VISITORS: usize = 32;
/// How long one visit may take, from accept to the last byte.
const VISIT: Duration = Duration::from_secs(10);

/// A listener whose visitors are few and short.
struct Porch {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

/// One visit: past its time, reading and writing fail.
struct Visit {
    stream: TcpStream,
    over: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl axum::serve::Listener for Porch {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let over = Box::pin(tokio::time::sleep(VISIT));
                    return (Visit { stream, over, _place: place }, address);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Visit {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.over.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_over(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_over(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves pages until the guest must leave: probes may still ask while connections drain.
pub async fn serve(listener: TcpListener, pages: Router, guest: Guest) {
    let porch = Porch { listener, places: Arc::new(Semaphore::new(MAX_VISITORS)) };
    tokio::select! {
        served = axum::serve(porch, pages) => {
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
    let port = bind.port();
    // A wildcard answers on loopback; an IPv6 one may be asked for on a machine without IPv6 loopback.
    let places = match bind.ip() {
        ip if !ip.is_unspecified() => vec![bind],
        ip if ip.is_ipv4() => vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)],
        _ => vec![SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)],
    };
    let asking = async {
        let mut stream = TcpStream::connect(places.as_slice()).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: egret\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(io::Error::other("not healthy")) }
    };
    tokio::time::timeout(Duration::from_secs(2), asking).await?
}
