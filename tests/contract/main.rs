//! The contract, sentence by sentence. Each test is named after a claim of `docs/protocol.md`, and uses a
//! real server through a real client.

mod access_log;
mod addresses;
mod ask;
mod batch;
mod bounds;
mod breakout;
mod codes;
mod coding;
mod commands;
mod compressed;
mod conditions;
mod connections;
mod cursors;
mod dashboard;
mod delete;
mod drain;
mod ephemeral;
mod failing;
mod faults;
mod frames;
mod gaps;
mod groups;
mod guard;
mod head;
mod heard;
mod history;
mod http1;
mod http2;
mod inspect;
mod joining;
mod logs;
mod metrics;
mod names;
mod nested;
mod objects;
mod openapi;
mod poll;
mod printed;
mod process;
mod publish;
mod reader;
mod replay;
mod retain;
mod separators;
mod settings;
#[path = "../support/signer.rs"]
mod signer;
mod slow;
mod sse;
mod start;
mod state;
mod subscribe;
#[path = "../support/mod.rs"]
mod support;
mod websocket;
