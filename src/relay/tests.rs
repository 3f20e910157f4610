use super::*;
use tokio::net::TcpListener;
use tokio_util::either::Either;

/// Two ends of one connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A relay between a client and an upstream; its ending and its totals.
async fn relayed(idle: Duration) -> (TcpStream, TcpStream, tokio::task::JoinHandle<(Ending, Totals)>) {
    let (client, near) = pair().await;
    let (far, upstream) = pair().await;
    let task = tokio::spawn(async move {
        let meter = Meter::new();
        let (mut near, mut far) = (Link::new(Either::Left(near)), Link::new(far));
        let ending = run(&mut near.stream, &mut far.stream, b"first, ", idle, &meter).await;
        if ending == Ending::Closed {
            near.end();
            far.end();
        }
        (ending, meter.totals())
    });
    (client, upstream, task)
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn both_sides_finish_in_their_own_time() {
    let (mut client, mut upstream, task) = relayed(LONG).await;
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
    assert_eq!(task.await.unwrap(), (Ending::Closed, Totals { up: 15, down: 6 }));
}

#[tokio::test]
async fn what_came_before_a_reset_is_delivered_and_then_the_reset() {
    let (mut client, mut upstream, task) = relayed(LONG).await;
    upstream.write_all(&[7; 100_000]).await.unwrap();
    let mut got = vec![0; 100_000];
    client.read_exact(&mut got).await.unwrap();
    reset(&upstream);
    drop(upstream);
    let error = client.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(task.await.unwrap(), (Ending::UpstreamReset, Totals { up: 7, down: 100_000 }));
}

#[tokio::test]
async fn a_client_that_resets_ends_the_upstream_at_once() {
    let (client, mut upstream, task) = relayed(LONG).await;
    upstream.read_exact(&mut [0; 7]).await.unwrap();
    reset(&client);
    drop(client);
    let error = upstream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(task.await.unwrap().0, Ending::ClientReset);
}

#[tokio::test(start_paused = true)]
async fn idleness_is_counted_from_the_last_byte() {
    let meter = Meter::new();
    let begun = Instant::now();
    let idle = meter.idle(Duration::from_secs(10));
    tokio::pin!(idle);
    tokio::select! {
        () = &mut idle => panic!("too early"),
        () = tokio::time::sleep(Duration::from_secs(7)) => meter.count(Way::Up, 1),
    }
    idle.await;
    assert_eq!(begun.elapsed(), Duration::from_secs(17));
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_the_upstream_is_silent() {
    let (mut client, mut upstream, task) = relayed(LONG).await;
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    upstream.read_to_end(&mut got).await.unwrap();
    assert!(!task.is_finished(), "a half-closed client may still listen");
    reset(&client);
    drop(client);
    assert_eq!(task.await.unwrap().0, Ending::ClientReset);
}
