//! Keeps the task of an HTTP/1.1 connection from being woken for nothing.
//!
//! Each time bytes of a request's body are taken, hyper wakes its connection, so that it reads more of the body. After
//! the last bytes there is no more, and the task would be scheduled and polled again, often on another thread.

use std::{
    cell::Cell,
    sync::Arc,
    task::{Context, Wake, Waker},
};

use futures_util::task::AtomicWaker;

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held::No) };
}

/// The wake-up that a body has caused on this thread while it was read.
#[derive(Default)]
enum Held {
    /// No body is being read.
    #[default]
    No,
    /// It has caused none yet.
    Nothing,
    Wake(Arc<Task>),
}

/// The waker of one connection.
pub struct Wakes {
    task: Arc<Task>,
    waker: Waker,
}

#[derive(Default)]
struct Task(AtomicWaker);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        match HELD.take() {
            Held::Nothing => HELD.set(Held::Wake(self)),
            other => {
                HELD.set(other);
                self.0.wake();
            }
        }
    }
}

impl Wakes {
    pub fn new() -> Self {
        let task = Arc::<Task>::default();
        Self { waker: task.clone().into(), task }
    }

    /// Polls the connection with its own waker, which wakes this task.
    pub fn poll<T>(&self, cx: &Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
        self.task.0.register(cx.waker());
        poll(&mut Context::from_waker(&self.waker))
    }
}

/// Reads from a body, and says if that was the last of it: then its connection is not woken.
pub fn read_quietly<T>(read: impl FnOnce() -> (T, bool)) -> T {
    let mut reading = Reading { has_ended: false };
    HELD.set(Held::Nothing);
    let (result, has_ended) = read();
    reading.has_ended = has_ended;
    result
}

