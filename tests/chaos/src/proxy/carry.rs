//! One connection through the proxy, from its first byte to its end.

use std::{net::SocketAddr, sync::atomic::AtomicU64, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    time::{sleep, sleep_until},
};

use super::{Fault, Shared, Weather};

/// Read at a time.
const CHUNK: usize = 16 << 10;

/// The connection is to be reset.
struct Broken;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Fault {
    /// Nothing passes this way, and nobody is told.
    fn holds(self, way: Way) -> bool {
        match self {
            Self::Cut => true,
            Self::CutUp => way == Way::Up,
            Self::CutDown => way == Way::Down,
            Self::None | Self::Reset | Self::LoseAnswers { .. } => false,
            Self::Delay { .. } | Self::Drip { .. } => false,
        }
    }
}

/// What one connection knows of the network.
#[derive(Clone)]
struct Line<'a> {
    shared: &'a Shared,
    weather: watch::Receiver<Weather>,
    /// See [`Shared::count`].
    felt: &'a AtomicU64,
}

impl Line<'_> {
    fn now(&mut self) -> Weather {
        *self.weather.borrow_and_update()
    }

    /// Waits while nothing passes this way, and says how it is then.
    async fn opens(&mut self, way: Way, bytes: usize) -> Weather {
        let mut weather = self.now();
        while weather.fault.holds(way) {
            self.shared.count(weather, self.felt, bytes);
            self.changed().await;
            weather = self.now();
        }
        weather
    }

    /// The sender is part of what all connections share, and outlives them.
    async fn changed(&mut self) {
        let _ = self.weather.changed().await;
    }

    /// Waits until connections are to be reset.
    async fn reset(&mut self) {
        loop {
            let weather = self.now();
            if weather.fault == Fault::Reset {
                self.shared.count(weather, self.felt, 0);
                return;
            }
            self.changed().await;
        }
    }
}

/// Carries a connection until its end.
pub(super) async fn carry(client: TcpStream, upstream: SocketAddr, shared: &Shared) {
    let felt = AtomicU64::new(0);
    let line = Line {
        shared,
        weather: shared.weather.subscribe(),
        felt: &felt,
    };
    let Some(server) = dial(upstream, line.clone()).await else {
        return reset(client);
    };
    // Who does without would measure our delays.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut client, mut server) = (client, server);
    if let Err(Broken) = both_ways(&mut client, &mut server, line.clone()).await {
        // Whoever can't be reached now hears of the end when it can be.
        let (mut up, mut down) = (line.clone(), line);
        let ends = async {
            up.opens(Way::Up, 0).await;
            reset(server);
        };
        let starts = async {
            down.opens(Way::Down, 0).await;
            reset(client);
        };
        tokio::join!(ends, starts);
    }
}

fn reset(stream: TcpStream) {
    // Where it fails the peer is told goodbye instead, and learns as much.
    let _ = stream.set_zero_linger();
}

/// Dials, when that can arrive.
async fn dial(upstream: SocketAddr, mut line: Line<'_>) -> Option<TcpStream> {
    let weather = line.opens(Way::Up, 0).await;
    if weather.fault == Fault::Reset {
        line.shared.count(weather, line.felt, 0);
        return None;
    }
    TcpStream::connect(upstream).await.ok()
}

async fn both_ways(
    client: &mut TcpStream,
    server: &mut TcpStream,
    mut line: Line<'_>,
) -> Result<(), Broken> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = pump(Way::Up, from_client, to_server, line.clone());
    let down = pump(Way::Down, from_server, to_client, line.clone());
    let both = async { tokio::try_join!(up, down).map(drop) };
    tokio::select! {
        ended = both => ended,
        () = line.reset() => Err(Broken),
    }
}

/// Carries one way until the sender is done.
async fn pump(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut line: Line<'_>,
) -> Result<(), Broken> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let taken = from.read(&mut chunk).await.map_err(|_| Broken)?;
        let weather = line.opens(way, taken).await;
        if taken == 0 {
            return to.shutdown().await.map_err(|_| Broken);
        }
        pass(way, weather, &chunk[..taken], &mut to, &mut line).await?;
    }
}

/// Passes bytes on, as the weather is.
async fn pass(
    way: Way,
    weather: Weather,
    bytes: &[u8],
    to: &mut WriteHalf<'_>,
    line: &mut Line<'_>,
) -> Result<(), Broken> {
    let count = || line.shared.count(weather, line.felt, bytes.len());
    match weather.fault {
        Fault::LoseAnswers { patience } if way == Way::Down => {
            count();
            lose(patience, line).await;
            return Err(Broken);
        }
        Fault::Delay { least, most } => {
            count();
            sleep(line.shared.between(least, most)).await;
        }
        Fault::Drip { bytes: few, pause } => {
            count();
            return drip(way, bytes, (few, pause), to, line).await;
        }
        _ => {}
    }
    // What was held back by a delay goes nowhere during a cut that began meanwhile.
    line.opens(way, bytes.len()).await;
    to.write_all(bytes).await.map_err(|_| Broken)
}

/// Nothing of this connection gets down any more: until patience ends, or the network heals.
async fn lose(patience: Duration, line: &mut Line<'_>) {
    let end = tokio::time::Instant::now() + patience;
    let lost = line.weather.borrow().generation;
    let healed = line.weather.wait_for(|weather| weather.generation != lost);
    tokio::select! {
        () = sleep_until(end) => {}
        _ = healed => {}
    }
}

/// Passes bytes on in pieces; what is left when the weather changes goes on as soon as anything passes.
async fn drip(
    way: Way,
    bytes: &[u8],
    (few, pause): (usize, Duration),
    to: &mut WriteHalf<'_>,
    line: &mut Line<'_>,
) -> Result<(), Broken> {
    for piece in bytes.chunks(few.max(1)) {
        let weather = line.opens(way, piece.len()).await;
        to.write_all(piece).await.map_err(|_| Broken)?;
        if matches!(weather.fault, Fault::Drip { .. }) {
            tokio::select! {
                () = sleep(pause) => {}
                () = line.changed() => {}
            }
        }
    }
    Ok(())
}
