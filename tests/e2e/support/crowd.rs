//! Many clients, each from an address of its own, and a server for all of them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::PATIENCE;

/// A connection from an address.
pub fn from(ip: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A server that answers each request, however many keep their connections: a thread for each would be what a test
/// measures.
pub fn serving(address: SocketAddr) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
    runtime.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut head, mut chunk) = (Vec::new(), [0; 1024]);
                while let Ok(n @ 1..) = stream.read(&mut chunk).await {
                    head.extend_from_slice(&chunk[..n]);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    runtime
}

/// Opens so many connections from an address, says something on each, and keeps those that are not refused.
pub fn crowd(ip: IpAddr, to: SocketAddr, count: usize, says: impl Fn(usize) -> Vec<u8> + Sync) -> Vec<TcpStream> {
    crowd_that(ip, to, count, |stream, n| stream.write_all(&says(n)).is_ok())
}

pub fn crowd_that(
    ip: IpAddr,
    to: SocketAddr,
    count: usize,
    stays: impl Fn(&mut TcpStream, usize) -> bool + Sync,
) -> Vec<TcpStream> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let open = || {
            let mut kept = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return kept;
                }
                if let Ok(mut stream) = from(ip, to)
                    && stays(&mut stream, n)
                {
                    kept.push(stream);
                }
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(open)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}
