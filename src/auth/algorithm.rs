//! The algorithms of token signatures (RFC 7518 §3.1): those of the library, and one that it lacks.

use std::str::FromStr;

use jsonwebtoken::{Algorithm as Known, AlgorithmFamily};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Known(Known),
    Es512,
}

impl Algorithm {
    pub fn family(self) -> AlgorithmFamily {
        match self {
            Self::Known(known) => known.family(),
            Self::Es512 => AlgorithmFamily::Ec,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Known(Known::HS256) => "HS256",
            Self::Known(Known::HS384) => "HS384",
            Self::Known(Known::HS512) => "HS512",
            Self::Known(Known::RS256) => "RS256",
            Self::Known(Known::RS384) => "RS384",
            Self::Known(Known::RS512) => "RS512",
            Self::Known(Known::PS256) => "PS256",
            Self::Known(Known::PS384) => "PS384",
            Self::Known(Known::PS512) => "PS512",
            Self::Known(Known::ES256) => "ES256",
            Self::Known(Known::ES384) => "ES384",
            Self::Es512 => "ES512",
            Self::Known(Known::EdDSA) => "EdDSA",
            Self::Known(_) => "this algorithm",
        }
    }
}

impl FromStr for Algorithm {
    type Err = jsonwebtoken::errors::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "ES512" { Ok(Self::Es512) } else { text.parse().map(Self::Known) }
    }
}
