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
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::body::Body;
    use http_body_util::BodyExt;
    use hyper::{Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::{super::linger, *};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Serves a request that comes in these pieces. The result is how often the connection woke its task.
    async fn served(pieces: &[&str]) -> usize {
        let (mut client, server) = duplex(1 << 10);
        let service = service_fn(async |request| {
            let (request, _rest) = linger::keep(request);
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            Ok::<_, Infallible>(Response::new(Body::from(body)))
        });
        let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let (wakes, count) = (Wakes::new(), Arc::<Count>::default());
        let waker = count.clone().into();
        let mut polled = 0;
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.expect("room");
            // The piece itself wakes the connection, except for the first.
            while polled == 0 || count.0.load(Ordering::Relaxed) >= polled {
                polled += 1;
                let polled = wakes.poll(&Context::from_waker(&waker), |cx| connection.as_mut().poll(cx));
                assert!(polled.is_pending());
            }
        }
        let mut answer = vec![0; 1 << 10];
        let length = client.read(&mut answer).await.expect("an answer");
        assert!(answer[..length].ends_with(b"\r\n\r\nabcd"));
        count.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_body_that_has_come_whole_does_not_wake_its_connection() {
        let head = "POST / HTTP/1.1\r\nhost: x\r\n";
        assert_eq!(served(&[&format!("{head}content-length: 4\r\n\r\nabcd")]).await, 0);
    }

    #[tokio::test]
    async fn a_body_that_comes_in_pieces_is_read_to_its_end() {
        let head = "POST / HTTP/1.1\r\nhost: x\r\n";
        served(&[&format!("{head}content-length: 4\r\n\r\nab"), "c", "d"]).await;
        served(&[&format!("{head}transfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")]).await;
        served(&[
            &format!("{head}transfer-encoding: chunked\r\n\r\n2\r\nab\r\n"),
            "2\r\ncd\r\n",
            "0\r\n\r\n",
        ])
        .await;
    }
}
