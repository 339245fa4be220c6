#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::{Fault, Harm, Proxy};

/// Long enough for what is to come, short enough to wait for what is not.
const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(150);

/// A server that sends back what it gets, and tells what it got.
async fn echo() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 1_024];
                while let Ok(taken @ 1..) = stream.read(&mut bytes).await {
                    let _ = tell.send(bytes[..taken].to_vec());
                    if stream.write_all(&bytes[..taken]).await.is_err() {
                        return;
                    }
                }
                let _ = tell.send(Vec::new());
            });
        }
    });
    (address, heard)
}

struct Wired {
    proxy: Proxy,
    heard: mpsc::UnboundedReceiver<Vec<u8>>,
    client: TcpStream,
}

/// A client whose first word has been answered.
async fn wired() -> Wired {
    let (address, mut heard) = echo().await;
    let proxy = Proxy::start(address, 1).await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    answered(&mut client, b"hello").await;
    assert_eq!(heard.recv().await.unwrap(), b"hello");
    Wired {
        proxy,
        heard,
        client,
    }
}

async fn answered(client: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    timeout(SOON, client.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, expected);
}

async fn is_silent(client: &mut TcpStream) {
    let mut byte = [0];
    timeout(QUIET, client.read(&mut byte)).await.unwrap_err();
}

async fn is_reset(client: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(SOON, client.read(&mut byte)).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

async fn felt(proxy: &Proxy, connections: u64) {
    let waiting = async {
        while proxy.harm().connections < connections {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap();
}

#[tokio::test]
async fn a_cut_holds_everything_and_after_healing_it_arrives() {
    let Wired {
        proxy,
        mut heard,
        mut client,
    } = wired().await;
    proxy.set(Fault::Cut);
    client.write_all(b"late").await.unwrap();
    is_silent(&mut client).await;
    assert!(heard.try_recv().is_err());
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    second.write_all(b"later").await.unwrap();
    felt(&proxy, 2).await;
    assert_eq!(proxy.connections(), 2);
    assert_eq!(
        proxy.heal(),
        Harm {
            connections: 2,
            bytes: 4
        }
    );
    answered(&mut client, b"late").await;
    answered(&mut second, b"later").await;
    assert!(!proxy.harm().was_felt());
}

#[tokio::test]
async fn a_cut_hides_the_end_of_a_peer_until_it_heals() {
    let Wired {
        proxy,
        mut heard,
        client,
    } = wired().await;
    proxy.set(Fault::Cut);
    drop(client);
    felt(&proxy, 1).await;
    assert!(timeout(QUIET, heard.recv()).await.is_err());
    proxy.heal();
    assert_eq!(timeout(SOON, heard.recv()).await.unwrap().unwrap(), b"");
}

#[tokio::test]
async fn one_way_lets_requests_pass_and_holds_the_answers_or_the_other_way_round() {
    let Wired {
        proxy,
        mut heard,
        mut client,
    } = wired().await;
    proxy.set(Fault::CutDown);
    client.write_all(b"done").await.unwrap();
    assert_eq!(timeout(SOON, heard.recv()).await.unwrap().unwrap(), b"done");
    is_silent(&mut client).await;
    assert!(proxy.set(Fault::CutUp).was_felt());
    answered(&mut client, b"done").await;
    client.write_all(b"lost").await.unwrap();
    assert!(timeout(QUIET, heard.recv()).await.is_err());
    assert!(proxy.heal().was_felt());
    answered(&mut client, b"lost").await;
}

#[tokio::test]
async fn a_reset_ends_idle_connections_and_refuses_new_ones() {
    let Wired {
        proxy,
        heard: _heard,
        mut client,
    } = wired().await;
    proxy.set(Fault::Reset);
    is_reset(&mut client).await;
    let mut second = TcpStream::connect(proxy.address()).await.unwrap();
    is_reset(&mut second).await;
    assert_eq!(proxy.heal().connections, 2);
    let mut third = TcpStream::connect(proxy.address()).await.unwrap();
    third.write_all(b"again").await.unwrap();
    answered(&mut third, b"again").await;
}

#[tokio::test]
async fn answers_are_lost_after_the_request_was_done_and_then_the_connection_is_reset() {
    let Wired {
        proxy,
        mut heard,
        mut client,
    } = wired().await;
    let patience = QUIET * 2;
    proxy.set(Fault::LoseAnswers { patience });
    client.write_all(b"request").await.unwrap();
    assert_eq!(
        timeout(SOON, heard.recv()).await.unwrap().unwrap(),
        b"request"
    );
    is_silent(&mut client).await;
    is_reset(&mut client).await;
    assert_eq!(
        proxy.heal(),
        Harm {
            connections: 1,
            bytes: 7
        }
    );
}

#[tokio::test]
async fn a_connection_that_lost_an_answer_never_passes_another_byte() {
    let Wired {
        proxy,
        mut heard,
        mut client,
    } = wired().await;
    proxy.set(Fault::LoseAnswers {
        patience: Duration::from_secs(600),
    });
    client.write_all(b"request").await.unwrap();
    heard.recv().await.unwrap();
    felt(&proxy, 1).await;
    proxy.heal();
    is_reset(&mut client).await;
}

#[tokio::test]
async fn a_delay_holds_back_and_a_drip_passes_all_in_the_end() {
    let Wired {
        proxy,
        heard: _heard,
        mut client,
    } = wired().await;
    let delay = Duration::from_millis(40);
    proxy.set(Fault::Delay {
        least: delay,
        most: delay * 2,
    });
    let began = Instant::now();
    client.write_all(b"slow").await.unwrap();
    answered(&mut client, b"slow").await;
    assert!(began.elapsed() >= delay * 2, "once each way");
    let harm = proxy.set(Fault::Drip {
        bytes: 3,
        pause: Duration::from_millis(2),
    });
    assert_eq!((harm.connections, harm.bytes), (1, 8));
    let long: Vec<u8> = (0..=255).collect();
    client.write_all(&long).await.unwrap();
    answered(&mut client, &long).await;
    assert!(proxy.heal().was_felt());
}

#[tokio::test]
async fn a_fault_without_traffic_was_not_felt() {
    let Wired {
        proxy,
        heard: _heard,
        client: _client,
    } = wired().await;
    for fault in [Fault::Cut, Fault::CutUp, Fault::CutDown] {
        proxy.set(fault);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(proxy.heal(), Harm::default());
    }
}
