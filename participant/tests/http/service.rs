//! A service over HTTP that answers as it is told, right or wrong, and remembers what it was asked. Over a bare socket, so that it can do what no
//! decent server would.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;
use unanimity_tests::patience::eventually;

/// What to do with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Answer properly.
    Say(u16, Vec<(&'static str, String)>, String),
    /// Send these bytes, and close.
    Bytes(Vec<u8>),
    /// Never answer.
    Hang,
    /// Answer once this is notified.
    When(Arc<Notify>, Box<Reply>),
}

impl Reply {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        let kind = ("Content-Type", "application/json".into());
        Self::Say(status, vec![kind], body.into())
    }

    pub(crate) fn html(status: u16, body: &str) -> Self {
        let kind = ("Content-Type", "text/html".into());
        Self::Say(status, vec![kind], body.into())
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::Say(status, Vec::new(), String::new())
    }

    pub(crate) fn with(self, name: &'static str, value: &str) -> Self {
        match self {
            Self::Say(status, mut headers, body) => {
                headers.push((name, value.into()));
                Self::Say(status, headers, body)
            }
            other => panic!("{other:?} has no headers"),
        }
    }

    /// Closes without a word.
    pub(crate) fn close() -> Self {
        Self::Bytes(Vec::new())
    }

    /// An answer whose body breaks off.
    pub(crate) fn half(status: u16) -> Self {
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"half\":"
        );
        Self::Bytes(head.into())
    }
}

/// What came.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
}

impl Got {
    pub(crate) fn key(&self) -> &str {
        &self.headers["idempotency-key"]
    }
}

/// The service. A path without a reply of its own is answered 204.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    replies: Mutex<HashMap<String, VecDeque<Reply>>>,
    got: Mutex<Vec<Got>>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::listen(None).await
    }

    pub(crate) async fn start_tls(acceptor: TlsAcceptor) -> Self {
        Self::listen(Some(acceptor)).await
    }

    async fn listen(acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, acceptor) = (Arc::clone(&shared), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, &state).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serve(stream, &state).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, state }
    }

    /// The next requests to this path get these replies, the last of them for ever.
    pub(crate) fn reply(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let replies = replies.into_iter().collect();
        self.state.replies.lock().insert(path.into(), replies);
    }

    /// All that came, in order.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.state.got.lock().clone()
    }

    /// The paths of all that came, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.got().into_iter().map(|got| got.path).collect()
    }

    /// Waits until this path was asked.
    pub(crate) async fn asked(&self, path: &str) {
        eventually(path, async || {
            self.paths().iter().any(|it| it == path).then_some(())
        })
        .await;
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let got = request(&mut stream).await?;
        let path = got.path.clone();
        state.got.lock().push(got);
        let mut reply = state.next(&path);
        while let Reply::When(told, then) = reply {
            told.notified().await;
            reply = *then;
        }
        match reply {
            Reply::Say(status, headers, body) => {
                stream
                    .write_all(answer(status, &headers, &body).as_bytes())
                    .await
                    .ok()?;
            }
            Reply::Bytes(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                return stream.shutdown().await.ok();
            }
            Reply::Hang => return std::future::pending().await,
            Reply::When(..) => unreachable!("taken apart above"),
        }
    }
}

impl State {
    fn next(&self, path: &str) -> Reply {
        let mut replies = self.replies.lock();
        match replies.get_mut(path) {
            Some(left) if left.len() > 1 => left.pop_front().expect("more than one"),
            Some(left) => left.front().expect("at least one").clone(),
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
