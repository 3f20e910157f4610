//! Through a buffer of the direction's own: for streams that only a reader can read, as TLS is.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::flow::{Flow, Side};
use crate::proxy::stream::send;

/// One read: large enough that a busy stream pays few system calls, small enough for thousands of streams.
const CHUNK: usize = 32 << 10;

pub(super) async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    flow: Flow<'_>,
    first: Vec<u8>,
) -> Result<(), Side> {
    if !first.is_empty() {
        send(&mut to, &first).await.map_err(|e| flow.cannot_write(e))?;
        flow.moved(first.len());
    }
    drop(first);
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = from.read(&mut chunk).await.map_err(|e| flow.cannot_read(e))?;
        if n == 0 {
            break;
        }
        send(&mut to, chunk.get(..n).unwrap_or_default()).await.map_err(|e| flow.cannot_write(e))?;
        flow.moved(n);
    }
    flow.ended()?;
    flow.passed_on(to.shutdown().await)
}
