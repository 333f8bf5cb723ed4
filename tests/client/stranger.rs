//! A peer that answers each request as the test wants, and then closes the connection.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A peer. If it is dropped, its connections are dropped too.
pub struct Stranger {
    pub url: String,
    _task: JoinSet<()>,
}

impl Stranger {
    /// The nth request gets the nth answer, and all later ones get the last. An empty answer is none at all. One
    /// that begins with `HTTP/` has its own head, and any other has the status 200.
    pub async fn with(answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound address"));
        let mut task = JoinSet::new();
        task.spawn(async move {
            for number in 0.. {
                let Ok((mut client, _)) = listener.accept().await else { return };
                read_request(&mut client).await;
                let body = answers[number.min(answers.len() - 1)];
                if body.starts_with("HTTP/") {
                    let _ = client.write_all(body.as_bytes()).await;
                } else if !body.is_empty() {
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                    );
                    let _ = client.write_all(answer.as_bytes()).await;
                }
            }
        });
        Self { url, _task: task }
    }
}

/// Reads a request. If it is no GET, it has a body that ends with a line feed.
async fn read_request(client: &mut TcpStream) {
    let mut request = Vec::new();
    let is_whole = |request: &[u8]| {
        let head = request.windows(4).position(|end| end == b"\r\n\r\n");
        let has_body = |head| request.len() > head + 4 && request.ends_with(b"\n");
        head.is_some_and(|head| request.starts_with(b"GET ") || has_body(head))
    };
    while !is_whole(&request) {
        let mut bytes = [0; 4096];
        match client.read(&mut bytes).await {
            Ok(count @ 1..) => request.extend_from_slice(&bytes[..count]),
            _ => return,
        }
    }
}
