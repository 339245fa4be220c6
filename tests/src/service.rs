//! A service over HTTP that answers as it is told, right or wrong, and remembers what it was asked. Over a bare socket, so that it can do what no
//! decent server would. It can stand before a decent one, as a proxy does, and come between it and whoever asks.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::patience::eventually;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answer properly.
    Say(u16, Vec<(&'static str, String)>, String),
    /// Send these bytes, and close.
    Bytes(Vec<u8>),
    /// Never answer.
    Hang,
    /// Answer once this is notified.
    When(Arc<Notify>, Box<Reply>),
    /// Let the service behind do it, and give its answer on.
    Pass,
    /// Let the service behind do it, and then answer so.
    Done(Box<Reply>),
}

impl Reply {
    /// JSON.
    pub fn json(status: u16, body: &str) -> Self {
        let kind = ("Content-Type", "application/json".into());
        Self::Say(status, vec![kind], body.into())
    }

    /// A page for people.
    pub fn html(status: u16, body: &str) -> Self {
        let kind = ("Content-Type", "text/html".into());
        Self::Say(status, vec![kind], body.into())
    }

    /// A status, and nothing else.
    pub fn status(status: u16) -> Self {
        Self::Say(status, Vec::new(), String::new())
    }

    /// With one more header.
    ///
    /// # Panics
    /// Where it is no proper answer.
    #[must_use]
    pub fn with(self, name: &'static str, value: &str) -> Self {
        match self {
            Self::Say(status, mut headers, body) => {
                headers.push((name, value.into()));
                Self::Say(status, headers, body)
            }
            other => panic!("{other:?} has no headers"),
        }
    }

    /// Closes without a word.
    pub fn close() -> Self {
        Self::Bytes(Vec::new())
    }

    /// An answer whose body breaks off.
    pub fn half(status: u16) -> Self {
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"half\":"
        );
        Self::Bytes(head.into())
    }

    /// Only after the service behind has done what was asked.
    #[must_use]
    pub fn when_done(self) -> Self {
        Self::Done(Box::new(self))
    }
}

/// What came.
#[derive(Clone, Debug)]
pub struct Got {
    /// The endpoint.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// What was posted.
    pub body: Value,
}

impl Got {
    /// The idempotency key.
    ///
    /// # Panics
    /// Where it has none.
    pub fn key(&self) -> &str {
        &self.headers["idempotency-key"]
    }
}

/// The service. A path without a reply of its own is answered by the service behind, or, where there is none, 204.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    replies: Mutex<HashMap<String, VecDeque<Reply>>>,
    got: Mutex<Vec<Got>>,
    behind: Option<SocketAddr>,
}

impl Service {
    /// With nothing behind it.
    pub async fn start() -> Self {
        Self::listen(None, |stream| async { Some(stream) }).await
    }

    /// Before another service.
    pub async fn before(behind: SocketAddr) -> Self {
        Self::listen(Some(behind), |stream| async { Some(stream) }).await
    }

    /// With nothing behind it. `accept` makes more of each connection, TLS for one, or drops it.
    pub async fn start_over<S, F>(accept: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<S>> + Send + 'static,
    {
        Self::listen(None, accept).await
    }

    async fn listen<S, F>(
        behind: Option<SocketAddr>,
        accept: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = Option<S>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let state = Arc::new(State {
            behind,
            ..State::default()
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, accepting) = (Arc::clone(&shared), accept(stream));
                tokio::spawn(async move {
                    match accepting.await {
                        Some(stream) => serve(stream, &state).await,
                        None => None,
                    }
                });
            }
        });
        Self { address, state }
    }

    /// The next requests to this path get these replies, the last of them for ever.
    pub fn reply(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies = replies.into_iter().collect();
        lock(&self.state.replies).insert(path.into(), replies);
    }

    /// All that came, in order.
    pub fn got(&self) -> Vec<Got> {
        lock(&self.state.got).clone()
    }

    /// What came to this path, in order.
    pub fn got_at(&self, path: &str) -> Vec<Got> {
        let mut got = self.got();
        got.retain(|got| got.path == path);
        got
    }

    /// The paths of all that came, in order.
    pub fn paths(&self) -> Vec<String> {
        self.got().into_iter().map(|got| got.path).collect()
    }

    /// Waits until this path was asked.
    pub async fn asked(&self, path: &str) {
        eventually(path, async || {
            self.paths().iter().any(|it| it == path).then_some(())
        })
        .await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics with the lock")
}
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let got = request(&mut stream).await?;
        lock(&state.got).push(got.clone());
        let mut reply = state.next(&got.path);
        loop {
            reply = match reply {
                Reply::When(told, then) => {
                    told.notified().await;
                    *then
                }
                Reply::Pass => Reply::Bytes(pass(state.behind?, &got).await?),
                Reply::Done(then) => {
                    pass(state.behind?, &got).await?;
                    *then
                }
                Reply::Say(status, headers, body) => {
                    let answer = answer(status, &headers, &body);
                    stream.write_all(answer.as_bytes()).await.ok()?;
                    break;
                }
                Reply::Bytes(bytes) => {
                    stream.write_all(&bytes).await.ok()?;
                    return stream.shutdown().await.ok();
                }
                Reply::Hang => return std::future::pending().await,
            };
        }
    }
}

/// Asks the service behind, and gives its answer as it came.
async fn pass(behind: SocketAddr, got: &Got) -> Option<Vec<u8>> {
    post(behind, &got.path, got.key(), &got.body).await.ok()
}

/// Posts JSON as the agent does, and gives the answer as it came.
///
/// # Errors
/// Where the service is away.
pub async fn post(
    service: SocketAddr,
    path: &str,
    key: &str,
    body: &Value,
) -> std::io::Result<Vec<u8>> {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(service).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

impl State {
    fn next(&self, path: &str) -> Reply {
        let mut replies = lock(&self.replies);
        match replies.get_mut(path) {
            Some(left) if left.len() > 1 => left.pop_front().expect("more than one"),
            Some(left) => left.front().expect("at least one").clone(),
            None if self.behind.is_some() => Reply::Pass,
            None => Reply::status(204),
        }
    }
}

async fn request(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Got> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let path = line.strip_prefix("POST ")?.split(' ').next()?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Got {
        path,
        headers,
        body: serde_json::from_slice(&body).expect("the agent sends JSON"),
    })
}

fn answer(status: u16, headers: &[(&str, String)], body: &str) -> String {
    let mut head = format!("HTTP/1.1 {status} X\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    match status {
        204 => head + "\r\n",
        _ => head + &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
    }
}
