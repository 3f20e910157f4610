//! Dialling exactly what was permitted.
//!
//! Sees a [`Permit`] and nothing else: no name to resolve again, no address to add. Owns the deadline, the
//! race between address families (RFC 8305) and the socket options towards the upstream.

mod own;

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::budget::Budget;
use crate::socket::set_transparent;
use egret_core::outcome::{Reason, Refusal, Stage};
use egret_core::policy::Permit;
pub use own::{OwnDial, OwnDials};

/// RFC 8305 §5: how long one address has before the next is tried too.
const HEAD_START: Duration = Duration::from_millis(250);

/// The bounds of one dial.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits<'a> {
    pub deadline: Duration,
    /// Addresses that are tried.
    pub addresses: usize,
    /// How many may be tried at once beyond the first of their names, of all connections together: each takes a descriptor that
    /// no connection is counted for.
    pub parallel: &'a Arc<Budget>,
    /// The client charged for them.
    pub client: IpAddr,
    /// Where it is written down what is dialled, in a place where that may come back.
    pub own: Option<&'a Arc<OwnDials>>,
}

/// A connection that stands.
#[derive(Debug)]
pub struct Dialled {
    pub stream: TcpStream,
    pub address: SocketAddr,
    /// To be kept as long as the stream.
    pub own: Option<Box<OwnDial>>,
}

/// Connects to the first permitted address that answers.
///
/// # Errors
/// A refusal at stage `dial`, after the deadline at the latest.
pub async fn dial(permit: &Permit, departure: SourceAddress<'_>, limits: DialLimits<'_>) -> Result<Dialled, Refusal> {
    within(limits, permit.addresses(), departure).await
}

/// Where a connection to an upstream comes from.
#[derive(Clone, Copy, Debug)]
pub enum SourceAddress<'a> {
    /// The system's choice.
    System,
    /// One of this machine's addresses, the same for a client's every connection.
    Pool { sources: &'a [IpAddr], client: IpAddr },
    /// The client's own address, whose answers are routed back here.
    Client(IpAddr),
}

impl<'a> SourceAddress<'a> {
    #[must_use]
    pub const fn of(client: IpAddr, preserves_source: bool, sources: &'a [IpAddr]) -> Self {
        match (preserves_source, sources) {
            (true, _) => Self::Client(client),
            (false, []) => Self::System,
            (false, _) => Self::Pool { sources, client },
        }
    }

