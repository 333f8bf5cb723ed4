//! HTTP: one adapter for each transport, and the parts that they share.
//!
//! Each transport is an adapter that knows no other, and none of them knows how the log stores messages.

mod accept;
mod access;
mod access_log;
#[cfg(feature = "acme")]
mod acme;
mod answer;
mod app;
mod arrival;
mod asked;
mod batch;
mod beginning;
mod body;
mod client_address;
mod coding;
mod connections;
mod credentials;
mod deflate;
mod escape;
mod feed;
mod fetch;
mod forwarded;
mod gate;
mod group;
mod gzip;
mod headers;
mod held;
mod history;
mod hook;
mod http1;
mod http2;
mod identify;
mod idle;
mod inspect;
mod issuers;
mod linger;
mod listener;
mod live;
mod malformed;
mod media;
mod metrics;
mod origin;
mod outbox;
mod outgoing;
mod page;
mod parameters;
mod patient;
mod places;
mod poll;
mod presence;
mod problem;
mod proxy_protocol;
mod publish;
mod pulse;
mod query;
mod reader;
mod ready;
mod refusal;
mod renewal;
mod routes;
mod rules;
mod shared_socket;
mod shares;
mod socket;
mod stall;
mod stream;
mod subjects;
mod subscribe;
mod tls;
mod tls_session;
mod tls_socket;
mod unix_listener;
mod wakes;
mod websocket;
mod wire;

#[cfg(feature = "acme")]
pub use self::acme::Acme;
use self::app::{MAX_TOPICS, MAX_WILDCARDS, overloaded, topic_limit_reached};
pub use self::{
    accept::{Drained, serve},
    app::App,
    client_address::ClientAddress,
    listener::{Listener, Listeners, Serves},
    metrics::{DROPPED_LINES, DroppedLines},
    problem::{Code, Problem},
    routes::router,
    rules::Reopened,
};
