//! Keys and grants as the configuration file has them: `[[key]]`, `[[jwt]]` and `[anonymous]`.

use std::{
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    authority::{ApiKey, Authority, TokenKey},
    grants::{GrantList, Template},
    jwt::{KeyError, Material, Verifier},
    key::Digest,
};

/// Something in the file that cannot be meant. It repeats nothing that may be secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub text: String,
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// The tables of this room; what else the file holds is not looked at.
#[derive(Deserialize)]
struct Tables {
    #[serde(default)]
    key: Vec<Spanned<KeyTable>>,
    #[serde(default)]
    jwt: Vec<Spanned<JwtTable>>,
    anonymous: Option<Spanned<AnonymousTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyTable {
    name: String,
    sha256: String,
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    metrics: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtTable {
    name: String,
    algorithm: String,
    kid: Option<String>,
    secret: Option<String>,
    pem: Option<String>,
    jwk: Option<String>,
    file: Option<PathBuf>,
    iss: Option<String>,
    aud: Option<String>,
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    metrics: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousTable {
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    metrics: bool,
}

impl Authority {
    /// Reads the tables of a configuration file, and the files that they name, relative to `folder`.
    ///
    /// # Errors
    /// All mistakes that can be found; nothing is configured by halves.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Mistake>> {
        let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let tables: Tables = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(span.start));
            vec![Mistake { line, text: error.message().to_owned() }]
        })?;
        let (mut authority, mut mistakes) = (Self::default(), Vec::new());
        for table in tables.key {
            let line = line_at(table.span().start);
            if let Err(text) = authority.add_key(table.into_inner()) {
                mistakes.push(Mistake { line, text });
            }
        }
        for table in tables.jwt {
            let line = line_at(table.span().start);
            if let Err(text) = authority.add_jwt(table.into_inner(), folder) {
                mistakes.push(Mistake { line, text });
            }
        }
        if let Some(table) = tables.anonymous {
            let line = line_at(table.span().start);
            let AnonymousTable { subscribe, publish, metrics } = table.into_inner();
            let list = GrantList { subscribe, publish, admin: false, metrics };
            match without_subject(&list, "whoever is anonymous") {
                Ok(()) => authority.anonymous = Some(Arc::new(GrantList::grant([&list], None))),
                Err(text) => mistakes.push(Mistake { line, text }),
            }
        }
        if mistakes.is_empty() { Ok(authority) } else { Err(mistakes) }
    }

    /// Accepts tokens signed by this secret with HS256, beside all others.
    pub fn add_development_secret(&mut self, secret: &str) {
        self.token_keys.push(TokenKey {
            name: "--jwt-secret".into(),
            verifier: Verifier::for_development(secret),
            iss: None,
            aud: None,
            grants: GrantList::default(),
        });
    }

    fn add_key(&mut self, table: KeyTable) -> Result<(), String> {
        let KeyTable { name, sha256, subscribe, publish, admin, metrics } = table;
        let digest: Digest = sha256.parse().map_err(|error| format!("[[key]] {name:?}: sha256: {error}"))?;
        if let Some(known) = self.keys.iter().find(|known| known.digest.is(&digest)) {
            return Err(format!("[[key]] {name:?} is the same key as {:?}", known.name));
        }
        let list = GrantList { subscribe, publish, admin, metrics };
        without_subject(&list, "an API key").map_err(|text| format!("[[key]] {name:?}: {text}"))?;
        self.keys.push(ApiKey { name, digest, grants: Arc::new(GrantList::grant([&list], None)) });
        Ok(())
    }

    fn add_jwt(&mut self, table: JwtTable, folder: &Path) -> Result<(), String> {
        let verifier = table.verifier(folder).map_err(|text| format!("[[jwt]] {:?}: {text}", table.name))?;
        let JwtTable { name, iss, aud, subscribe, publish, admin, metrics, .. } = table;
        let is_same = |known: &&TokenKey| known.verifier.fingerprint().is(verifier.fingerprint());
        if let Some(known) = self.token_keys.iter().find(is_same) {
            return Err(format!("[[jwt]] {name:?} is the same key as {:?}", known.name));
        }
        let grants = GrantList { subscribe, publish, admin, metrics };
        self.token_keys.push(TokenKey { name, verifier, iss, aud, grants });
        Ok(())
    }
}

impl JwtTable {
    fn verifier(&self, folder: &Path) -> Result<Verifier, String> {
        let read = self.file.as_ref().map(|file| {
            fs::read_to_string(folder.join(file)).map_err(|error| format!("file {}: {error}", file.display()))
        });
        let read = read.transpose()?;
        let material = match (&self.secret, &self.pem, &self.jwk, &read) {
            (Some(secret), None, None, None) => Material::Secret(secret),
            (None, Some(pem), None, None) => Material::Pem(pem),
            (None, None, Some(jwk), None) => Material::Jwk(jwk),
            (None, None, None, Some(text)) => kind_of(text),
            _ => return Err("give one of secret, pem, jwk and file".into()),
        };
        Verifier::new(&self.algorithm, self.kid.clone(), material)
            .map_err(|error: KeyError| error.to_string())
    }
}

/// What a file holds, by how it begins.
fn kind_of(text: &str) -> Material<'_> {
    match text.trim_start().as_bytes() {
        [b'-', b'-', b'-', b'-', b'-', ..] => Material::Pem(text),
        [b'{', ..] => Material::Jwk(text),
        // The line end is the editor's.
        _ => Material::Secret(text.trim_end_matches(['\r', '\n'])),
    }
}

fn without_subject(list: &GrantList, whose: &str) -> Result<(), String> {
    if list.names_subject() { Err(format!("{whose} has no subject for {{sub}}")) } else { Ok(()) }
}