    /// The source for one destination: a pool that has none of its family leaves the choice to the system, and a client
    /// of another family reaches no address.
    fn source(self, to: IpAddr) -> Result<Option<Source>, io::Error> {
        match self {
            Self::System => Ok(None),
            Self::Pool { sources, client } => {
                let fits: Vec<IpAddr> = sources.iter().filter(|ip| ip.is_ipv4() == to.is_ipv4()).copied().collect();
                let hash = foldhash::fast::FixedState::default().hash_one(client);
                let at = usize::try_from(hash).unwrap_or_default().checked_rem(fits.len());
                Ok(at.and_then(|at| fits.get(at)).map(|ip| Source { ip: *ip, is_foreign: false }))
            }
            Self::Client(ip) if ip.is_ipv4() == to.is_ipv4() => Ok(Some(Source { ip, is_foreign: true })),
            Self::Client(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

/// An address to dial from.
#[derive(Clone, Copy, Debug)]
struct Source {
    ip: IpAddr,
    /// Not one of this machine's.
    is_foreign: bool,
}

async fn within(
    limits: DialLimits<'_>,
    addresses: &[SocketAddr],
    departure: SourceAddress<'_>,
) -> Result<Dialled, Refusal> {
    let refuse = |reason| Refusal::new(reason, Stage::Dial);
    let dialling = async {
        match addresses {
            [only] => connect(*only, departure.source(only.ip())?, limits.own).await,
            several => Box::pin(race(several.get(..limits.addresses).unwrap_or(several), departure, limits)).await,
        }
    };
    match tokio::time::timeout(limits.deadline, dialling).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) => Err(refuse(reason(&error))),
        Err(_) => Err(refuse(Reason::ConnectTimeout)),
    }
}

async fn connect(address: SocketAddr, source: Option<Source>, own: Option<&Arc<OwnDials>>) -> io::Result<Dialled> {
    if let (None, None) = (source, own) {
        return Ok(Dialled { stream: TcpStream::connect(address).await?, address, own: None });
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(Source { ip, is_foreign }) = source {
        // ip(7): the port is chosen with the destination, so that one address has all its ports for each of them.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
        if is_foreign {
            set_transparent(&socket, ip)?;
        }
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    let own = match own {
        Some(own) => Some(Box::new(own.connect(&socket, address)?)),
        None => {
            own::begin(&socket, address)?;
            None
        }
    };
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(Dialled { stream, address, own }), Err)
}

/// Starts the next address when the last one failed or its head start is over. Dropping the set ends the
/// losers.
async fn race(addresses: &[SocketAddr], departure: SourceAddress<'_>, limits: DialLimits<'_>) -> io::Result<Dialled> {
    let mut waiting: VecDeque<SocketAddr> = addresses.iter().copied().collect();
    let mut running = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::HostUnreachable);
    loop {
        // The first is tried by itself; without a place in `parallel`, the next waits for its end.
        let mut place = limits.parallel.share(limits.client);
        let may_begin = running.is_empty() || place.grow(1).is_ok();
        let next = if may_begin { waiting.pop_front().map(|address| (address, place)) } else { None };
        let has_begun = next.is_some();
        if let Some((address, place)) = next {
            match departure.source(address.ip()) {
                Ok(source) => {
                    let own = limits.own.cloned();
                    running.spawn(async move {
                        let eviction = place.eviction();
                        let connected = tokio::select! {
                            connected = connect(address, source, own.as_ref()) => connected,
                            () = eviction.evicted() => Err(io::ErrorKind::Interrupted.into()),
                        };
                        (address, connected)
                    });
                }
                Err(error) if running.is_empty() && waiting.is_empty() => return Err(error),
                Err(_) => continue,
            }
        } else if running.is_empty() {
            return Err(last);
        }
        let ended = if has_begun && !waiting.is_empty() {
            match tokio::time::timeout(HEAD_START, running.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        } else {
            running.join_next().await
        };
        match ended {
            Some(Ok((_, Ok(connected)))) => return Ok(connected),
            // Another client needed its place: it is tried again when there is one.
            Some(Ok((address, Err(error)))) if error.kind() == io::ErrorKind::Interrupted => waiting.push_back(address),
            Some(Ok((_, Err(error)))) if telling(&error) >= telling(&last) => last = error,
            Some(Err(join)) => last = io::Error::other(join),
            Some(Ok((_, Err(_)))) | None => {}
        }
    }
}

/// Of several failures the one that says most about the name is reported: a refusal by one address, rather than
/// the missing route of a family that this machine does not have.
fn telling(error: &io::Error) -> u8 {
    match reason(error) {
        Reason::ConnectRefused => 3,
        Reason::ConnectTimeout => 2,
        Reason::Unreachable => 0,
        _ => 1,
    }
}

fn reason(error: &io::Error) -> Reason {
    /// EMFILE and ENFILE have no kind of their own.
    const NO_DESCRIPTOR: [Option<i32>; 2] = [Some(24), Some(23)];
    if NO_DESCRIPTOR.contains(&error.raw_os_error()) {
        return Reason::TooManyConnections;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Reason::PortsExhausted,
        _ => Reason::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A port without a listener: connections are refused at once.
    async fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    /// A place whose queue is full: connections are neither taken nor refused.
    fn silent() -> (Socket, Vec<Socket>, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let crowd = (0..4).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address);
            socket
        });
        let crowd = crowd.collect();
        (listener, crowd, address.as_socket().unwrap())
    }

    async fn reached(addresses: &[SocketAddr], deadline: Duration) -> Result<SocketAddr, Reason> {
        reached_beside(addresses, deadline, &Budget::new(9)).await
    }

    async fn reached_beside(
        addresses: &[SocketAddr],
        deadline: Duration,
        parallel: &Arc<Budget>,
    ) -> Result<SocketAddr, Reason> {
        let limits = DialLimits { deadline, addresses: 16, parallel, client: [192, 0, 2, 1].into(), own: None };
        let dialled = within(limits, addresses, SourceAddress::System).await;
        dialled
            .map(|dialled| (dialled.stream.peer_addr().unwrap() == dialled.address).then_some(dialled.address).unwrap())
            .map_err(|refusal| refusal.reason)
    }

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let (_listener, _crowd, silent) = silent();
        let closed = closed().await;
        let long = Duration::from_secs(20);
        assert_eq!(reached(&[open], long).await, Ok(open));
        assert_eq!(reached(&[closed, open], long).await, Ok(open));
        assert_eq!(reached(&[silent, open], long).await, Ok(open), "silence costs a head start, not the connection");
        assert_eq!(reached(&[silent, closed, open], long).await, Ok(open));
    }

    #[tokio::test]
    async fn addresses_beside_others_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let (_listener, _crowd, silent) = silent();
        let (closed, short) = (closed().await, Duration::from_secs(1));
        let parallel = Budget::new(1);
        let mut taken = parallel.share([192, 0, 2, 1].into());
        taken.grow(1).unwrap();
        assert_eq!(reached_beside(&[silent, open], short, &parallel).await, Err(Reason::ConnectTimeout), "it waits");
        assert_eq!(reached_beside(&[closed, open], short, &parallel).await, Ok(open), "for the end of the first");
        drop(taken);
        assert_eq!(reached_beside(&[silent, open], short, &parallel).await, Ok(open));
        assert_eq!(parallel.held(), 0);
    }

    #[tokio::test]
    async fn the_reason_says_how_a_dial_failed() {
        let (_listener, _crowd, silent) = silent();
        let closed = closed().await;
        let short = Duration::from_millis(400);
        assert_eq!(reached(&[closed, closed], short).await, Err(Reason::ConnectRefused));
        let error = |kind| io::Error::from(kind);
        assert!(telling(&error(io::ErrorKind::ConnectionRefused)) > telling(&error(io::ErrorKind::NetworkUnreachable)));
        assert_eq!(reached(&[silent], short).await, Err(Reason::ConnectTimeout));
        assert_eq!(reached(&[closed, silent], short).await, Err(Reason::ConnectTimeout));
    }
}
