//! A client's bytes: bare, or inside TLS that ends here.
//!
//! Owns what the two have in common, so that the rooms behind it need not know which it is.

use std::cell::RefCell;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{io, ops};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// A client's stream. Upstreams have [`TcpStream`]s: egret speaks no TLS of its own to them.
#[derive(Debug)]
pub enum ClientStream {
    Bare(TcpStream),
    Tls(Box<TlsStream<Wire>>),
}

/// What writes to a client.
pub type WriteSide<'a> = Either<WriteHalf<'a>, tokio::io::WriteHalf<&'a mut ClientStream>>;

/// The connection below a stream.
pub trait Socket {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for ClientStream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Bare(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => match ready!(Pin::new(tls).poll_read(cx, buf)) {
                // Most clients close without a word of TLS about it. What they carry has an end of its own, as it
                // needs to have without TLS; a reset would take bytes from the upstream that are on their way.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                read => Poll::Ready(read),
            },
        }
    }
}

impl ClientStream {
    /// Returns when there may be something to read. TLS does not know before it reads.
    pub async fn ready_to_read(&self) {
        if let Self::Bare(tcp) = self {
            // An error shows at the read.
            let _ = tcp.readable().await;
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Bare(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Both directions, each for its own future of one task.
pub fn split(stream: &mut ClientStream) -> (ReadSide<'_>, WriteSide<'_>) {
    let wire = match stream {
        ClientStream::Tls(tls) => tls.get_ref().0.clone(),
        ClientStream::Bare(tcp) => {
            let (read, write) = tcp.split();
            return (ReadSide::Bare(read), Either::Left(write));
        }
    };
    let (read, write) = tokio::io::split(stream);
    (ReadSide::Tls { read, wire }, Either::Right(write))
}

/// Writes all of it, and leaves nothing in a buffer of TLS.
///
/// # Errors
/// The stream's own.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

thread_local! {
    /// What all reads of a thread go through that need not keep a buffer while they wait.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SHARED_SIZE].into());
}

/// The most that one read through the shared buffer brings.
const SHARED_SIZE: usize = 64 << 10;

/// Lends the thread's buffer.
pub fn with_shared<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SHARED.with_borrow_mut(|shared| use_it(shared))
}

/// Reads once, at most so many bytes, and hands them on; waits without a buffer. Nothing means the end.
///
/// # Errors
/// The stream's own.
pub async fn read_with<T>(
    from: &mut (impl AsyncRead + Unpin),
    most: usize,
    mut take: impl FnMut(&[u8]) -> T,
) -> io::Result<T> {
    let reading = |cx: &mut Context<'_>| {
        with_shared(|shared| {
            let room = shared.len().min(most);
            let mut buffer = ReadBuf::new(shared.get_mut(..room).unwrap_or_default());
            ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(take(buffer.filled())))
        })
    };
    std::future::poll_fn(reading).await
}

/// Returns when a socket reports an error, and reads nothing.
pub async fn reset_of(stream: &TcpStream) {
    if !stream.ready(Interest::ERROR).await.is_ok_and(Ready::is_error) {
        std::future::pending::<()>().await;
    }
}

/// What reads from a client.
#[derive(Debug)]
pub enum ReadSide<'a> {
    Bare(ReadHalf<'a>),
    Tls { read: tokio::io::ReadHalf<&'a mut ClientStream>, wire: Wire },
}

impl ReadSide<'_> {
    /// The socket, where its bytes are the client's own.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Bare(tcp) => Some(tcp.as_ref()),
            Self::Tls { .. } => None,
        }
    }

    /// Returns when the socket reports an error, and reads nothing.
    pub async fn gone(&self) {
        match self {
            Self::Bare(tcp) => reset_of(tcp.as_ref()).await,
            Self::Tls { wire, .. } => reset_of(wire).await,
        }
    }
}

impl AsyncRead for ReadSide<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Bare(read) => Pin::new(read).poll_read(cx, buf),
            Self::Tls { read, .. } => Pin::new(read).poll_read(cx, buf),
        }
    }
}

/// A connection whose readiness can be asked for while TLS reads and writes it.
#[derive(Clone, Debug)]
pub struct Wire(Arc<TcpStream>);

impl Wire {
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }
}

impl ops::Deref for Wire {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// TLS has a record each of several at hand.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        records: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(records) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

/// A socket whose close is a reset unless its conversation came to an end of its own: a cut must not look
/// like a polite one, or half a file is taken for a whole.
#[derive(Debug)]
pub struct Link<S: Socket> {
    pub stream: S,
    ended: bool,
}

impl<S: Socket> Link<S> {
    #[must_use]
    pub const fn new(stream: S) -> Self {
        Self { stream, ended: false }
    }

    /// Nothing is left to be said: the close may be polite.
    pub const fn end(&mut self) {
        self.ended = true;
    }

    /// Something is to be said again.
    pub const fn begin(&mut self) {
        self.ended = false;
    }
}

impl<S: Socket> Drop for Link<S> {
    fn drop(&mut self) {
        if !self.ended {
            reset(self.stream.tcp());
        }
    }
}

/// Makes the close of a socket a reset.
pub fn reset(stream: &TcpStream) {
    // Failing means that the socket is gone, which is what was wanted.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// How long a refused client may take to read its refusal.
pub const LINGER: Duration = Duration::from_secs(2);
/// And how much it may still send meanwhile.
const LINGER_BYTES: usize = 16 << 20;

/// Reads what the peer still sends, within bounds, so that a reset does not take the last words from it.
pub async fn linger(stream: &mut (impl AsyncRead + Unpin)) {
    let reading = async {
        let mut left = LINGER_BYTES;
        while left > 0 {
            match read_with(stream, left, <[u8]>::len).await {
                Ok(0) | Err(_) => break,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, reading).await;
}
