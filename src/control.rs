//! The control socket: what its owner and root may ask of a running egret, one JSON object a line.
//!
//! Owns the socket, its access control, and the form of questions and answers. Carrying a request out is
//! another room's job: `reload`'s.

use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, Permissions};
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net as std_unix;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Protocol version, in both directions.
const VERSION: u32 = 1;

/// Peers at once.
const MAX_PEERS: usize = 16;

/// Bytes of one question.
const MAX_QUESTION: u64 = 64 << 10;

/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long an answer may take: a reload of a million names takes seconds.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// Where an egret that systemd started has its socket.
pub const USUAL_SOCKET: &str = "/run/egret/control.sock";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    version: u32,
    #[serde(rename = "do")]
    action: String,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    version: u32,
    /// Whether it was done.
    ok: bool,
    /// What happened, for people.
    #[serde(default)]
    said: Vec<String>,
}

impl Answer {
    fn failed(why: impl Into<String>) -> Self {
        Self { version: VERSION, ok: false, said: vec![why.into()] }
    }
}

/// Binds the socket, in a folder that only this process's user may enter.
///
/// # Errors
/// With the cure, in `other` errors; else the kernel's.
pub fn bind(path: &Path) -> io::Result<std_unix::UnixListener> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(io::Error::other(format!(
                "{} cannot be made, for its own folder is missing; make it",
                folder.display()
            )));
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = std::fs::metadata(folder)?;
    if !meta.is_dir() {
        return Err(io::Error::other(format!("{} is not a folder; use another path", folder.display())));
    }
    let uid = nix::unistd::geteuid().as_raw();
    if meta.uid() != uid || meta.mode() & 0o077 != 0 {
        let message = format!(
            "{} must belong to egret's user ({uid}) alone; use a folder of its own, which egret makes, such as {}",
            folder.display(),
            folder.join("egret/control.sock").display()
        );
        return Err(io::Error::other(message));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::other("something else is there; remove it, or use another path"));
        }
        // A socket without a listener is left from an egret that was killed.
        Ok(_) if std_unix::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::other("another egret has it; stop that one, or use another path"));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = std_unix::UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A request for a reload, and where its outcome goes.
#[derive(Debug)]
pub struct ReloadRequest {
    pub done: oneshot::Sender<ReloadOutcome>,
}

/// What came of a reload.
#[derive(Debug)]
pub struct ReloadOutcome {
    pub is_done: bool,
    /// Line by line, as it is logged.
    pub said: Vec<String>,
}

/// Serves until it is aborted.
pub async fn serve(listener: UnixListener, reloads: mpsc::Sender<ReloadRequest>) {
    let places = Arc::new(Semaphore::new(MAX_PEERS));
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let own = nix::unistd::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0) {
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            let full = Answer::failed(format!("{MAX_PEERS} peers are connected, which are the most"));
            let _ = tokio::time::timeout(PATIENCE, say(&mut stream, &full)).await;
            continue;
        };
        let reloads = reloads.clone();
        tokio::spawn(async move {
            // A peer may close at any time.
            let _ = converse(stream, &reloads).await;
            drop(place);
        });
    }
}

async fn converse(stream: UnixStream, reloads: &mpsc::Sender<ReloadRequest>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut stream).take(MAX_QUESTION);
        let read = tokio::time::timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice::<Question>(&line) {
            Ok(question) => answer(&question, reloads).await,
            Err(error) => Answer::failed(format!("a question is one JSON object a line: {error}")),
        };
        let is_whole = line.ends_with(b"\n");
        tokio::time::timeout(PATIENCE, say(stream.get_mut(), &answer)).await??;
        if !is_whole {
            return Ok(());
        }
    }
}

async fn answer(question: &Question, reloads: &mpsc::Sender<ReloadRequest>) -> Answer {
    if question.version != VERSION {
        return Answer::failed(format!("this egret speaks version {VERSION} of the protocol"));
    }
    match &*question.action {
        "reload" => {
            let (done, outcome) = oneshot::channel();
            if reloads.send(ReloadRequest { done }).await.is_err() {
                return Answer::failed("egret is stopping");
            }
            match outcome.await {
                Ok(ReloadOutcome { is_done, said }) => Answer { version: VERSION, ok: is_done, said },
                Err(_) => Answer::failed("egret is stopping"),
            }
        }
        other => Answer::failed(format!("`{other}` is not known; there is: reload")),
    }
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Asks the egret behind a socket to do something. Returns whether it was done, and what it said.
///
/// # Errors
/// Where it cannot be asked.
pub fn ask(path: &Path, action: &str) -> io::Result<(bool, Vec<String>)> {
    let stream = std_unix::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    let mut line = serde_json::to_string(&Question { version: VERSION, action: action.to_owned() })?;
    line.push('\n');
    // A peer that is turned away is answered before it asks.
    match (&stream).write_all(line.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut answer = String::new();
    io::BufReader::new(&stream).read_line(&mut answer).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::other("no answer within two minutes; the log says what came of it"),
        _ => error,
    })?;
    let answer: Answer = serde_json::from_str(&answer)?;
    Ok((answer.ok, answer.said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_must_be_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own/control.sock");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        let first = bind(&path).unwrap();
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        assert!(bind(&path).unwrap_err().to_string().contains("another egret has it"));
        drop(first);
        drop(bind(&path).unwrap());
        std::fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o750)).unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("use a folder of its own"));
        std::fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "text").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("something else is there"));
    }

    #[tokio::test]
    async fn questions_are_bounded_and_answered_in_turn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own/control.sock");
        let listener = UnixListener::from_std(bind(&path).unwrap()).unwrap();
        let (reloads, mut asked) = mpsc::channel::<ReloadRequest>(1);
        tokio::spawn(serve(listener, reloads));
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                let _ = request.done.send(ReloadOutcome { is_done: true, said: vec!["done".to_owned()] });
            }
        });
        let connect = async || BufReader::new(UnixStream::connect(&path).await.unwrap());
        let ask = async |peer: &mut BufReader<UnixStream>, question: &str| {
            peer.get_mut().write_all(question.as_bytes()).await.unwrap();
            let mut line = String::new();
            peer.read_line(&mut line).await.unwrap();
            line
        };
        let mut peer = connect().await;
        let done = "{\"version\":1,\"ok\":true,\"said\":[\"done\"]}\n";
        assert_eq!(ask(&mut peer, "{\"version\":1,\"do\":\"reload\"}\n").await, done);
        for (question, says) in [
            ("{\"version\":2,\"do\":\"reload\"}\n", "version 1"),
            ("{\"version\":1,\"do\":\"fly\"}\n", "`fly` is not known"),
            ("reload\n", "one JSON object a line"),
        ] {
            let said = ask(&mut peer, question).await;
            assert!(said.contains("\"ok\":false") && said.contains(says), "{said}");
        }
        assert_eq!(ask(&mut peer, "{\"version\":1,\"do\":\"reload\"}\n").await, done, "it goes on");
        let long = "x".repeat(1 << 16);
        assert!(ask(&mut peer, &long).await.contains("one JSON object"));
        assert_eq!(ask(&mut peer, "").await, "", "and is closed");
        let mut crowd = Vec::new();
        for _ in 0..MAX_PEERS {
            let mut peer = connect().await;
            assert_eq!(ask(&mut peer, "{\"version\":1,\"do\":\"reload\"}\n").await, done);
            crowd.push(peer);
        }
        assert!(ask(&mut connect().await, "").await.contains("16 peers are connected"));
    }
}
