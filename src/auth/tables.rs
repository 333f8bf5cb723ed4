//! Keys and grants as the configuration file has them: `[[key]]`, `[[jwt]]` and `[anonymous]`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, de::IgnoredAny};

use super::{
    authority::{ApiKey, Authority, TokenKey},
    grants::{GrantList, Template, Values},
    jwt::{KeyError, Material, Verifier},
    key::{Digest, ParseDigestError},
};

/// A table and its line in the file.
pub type InLine<T> = (T, usize);

/// Reads a file that a table names.
pub type Read<'a> = dyn FnMut(&Path) -> io::Result<String> + 'a;

/// `[[key]]`: an API key, by its hash.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyTable {
    name: String,
    sha256: Option<String>,
    /// A mistake: the key itself, which is not kept.
    key: Option<IgnoredAny>,
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    manage: Vec<Template>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    metrics: bool,
}

/// `[[jwt]]`: a key that signs tokens.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtTable {
    name: String,
    algorithm: String,
    kid: Option<String>,
    secret: Option<String>,
    pem: Option<String>,
    jwk: Option<String>,
    file: Option<PathBuf>,
    iss: Option<String>,
    aud: Option<String>,
    limit: Option<LimitTable>,
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    manage: Vec<Template>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    metrics: bool,
}

/// `[jwt.limit]`: the most that a token may grant itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitTable {
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    manage: Vec<Template>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    metrics: bool,
}

/// `[anonymous]`: the grants of a client without a credential.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnonymousTable {
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    metrics: bool,
}

impl Authority {
    /// Reads these tables, and the files that they name.
    ///
    /// # Errors
    /// All mistakes, each with its line. They repeat nothing that may be secret.
    pub fn new(
        keys: Vec<InLine<KeyTable>>,
        jwts: Vec<InLine<JwtTable>>,
        anonymous: Option<InLine<AnonymousTable>>,
        read: &mut Read<'_>,
    ) -> Result<Self, Vec<InLine<String>>> {
        let (mut authority, mut mistakes) = (Self::default(), Vec::new());
        for (table, line) in keys {
            mistakes.extend(authority.add_key(table).err().map(|what| (what, line)));
        }
        for (table, line) in jwts {
            mistakes.extend(authority.add_jwt(table, read).err().map(|what| (what, line)));
        }
        if let Some((AnonymousTable { subscribe, publish, metrics }, line)) = anonymous {
            let list = GrantList { subscribe, publish, metrics, ..GrantList::default() };
            mistakes.extend(without_subject(&list, "an anonymous client").err().map(|what| (what, line)));
            authority.anonymous = Some(Arc::new(GrantList::grant([&list], &Values::default(), &mut |_| {})));
        }
        if mistakes.is_empty() { Ok(authority) } else { Err(mistakes) }
    }

    /// Accepts tokens signed with this secret by HS256, besides all others.
    pub fn add_development_secret(&mut self, secret: &str) {
        self.token_keys.push(TokenKey {
            name: "--jwt-secret".into(),
            verifier: Verifier::for_development(secret),
            iss: None,
            aud: None,
            grants: GrantList::default(),
            limit: None,
        });
    }

    fn add_key(&mut self, table: KeyTable) -> Result<(), String> {
        let KeyTable { name, sha256, key, subscribe, publish, manage, admin, metrics } = table;
        if key.is_some() {
            return Err(format!(
                "key {name:?}: the file holds no key, only its hash: replace `key` by `sha256`, with the hash that \
                 `printf %s KEY | sha256sum` prints, or with a new key of `rejoin key new`"
            ));
        }
        let sha256 = sha256.ok_or_else(|| format!("key {name:?}: sha256 is missing: {ParseDigestError}"))?;
        let digest: Digest = sha256.parse().map_err(|error| format!("key {name:?}: sha256: {error}"))?;
        if digest.is(&Digest::of(b"")) {
            return Err(format!(
                "key {name:?}: sha256 is that of an empty key: take the one that `rejoin key new` prints"
            ));
        }
        if let Some(known) = self.keys.iter().find(|known| known.digest.is(&digest)) {
            return Err(format!("key {name:?} is the same key as {:?}", known.name));
        }
        let list = GrantList { subscribe, publish, manage, admin, metrics };
        without_subject(&list, "an API key").map_err(|text| format!("key {name:?}: {text}"))?;
        self.keys.push(ApiKey {
            name: name.into(),
            digest,
            grants: Arc::new(GrantList::grant([&list], &Values::default(), &mut |_| {})),
        });
        Ok(())
    }

    fn add_jwt(&mut self, table: JwtTable, read: &mut Read<'_>) -> Result<(), String> {
        let verifier = table.verifier(read).map_err(|text| format!("jwt {:?}: {text}", table.name))?;
        let JwtTable { name, iss, aud, limit, subscribe, publish, manage, admin, metrics, .. } = table;
        let is_same = |known: &&TokenKey| known.verifier.fingerprint().is(verifier.fingerprint());
        if let Some(known) = self.token_keys.iter().find(is_same) {
            return Err(format!("jwt {name:?} is the same key as {:?}", known.name));
        }
        let grants = GrantList { subscribe, publish, manage, admin, metrics };
        let limit = limit.map(|LimitTable { subscribe, publish, manage, admin, metrics }| GrantList {
            subscribe,
            publish,
            manage,
            admin,
            metrics,
        });
        self.token_keys.push(TokenKey { name, verifier, iss, aud, grants, limit });
        Ok(())
    }
}

impl JwtTable {
    fn verifier(&self, read: &mut Read<'_>) -> Result<Verifier, String> {
        let text = self
            .file
            .as_ref()
            .map(|file| read(file).map_err(|error| format!("file {}: {error}", file.display())));
        let text = text.transpose()?;
        let material = match (&self.secret, &self.pem, &self.jwk, &text) {
            (Some(secret), None, None, None) => Material::Secret(secret),
            (None, Some(pem), None, None) => Material::Pem(pem),
            (None, None, Some(jwk), None) => Material::Jwk(jwk),
            (None, None, None, Some(text)) => Material::of(text),
            _ => return Err("give exactly one of secret, pem, jwk and file".into()),
        };
        Verifier::new(&self.algorithm, self.kid.clone(), material)
            .map_err(|error: KeyError| error.to_string())
    }
}

fn without_subject(list: &GrantList, whose: &str) -> Result<(), String> {
    if list.names_subject() {
        Err(format!("{whose} has no subject and no claims: remove the braces from the pattern"))
    } else {
        Ok(())
    }
}
