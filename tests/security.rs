//! The threats of `docs/security.md`: for each a test that fails where nothing stops it.

#[path = "support/signer.rs"]
mod signer;
#[path = "security/tokens.rs"]
mod tokens;
