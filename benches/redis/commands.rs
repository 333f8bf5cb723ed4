//! Commands about connections: how many a second one replica has done by another.

use std::{net::SocketAddr, sync::Arc};

use rejoin::{Config, Server, Shutdown};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{BEAT, Outcome, ROUNDS, print_line, redis};

/// How many commands wait at once, each about a connection of its own.
const AT_ONCE: usize = 128;
const COMMANDS: usize = 400;

/// The other replica holds the connections, and as a comparison the one that is asked.
pub async fn commands() -> Outcome<()> {
    let redis = redis()?;
    let (asked, other) = (serve(&redis.url()).await?, serve(&redis.url()).await?);
    let (mut across, mut own) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        across.push(round(asked, other).await?);
        own.push(round(asked, asked).await?);
    }
    let name = format!("commands about connections of another replica, {AT_ONCE} at once");
    print_line(&name, "1/s", &across, "connections of the replica that is asked", &own);
    Ok(())
}

async fn serve(log: &str) -> Outcome<SocketAddr> {
    let config = Config { log: log.parse()?, ..Config::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let server = Server::start(Arc::new(config), Shutdown::new()).await?;
    tokio::spawn(server.serve(listener));
    Ok(addr)
}

/// Commands a second at one replica, about connections of `holder`.
async fn round(asked: SocketAddr, holder: SocketAddr) -> Outcome<f64> {
    let mut clients = Vec::new();
    for _ in 0..AT_ONCE {
        clients.push((open(holder).await?, TcpStream::connect(asked).await?));
    }
    let began = Instant::now();
    let mut all = JoinSet::new();
    for (id, mut stream) in clients {
        all.spawn(async move {
            for number in 0..COMMANDS {
                let method = if number % 2 == 0 { "PUT" } else { "DELETE" };
                let path = format!("/connections/{id}/topics/t");
                let answer = ask(&mut stream, method, &path).await.map_err(|error| error.to_string())?;
                if !answer.starts_with("HTTP/1.1 204") {
                    return Err(answer);
                }
            }
            Ok(())
        });
    }
    while let Some(done) = all.join_next().await {
        done??;
    }
    Ok((AT_ONCE * COMMANDS) as f64 / began.elapsed().as_secs_f64())
}

/// The id of a new stream, which is read for as long as it lasts.
async fn open(holder: SocketAddr) -> Outcome<String> {
    loop {
        let mut stream = TcpStream::connect(holder).await?;
        stream
            .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n")
            .await?;
        let opened = read_until(&mut stream, "\"heartbeat_ms\"").await?;
        let id = opened.split_once("\"connection\":\"").and_then(|(_, rest)| rest.split('"').next());
        let Some(id) = id.map(str::to_owned) else {
            // It has yet to reach Redis.
            sleep(BEAT).await;
            continue;
        };
        tokio::spawn(async move {
            let mut unread = [0; 4096];
            while stream.read(&mut unread).await.is_ok_and(|count| count > 0) {}
        });
        return Ok(id);
    }
}

async fn ask(stream: &mut TcpStream, method: &str, path: &str) -> Outcome<String> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    read_until(stream, "\r\n\r\n").await
}

/// Everything that comes up to this text, or to the end.
async fn read_until(stream: &mut TcpStream, text: &str) -> Outcome<String> {
    let (mut answer, mut bytes) = (String::new(), [0; 4096]);
    while !answer.contains(text) {
        match stream.read(&mut bytes).await? {
            0 => break,
            count => answer.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }
    Ok(answer)
}