/// While this lives, the wake-up is held. A panic ends it too.
struct Reading {
    has_ended: bool,
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Held::Wake(task) = HELD.take()
            && !self.has_ended
        {
            task.0.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::body::Body;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;
    use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::{super::linger, *};

    /// The body and the trailer of a request.
    async fn answer(body: Body) -> Result<Response<Body>, Infallible> {
        let mut answer = match body.collect().await {
            Ok(body) => {
                let trailer = body.trailers().and_then(|trailers| trailers.get("t")).cloned();
                let trailer = trailer.as_ref().map_or(&[][..], |value| value.as_bytes());
                [&*body.to_bytes(), trailer].concat()
            }
            Err(_) => b"broken".to_vec(),
        };
        answer.push(b'\n');
        Ok(Response::new(Body::from(answer)))
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection that is polled only when it has woken its task.
    struct Connection {
        client: DuplexStream,
        served: Pin<Box<dyn Future<Output = hyper::Result<()>>>>,
        wakes: Wakes,
        woken: Arc<Count>,
        has_begun: bool,
        has_ended: bool,
    }

    impl Connection {
        fn new() -> Self {
            Self::reading(|request| linger::keep(request).0.into_body())
        }

        /// The same, with a body that is read in some other way.
        fn reading(body_of: impl Fn(Request<Incoming>) -> Body + Copy + 'static) -> Self {
            let (client, server) = duplex(1 << 12);
            let service = service_fn(move |request| answer(body_of(request)));
            let served = Box::pin(http1::Builder::new().serve_connection(TokioIo::new(server), service));
            let (wakes, woken) = (Wakes::new(), Arc::default());
            Self { client, served, wakes, woken, has_begun: false, has_ended: false }
        }

        fn send(&mut self, bytes: &[u8]) {
            self.client.write_all(bytes).now_or_never().expect("room").expect("it is open");
            self.run();
        }

        /// Ends the client's side.
        fn end(&mut self) {
            self.client.shutdown().now_or_never().expect("no wait").expect("it is open");
            self.run();
        }

        fn run(&mut self) {
            let waker = self.woken.clone().into();
            while !self.has_ended && (self.woken.0.swap(0, Ordering::Relaxed) > 0 || !self.has_begun) {
                self.has_begun = true;
                let served = &mut self.served;
                let served = self.wakes.poll(&Context::from_waker(&waker), |cx| served.as_mut().poll(cx));
                self.has_ended = served.is_ready();
            }
        }

        /// The bodies of the answers that have come, and `continue` for each interim answer.
        fn answers(&mut self) -> Vec<String> {
            let mut bytes = vec![0; 1 << 12];
            let length =
                self.client.read(&mut bytes).now_or_never().map_or(0, |read| read.expect("it is open"));
            let text = String::from_utf8(bytes[..length].to_vec()).expect("UTF-8");
            let answers = text.split("HTTP/1.1 ").skip(1);
            let body = |answer: &str| match answer.split_once("\r\n\r\n").expect("a head") {
                ("100 Continue", _) => "continue".to_owned(),
                (_, body) => body.trim_end().to_owned(),
            };
            answers.map(body).collect()
        }
    }

    const HEAD: &str = "POST / HTTP/1.1\r\nhost: x\r\n";

    /// How often a connection wakes its task for a body that has come with its head.
    fn wakes(body_of: impl Fn(Request<Incoming>) -> Body + Copy + 'static) -> usize {
        let mut connection = Connection::reading(body_of);
        let request = format!("{HEAD}content-length: 4\r\n\r\nabcd");
        connection.client.write_all(request.as_bytes()).now_or_never().expect("room").expect("it is open");
        let waker = connection.woken.clone().into();
        let served = &mut connection.served;
        let served = connection.wakes.poll(&Context::from_waker(&waker), |cx| served.as_mut().poll(cx));
        assert!(served.is_pending());
        assert_eq!(connection.answers(), ["abcd"]);
        connection.woken.0.load(Ordering::Relaxed)
    }

    #[test]
    fn a_body_that_has_come_whole_does_not_wake_its_connection() {
        assert_eq!(wakes(|request| linger::keep(request).0.into_body()), 0);
    }

    /// If this fails, a new version of hyper does not wake it, and this file has nothing left to do: remove it.
    #[test]
    fn hyper_alone_wakes_a_connection_for_a_body_that_has_come_whole() {
        assert!(wakes(|request| Body::new(request.into_body())) > 0);
    }

    /// Requests with every kind of body, one right behind the other. Each answer stands with the end of its request.
    fn pipelined() -> (String, Vec<(usize, &'static str)>) {
        let requests = [
            ("content-length: 2\r\n\r\nab", "ab"),
            ("transfer-encoding: chunked\r\n\r\n1\r\nc\r\n2\r\nde\r\n0\r\n\r\n", "cde"),
            ("transfer-encoding: chunked\r\ntrailer: t\r\n\r\n1\r\nf\r\n0\r\nt: g\r\n\r\n", "fg"),
            ("content-length: 0\r\n\r\n", ""),
            ("transfer-encoding: chunked\r\n\r\n0\r\n\r\n", ""),
            ("content-length: 1\r\n\r\nh", "h"),
        ];
        let (mut bytes, mut answers) = (String::new(), Vec::new());
        for (request, answer) in requests {
            bytes += HEAD;
            bytes += request;
            answers.push((bytes.len(), answer));
        }
        (bytes, answers)
    }

    /// If a new version of hyper reads the next request only when it is woken for the end of a body, this waits.
    #[test]
    fn pipelined_requests_are_answered_wherever_they_are_cut() {
        let (requests, answers) = pipelined();
        let answers: Vec<_> = answers.into_iter().map(|(_, answer)| answer).collect();
        for at in 0..=requests.len() {
            for rest in [&[requests.len()][..], &[at + 1, requests.len()]] {
                let (mut connection, mut from) = (Connection::new(), 0);
                for end in [at].iter().chain(rest).map(|end| (*end).min(requests.len())) {
                    connection.send(&requests.as_bytes()[from..end]);
                    from = end;
                }
                assert_eq!(connection.answers(), answers, "cut at {at} and {rest:?}");
                assert!(!connection.has_ended);
            }
        }
    }

    #[test]
    fn a_client_that_waits_for_100_continue_is_asked_for_the_body_and_answered() {
        for (field, pieces) in [
            ("content-length: 4", &["abcd"][..]),
            ("content-length: 4", &["ab", "c", "d"]),
            ("transfer-encoding: chunked", &["2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"]),
            ("transfer-encoding: chunked", &["2\r\nab\r\n", "2\r\ncd\r\n", "0\r\n", "\r\n"]),
        ] {
            let mut connection = Connection::new();
            connection.send(format!("{HEAD}expect: 100-continue\r\n{field}\r\n\r\n").as_bytes());
            assert_eq!(connection.answers(), ["continue"], "{field}");
            pieces.iter().for_each(|piece| connection.send(piece.as_bytes()));
            assert_eq!(connection.answers(), ["abcd"], "{field} {pieces:?}");
            // The connection goes on.
            connection.send(format!("{HEAD}content-length: 1\r\n\r\ne").as_bytes());
            assert_eq!(connection.answers(), ["e"], "{field} {pieces:?}");
        }
    }

    /// A client that ends its side is not waited for, and no part of a body counts as the whole.
    #[test]
    fn a_connection_ends_with_its_client_wherever_that_is() {
        let (requests, answers) = pipelined();
        for at in 0..=requests.len() {
            let mut connection = Connection::new();
            connection.send(&requests.as_bytes()[..at]);
            connection.end();
            assert!(connection.has_ended, "it waits after {at} bytes");
            let mut came = connection.answers();
            // A body whose end is missing is an error to its handler.
            came.pop_if(|last| last == "broken");
            let whole = answers.iter().filter(|(end, _)| *end <= at).count();
            assert!((whole..=answers.len()).contains(&came.len()), "{at}: {came:?}");
            assert!(came.iter().zip(&answers).all(|(came, (_, sent))| came == sent), "{at}: {came:?}");
        }
    }
}
