//! The threats of `docs/security.md`, and what credentials and grants promise, through a real server and a
//! real client. For each threat a test fails if the defence is missing.

#[allow(dead_code, reason = "shared with the contract, which uses all of it")]
#[path = "../contract/ask.rs"]
mod ask;
#[allow(dead_code, unused_imports, reason = "shared with the contract, which uses all of it")]
#[path = "../contract"]
mod contract {
    pub mod reader;
}
mod both;
mod connections;
mod ended;
mod expiry;
mod grants;
mod hook;
mod issuers;
mod listed;
mod lists;
mod people;
mod presence;
mod provider;
mod refusals;
mod reload;
mod shares;
#[path = "../support/signer.rs"]
mod signer;
mod stub;
mod subjects;
#[path = "../support/mod.rs"]
mod support;
mod tables;
mod threats;
mod tokens;
mod waiting;

use contract::reader;
