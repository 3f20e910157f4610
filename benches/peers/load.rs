//! The load, and the origins behind the proxies: one thread each, so that they cost the proxies nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::peer::NAME;
use crate::support::hello::Hello;

/// What an origin answers a hello with: the beginning of a server's, as long as a round trip's bytes.
const ANSWER: [u8; 64] = {
    let mut answer = [7; 64];
    let head = [22, 3, 3, 0, 59, 2];
    let mut at = 0;
    while at < head.len() {
        answer[at] = head[at];
        at += 1;
    }
    answer
};

/// What happens after a hello and its answer; a port each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything comes back.
    Echo,
    /// As many bytes as the next eight say come down.
    Down,
    /// As many bytes as the next eight say go up, and are answered.
    Up,
}

impl Mode {
    pub const fn port(self) -> u16 {
        match self {
            Self::Echo => 10443,
            Self::Down => 10444,
            Self::Up => 10445,
        }
    }
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub to: SocketAddr,
    /// Asked for by CONNECT before the hello, and this port; otherwise by the hello alone.
    pub connect: Option<u16>,
}

impl From<SocketAddr> for Way {
    fn from(to: SocketAddr) -> Self {
        Self { to, connect: None }
    }
}

/// The origins.
pub struct Origins {
    ip: IpAddr,
    _runtime: Runtime,
}

impl Origins {
    pub fn start(ip: IpAddr) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for mode in [Mode::Echo, Mode::Down, Mode::Up] {
            let listener = runtime.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                socket.bind(SocketAddr::new(ip, mode.port())).unwrap();
                socket.listen(8192).unwrap()
            });
            runtime.spawn(accept(listener, mode));
        }
        Self { ip, _runtime: runtime }
    }

    pub fn address(&self, mode: Mode) -> SocketAddr {
        SocketAddr::new(self.ip, mode.port())
    }
}

async fn accept(listener: TcpListener, mode: Mode) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // Whatever ends a connection here, the load notices.
            let _ = serve(stream, mode).await;
        });
    }
}

async fn serve(mut stream: TcpStream, mode: Mode) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut hello = [0; 2048];
    if stream.read(&mut hello).await? == 0 {
        return Ok(());
    }
    stream.write_all(&ANSWER).await?;
    match mode {
        Mode::Echo => loop {
            stream.readable().await?;
            let mut bytes = [0; 64];
            match stream.try_read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(n) => stream.write_all(&bytes[..n]).await?,
                Err(_) => {}
            }
        },
        Mode::Down => {
            let mut left = stream.read_u64().await?;
            let chunk = vec![7; 256 << 10];
            while left > 0 {
                let n = chunk.len().min(usize::try_from(left).unwrap());
                stream.write_all(&chunk[..n]).await?;
                left -= n as u64;
            }
            stream.shutdown().await
        }
        Mode::Up => {
            let mut left = stream.read_u64().await?;
            let mut chunk = vec![0; 256 << 10];
            while left > 0 {
                match stream.read(&mut chunk).await? {
                    0 => return Ok(()),
                    n => left = left.saturating_sub(n as u64),
                }
            }
            stream.write_all(&ANSWER).await?;
            stream.shutdown().await
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn hello() -> Vec<u8> {
    // As long as a browser's without post-quantum shares.
    Hello::named(NAME).alpn(&["h2", "http/1.1"]).with(21, &[0; 300]).record()
}

/// A tunnel whose hello has been answered.
async fn tunnel(way: Way, hello: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(way.to).await?;
    stream.set_nodelay(true)?;
    if let Some(port) = way.connect {
        stream.write_all(format!("CONNECT {NAME}:{port} HTTP/1.1\r\nHost: {NAME}:{port}\r\n\r\n").as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
    }
    stream.write_all(hello).await?;
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, ANSWER);
    Ok(stream)
}

/// Whether a proxy lets the name through.
pub fn answers(way: Way) -> bool {
    let one = async { tokio::time::timeout(Duration::from_secs(2), tunnel(way, &hello())).await };
    runtime().block_on(one).is_ok_and(|stream| stream.is_ok())
}

/// New connections, each until the first bytes have come back.
pub fn connections(way: Way, count: usize, at_once: usize) {
    runtime().block_on(async {
        let hello = hello();
        let some = |n: usize| {
            let hello = &hello;
            async move {
                for _ in 0..n {
                    drop(tunnel(way, hello).await.unwrap());
                }
            }
        };
        let all = (0..at_once).map(|_| some(count / at_once));
        join_all(all).await;
    });
}

/// The 99th percentile of the time to the first bytes back, one connection at a time; microseconds.
pub fn latency(way: Way, count: usize) -> f64 {
    runtime().block_on(async {
        let hello = hello();
        let mut times = Vec::new();
        for _ in 0..count {
            let begun = Instant::now();
            drop(tunnel(way, &hello).await.unwrap());
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        times[times.len() * 99 / 100].as_secs_f64() * 1e6
    })
}

/// One body of so many bytes.
pub fn bulk(way: Way, mode: Mode, bytes: u64) {
    runtime().block_on(async {
        let mut stream = tunnel(way, &hello()).await.unwrap();
        let mut chunk = vec![7; 256 << 10];
        stream.write_u64(bytes).await.unwrap();
        if mode == Mode::Down {
            let mut got = 0;
            loop {
                match stream.read(&mut chunk).await.unwrap() {
                    0 => break,
                    n => got += n as u64,
                }
            }
            assert_eq!(got, bytes, "the body came whole");
            return;
        }
        let mut left = bytes;
        while left > 0 {
            let n = chunk.len().min(usize::try_from(left).unwrap());
            stream.write_all(&chunk[..n]).await.unwrap();
            left -= n as u64;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, ANSWER, "the body went whole");
    });
}

/// Open tunnels.
pub struct Tunnels {
    runtime: Runtime,
    streams: Vec<TcpStream>,
}

/// Opens tunnels, does something, and closes them.
pub fn open<T>(way: Way, count: usize, done: impl FnOnce(&mut Tunnels) -> T) -> T {
    let runtime = runtime();
    let streams = runtime.block_on(async {
        let hello = hello();
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(tunnel(way, &hello).await.unwrap());
        }
        streams
    });
    done(&mut Tunnels { runtime, streams })
}

impl Tunnels {
    /// Sends 64 bytes and waits for them, so many times over all tunnels together.
    pub fn round_trips(&mut self, count: usize) {
        let each = count / self.streams.len();
        let trips = self.streams.iter_mut().map(|stream| async move {
            let mut bytes = [3; 64];
            for _ in 0..each {
                stream.write_all(&bytes).await.unwrap();
                stream.read_exact(&mut bytes).await.unwrap();
            }
        });
        self.runtime.block_on(join_all(trips));
    }
}

/// Runs them all in this task.
async fn join_all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
