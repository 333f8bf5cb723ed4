//! The proofs that this server answers for its names, in a handshake of TLS (RFC 8737, TLS-ALPN-01).

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{crypto::aws_lc_rs, pki_types::PrivateKeyDer, server::ClientHello, sign::CertifiedKey};

/// A certificate for each name that the authority asks about now.
#[derive(Debug, Default)]
pub struct Proofs(ArcSwap<HashMap<String, Arc<CertifiedKey>>>);

impl Proofs {
    /// The protocol that an authority offers, and no other client.
    pub const PROTOCOL: &[u8] = b"acme-tls/1";

    pub fn are_asked_for(hello: &ClientHello<'_>) -> bool {
        hello.alpn().is_some_and(|mut protocols| {
            protocols.next() == Some(Self::PROTOCOL) && protocols.next().is_none()
        })
    }

    pub fn of(&self, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().get(hello.server_name()?).cloned()
    }

    /// Adds the proof of a name: a certificate that signs itself, with the digest that only the owner of the account
    /// knows.
    ///
    /// # Errors
    /// If the name cannot stand in a certificate.
    pub fn add(&self, name: &str, digest: &[u8]) -> Result<(), String> {
        let proof = Arc::new(proof(name, digest)?);
        self.0.rcu(|proofs| {
            let mut proofs = HashMap::clone(proofs);
            proofs.insert(name.to_owned(), proof.clone());
            proofs
        });
        Ok(())
    }

    pub fn clear(&self) {
        self.0.store(Arc::default());
    }
}

fn proof(name: &str, digest: &[u8]) -> Result<CertifiedKey, String> {
    let wrong = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new([name.to_owned()]).map_err(wrong)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(wrong)?;
    let certificate = params.self_signed(&key).map_err(wrong)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    // A check if both fit would reject the extension, which is critical by design.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}
