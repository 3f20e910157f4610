use std::sync::Arc;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use tokio_util::either::Either;

use super::*;
use crate::proxy::stream::Wire;
use crate::proxy::stream::{Link, reset};
use egret_core::outcome::Totals;
use std::io;

/// A client's own end: bare, or inside TLS. Everything here holds for both ways of moving bytes.
type Client = Either<TcpStream, Box<client::TlsStream<TcpStream>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bare,
    Tls,
}

const BOTH: [Kind; 2] = [Kind::Bare, Kind::Tls];

/// Two ends of one connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A client's end, and the one that is relayed.
async fn client(kind: Kind) -> (Client, ClientStream) {
    let (far, near) = pair().await;
    if kind == Kind::Bare {
        return (Either::Left(far), ClientStream::Bare(near));
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["proxy.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = server.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let wants = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let wants = wants.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("proxy.test").unwrap();
    let (far, near) = tokio::join!(
        TlsConnector::from(Arc::new(wants)).connect(name, far),
        TlsAcceptor::from(Arc::new(server)).accept(Wire::new(near))
    );
    (Either::Right(Box::new(far.unwrap())), ClientStream::Tls(Box::new(near.unwrap())))
}

fn tcp(client: &Client) -> &TcpStream {
    match client {
        Either::Left(tcp) => tcp,
        Either::Right(tls) => tls.get_ref().0,
    }
}

/// A relay between a client and an upstream; its ending and its totals.
async fn relayed(kind: Kind, idle: Duration) -> (Client, TcpStream, tokio::task::JoinHandle<(Ending, Totals)>) {
    let (client, near) = client(kind).await;
    let (far, upstream) = pair().await;
    let task = tokio::spawn(async move {
        let unwatched = Unwatched(Meter::default());
        let watch = IdleWatch { idle, lasting: &unwatched };
        let (mut near, mut far) = (Link::new(near), Link::new(far));
        let ending = run(&mut near.stream, &mut far.stream, b"first, ".to_vec(), watch, &Shared::default()).await;
        if ending == Ending::Closed {
            near.end();
            far.end();
        }
        (ending, unwatched.0.totals())
    });
    (client, upstream, task)
}

/// A record that writes no lines.
#[derive(Debug)]
struct Unwatched(Meter);

impl Lasting for Unwatched {
    fn meter(&self) -> &Meter {
        &self.0
    }

    fn report_due(&self) -> Option<Instant> {
        None
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn both_sides_finish_in_their_own_time() {
    for kind in BOTH {
        let (mut client, mut upstream, task) = relayed(kind, LONG).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"first, question");
        upstream.write_all(b"answer").await.unwrap();
        upstream.shutdown().await.unwrap();
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        assert_eq!(task.await.unwrap(), (Ending::Closed, Totals { up: 15, down: 6 }), "{kind:?}");
    }
}

/// Bytes in which any loss, repetition or exchange shows.
fn long(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// Large and small pieces in turn, so that the way of moving them changes, to a reader that rests now and then.
#[tokio::test]
async fn every_byte_arrives_in_its_order_whoever_is_slow() {
    for kind in BOTH {
        let (mut client, mut upstream, task) = relayed(kind, LONG).await;
        let (up, down) = (long(1, 5 << 20), long(2, 9 << 20));
        let (up_len, down_len) = (up.len(), down.len());
        let (sent_up, sent_down) = (up.clone(), down.clone());
        let client_task = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut client);
            let writing = async {
                let mut rest = &*sent_up;
                for size in [1, 700, 40_000, 1 << 20, 3].into_iter().cycle() {
                    let (piece, after) = rest.split_at(rest.len().min(size));
                    write.write_all(piece).await.unwrap();
                    write.flush().await.unwrap();
                    tokio::task::yield_now().await;
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
                write.shutdown().await.unwrap();
            };
            let reading = async {
                let mut got = Vec::new();
                let mut chunk = vec![0; 30_000];
                loop {
                    match read.read(&mut chunk).await.unwrap() {
                        0 => return got,
                        n => got.extend_from_slice(&chunk[..n]),
                    }
                    if got.len() % 7 == 0 {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            };
            tokio::join!(writing, reading).1
        });
        let (mut read, mut write) = upstream.split();
        let mut got = Vec::new();
        let writing = async {
            for piece in sent_down.chunks(300_000) {
                write.write_all(piece).await.unwrap();
            }
            write.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(read.read_to_end(&mut got), writing);
        read.unwrap();
        assert!(got.strip_prefix(b"first, ") == Some(&up[..]), "{kind:?} up");
        assert!(client_task.await.unwrap() == down, "{kind:?} down");
        let totals = Totals { up: up_len as u64 + 7, down: down_len as u64 };
        assert_eq!(task.await.unwrap(), (Ending::Closed, totals), "{kind:?}");
    }
    assert!(pipe::all() > 0, "large bytes between sockets went through a pipe");
}

/// More than the sockets hold, and then silence until it has been read.
#[tokio::test]
async fn nothing_waits_in_a_buffer_for_what_comes_next() {
    for kind in BOTH {
        let (mut client, mut upstream, task) = relayed(kind, LONG).await;
        let answering = tokio::spawn(async move {
            upstream.write_all(&[5; 12 << 20]).await.unwrap();
            upstream.read_exact(&mut [0; 8]).await.unwrap();
            upstream
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut got = vec![0; 12 << 20];
        let read = tokio::time::timeout(LONG / 2, client.read_exact(&mut got)).await;
        read.unwrap_or_else(|_| panic!("{kind:?}: bytes are kept back")).unwrap();
        client.write_all(b"!").await.unwrap();
        client.flush().await.unwrap();
        drop(answering.await.unwrap());
        task.abort();
    }
}

/// A client of TLS may finish with a word of TLS or without one.
#[tokio::test]
async fn a_client_that_closes_without_a_word_has_finished() {
    let (mut client, mut upstream, task) = relayed(Kind::Tls, LONG).await;
    client.write_all(b"all").await.unwrap();
    client.flush().await.unwrap();
    SockRef::from(tcp(&client)).shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    upstream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"first, all");
    upstream.write_all(b"answer").await.unwrap();
    drop(upstream);
    got.clear();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!((&got[..], task.await.unwrap().0), (&b"answer"[..], Ending::Closed));
}

#[tokio::test]
async fn what_came_before_a_reset_is_delivered_and_then_the_reset() {
    for kind in BOTH {
        let (mut client, mut upstream, task) = relayed(kind, LONG).await;
        upstream.write_all(&[7; 100_000]).await.unwrap();
        let mut got = vec![0; 100_000];
        client.read_exact(&mut got).await.unwrap();
        reset(&upstream);
        drop(upstream);
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{kind:?}");
        assert_eq!(task.await.unwrap(), (Ending::UpstreamReset, Totals { up: 7, down: 100_000 }), "{kind:?}");
    }
}

#[tokio::test]
async fn a_client_that_resets_ends_the_upstream_at_once() {
    for kind in BOTH {
        let (client, mut upstream, task) = relayed(kind, LONG).await;
        upstream.read_exact(&mut [0; 7]).await.unwrap();
        reset(tcp(&client));
        drop(client);
        let error = upstream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{kind:?}");
        assert_eq!(task.await.unwrap().0, Ending::ClientReset, "{kind:?}");
    }
}

/// A reset while a pipe or a buffer is full: the other side learns of it, and nobody gets the bytes of somebody else.
#[tokio::test]
async fn a_reset_amid_a_transfer_leaves_nothing_behind() {
    for kind in BOTH {
        for _ in 0..8 {
            let (client, mut upstream, task) = relayed(kind, LONG).await;
            let writing = tokio::spawn(async move {
                let mut sent = 0;
                while upstream.write_all(&[0xee; 50_000]).await.is_ok() {
                    sent += 50_000;
                }
                sent
            });
            // The client reads nothing: everything on the way fills up.
            tokio::time::sleep(Duration::from_millis(20)).await;
            reset(tcp(&client));
            drop(client);
            assert_eq!(task.await.unwrap().0, Ending::ClientReset, "{kind:?}");
            assert!(writing.await.unwrap() > 0);
        }
        let (mut client, mut upstream, _task) = relayed(kind, LONG).await;
        upstream.write_all(&[0x11; 1 << 20]).await.unwrap();
        upstream.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got.len() == 1 << 20 && got.iter().all(|byte| *byte == 0x11), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn idleness_is_counted_from_the_last_byte() {
    let unwatched = Unwatched(Meter::default());
    let begun = Instant::now();
    let idle = IdleWatch { idle: Duration::from_secs(10), lasting: &unwatched }.idle();
    tokio::pin!(idle);
    tokio::select! {
        () = &mut idle => panic!("too early"),
        () = tokio::time::sleep(Duration::from_secs(7)) => unwatched.0.count(Way::Up, 1),
    }
    idle.await;
    assert_eq!(begun.elapsed(), Duration::from_secs(17));
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_the_upstream_is_silent() {
    for kind in BOTH {
        let (mut client, mut upstream, task) = relayed(kind, LONG).await;
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        upstream.read_to_end(&mut got).await.unwrap();
        assert!(!task.is_finished(), "a half-closed client may still listen");
        reset(tcp(&client));
        drop(client);
        assert_eq!(task.await.unwrap().0, Ending::ClientReset, "{kind:?}");
    }
}

/// Urgent data stops a splice without being its end. Telnet and some databases' cancellations use it.
#[tokio::test]
async fn urgent_data_is_no_end() {
    for way in [Way::Up, Way::Down] {
        let (mut client, mut upstream, task) = relayed(Kind::Bare, LONG).await;
        upstream.read_exact(&mut [0; 7]).await.unwrap();
        let (Either::Left(client), upstream) = (&mut client, &mut upstream) else { panic!("a bare client") };
        let (sends, hears) = if way == Way::Up { (client, upstream) } else { (upstream, client) };
        let sending = async {
            sends.write_all(&[1; 1_000_000]).await.unwrap();
            SockRef::from(&*sends).send_out_of_band(b"!").unwrap();
            sends.write_all(&[2; 500_000]).await.unwrap();
            sends.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let hearing = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            hears.read_to_end(&mut got).await.unwrap();
            hears.shutdown().await.unwrap();
        };
        tokio::join!(sending, hearing);
        let count = |byte: u8| got.iter().filter(|b| **b == byte).count();
        assert_eq!((count(1), count(2)), (1_000_000, 500_000), "{way:?}");
        assert_eq!(task.await.unwrap().0, Ending::Closed, "{way:?}");
    }
}

/// An upstream that reads nothing must not hide that its client has gone.
#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_the_upstream_takes_nothing() {
    let (mut client, _upstream, task) = relayed(Kind::Bare, LONG).await;
    // As much as all buffers on the way take.
    let stuck = tokio::time::timeout(Duration::from_millis(500), client.write_all(&[0; 64 << 20])).await;
    assert!(stuck.is_err());
    reset(tcp(&client));
    drop(client);
    let ending = tokio::time::timeout(LONG / 4, task).await.expect("the reset is seen").unwrap().0;
    assert_eq!(ending, Ending::ClientReset);
}
