//! Keys and grants as the configuration file has them: `[[key]]`, `[[jwt]]`, `[hook]` and `[anonymous]`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, de::IgnoredAny};
use url::Url;

use super::{
    authority::{ApiKey, Authority, Identity, Terms, TokenKey},
    grants::GrantList,
    hook::{HookSettings, HookTerms},
    issuer::{Issuer, Place, Source},
    jwt::{KeyError, Material, Verifier, is_blanked},
    key::{Digest, ParseDigestError},
    subject::Owner,
    template::{Template, Values},
};

const ONE_KEY: &str = "give exactly one of secret, pem, jwk, file, jwks and issuer";

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
    presence: Vec<Template>,
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
    algorithm: Option<String>,
    kid: Option<String>,
    secret: Option<String>,
    pem: Option<String>,
    jwk: Option<String>,
    file: Option<PathBuf>,
    jwks: Option<String>,
    issuer: Option<String>,
    ca: Option<PathBuf>,
    iss: Option<String>,
    aud: Option<String>,
    #[serde(rename = "sub-prefix")]
    prefix: Option<String>,
    #[serde(default)]
    by: bool,
    limit: Option<LimitTable>,
    #[serde(default)]
    subscribe: Vec<Template>,
    #[serde(default)]
    publish: Vec<Template>,
    #[serde(default)]
    manage: Vec<Template>,
    #[serde(default)]
    presence: Vec<Template>,
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
    presence: Vec<Template>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    metrics: bool,
}

/// `[hook]`: the backend that is asked who a client is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookTable {
    url: String,
    secret: Option<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    cookies: Vec<String>,
    #[serde(rename = "sub-prefix")]
    prefix: Option<String>,
    #[serde(default)]
    by: bool,
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
        hook: Option<InLine<HookTable>>,
        read: &mut Read<'_>,
    ) -> Result<Self, Vec<InLine<String>>> {
        let (mut authority, mut mistakes) = (Self::default(), Vec::new());
        for (table, line) in keys {
            mistakes.extend(authority.add_key(table).err().map(|what| (what, line)));
        }
        for (table, line) in jwts {
            mistakes.extend(authority.add_jwt(table, read).err().map(|what| (what, line)));
        }
        if let Some((table, line)) = hook {
            let added = authority.add_hook(table).map_err(|text| format!("hook: {text}"));
            mistakes.extend(added.err().map(|what| (what, line)));
        }
        if let Some((AnonymousTable { subscribe, publish, metrics }, line)) = anonymous {
            let list = GrantList { subscribe, publish, metrics, ..GrantList::default() };
            mistakes.extend(without_subject(&list, "an anonymous client").err().map(|what| (what, line)));
            let grants = GrantList::grant([&list], &Values::default(), &mut |_| {});
            authority.anonymous = Some(Identity::anonymous(grants));
        }
        if mistakes.is_empty() { Ok(authority) } else { Err(mistakes) }
    }

    /// True if users of `--jwt-secret` could have the subjects of others.
    pub fn needs_prefix_beside_secret(&self) -> bool {
        self.prefixes.clone().add(Owner::Issuer(None), None).is_err()
    }

    /// Accepts tokens signed with this secret by HS256, besides all others.
    pub fn add_development_secret(&mut self, secret: &str) {
        self.token_keys.push(TokenKey {
            verifier: Verifier::for_development(secret),
            terms: Arc::new(Terms { name: "--jwt-secret".into(), ..Terms::default() }),
        });
    }

    fn add_key(&mut self, table: KeyTable) -> Result<(), String> {
        let KeyTable { name, sha256, key, subscribe, publish, manage, presence, admin, metrics } = table;
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
            return Err(format!("key {name:?} is the same key as {:?}", known.identity.name()));
        }
        let list = GrantList { subscribe, publish, manage, presence, admin, metrics };
        without_subject(&list, "an API key").map_err(|text| format!("key {name:?}: {text}"))?;
        let grants = GrantList::grant([&list], &Values::default(), &mut |_| {});
        self.keys.push(ApiKey { digest, identity: Identity::of_key(name.into(), digest, grants) });
        Ok(())
    }

    fn add_jwt(&mut self, table: JwtTable, read: &mut Read<'_>) -> Result<(), String> {
        if table.jwks.is_some() || table.issuer.is_some() {
            return self.add_issuer(table, read);
        }
        if table.ca.is_some() {
            return Err(format!("jwt {:?}: ca: only jwks and issuer need it", table.name));
        }
        let verifier = table.verifier(read).map_err(|text| format!("jwt {:?}: {text}", table.name))?;
        let is_same = |known: &&TokenKey| known.verifier.fingerprint().is(verifier.fingerprint());
        if let Some(known) = self.token_keys.iter().find(is_same) {
            return Err(format!("jwt {:?} is the same key as {:?}", table.name, known.terms.name));
        }
        let terms = self.agree(table.terms())?;
        self.token_keys.push(TokenKey { verifier, terms });
        Ok(())
    }

    fn add_issuer(&mut self, mut table: JwtTable, read: &mut Read<'_>) -> Result<(), String> {
        let source = table.source(read).map_err(|text| format!("jwt {:?}: {text}", table.name))?;
        if let Some(known) = self.issuers.iter().find(|known| known.source.place == source.place) {
            return Err(format!("jwt {:?} has the same keys as {:?}", table.name, known.terms.name));
        }
        table.iss = table.iss.or(table.issuer.take());
        let terms = self.agree(table.terms())?;
        self.issuers.push(Issuer { terms, source: Arc::new(source), keys: Arc::default() });
        Ok(())
    }

    fn add_hook(&mut self, table: HookTable) -> Result<(), String> {
        let HookTable { url, secret, headers, cookies, prefix, by } = table;
        let url = Url::parse(&url).map_err(|error| format!("url: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some()
        {
            return Err("url: expected a URL of http or https, without user and password".into());
        }
        if headers.is_empty() && cookies.is_empty() {
            return Err("name at least one of the headers or cookies that say who a client is".into());
        }
        if secret.as_deref().is_some_and(is_blanked) {
            return Err(KeyError::Blanked.to_string());
        }
        if secret.as_deref().is_some_and(|secret| !is_visible(secret)) {
            return Err("secret: expected visible ASCII characters".into());
        }
        if let Some(name) = headers.iter().chain(&cookies).find(|name| !is_token(name)) {
            return Err(format!("{name:?} is not the name of a header or a cookie"));
        }
        self.prefixes.add(Owner::Hook, prefix.as_deref())?;
        let headers = headers.iter().map(|name| name.to_ascii_lowercase()).collect();
        let terms = HookTerms { prefix, by };
        self.hook = Some(Arc::new(HookSettings { url, secret, headers, cookies, terms }));
        Ok(())
    }

    /// Checks that no other issuer has the same subjects.
    fn agree(&mut self, terms: Terms) -> Result<Arc<Terms>, String> {
        let owner = Owner::Issuer(terms.iss.clone());
        let added = self.prefixes.add(owner, terms.prefix.as_deref());
        added.map_err(|text| format!("jwt {:?}: {text}", terms.name))?;
        Ok(Arc::new(terms))
    }
}

impl JwtTable {
    fn terms(self) -> Terms {
        let Self {
            name,
            iss,
            aud,
            prefix,
            by,
            limit,
            subscribe,
            publish,
            manage,
            presence,
            admin,
            metrics,
            ..
        } = self;
        let grants = GrantList { subscribe, publish, manage, presence, admin, metrics };
        let limit = limit.map(|LimitTable { subscribe, publish, manage, presence, admin, metrics }| {
            GrantList { subscribe, publish, manage, presence, admin, metrics }
        });
        Terms { name, iss, aud, prefix, by, grants, limit }
    }

    /// The place of the keys, if they are to be fetched.
    fn source(&self, read: &mut Read<'_>) -> Result<Source, String> {
        let place = match (&self.jwks, &self.issuer) {
            _ if [&self.secret, &self.pem, &self.jwk].iter().any(|it| it.is_some())
                || self.file.is_some() =>
            {
                return Err(ONE_KEY.into());
            }
            (Some(url), None) => Place::jwks(url)?,
            (None, Some(name)) => Place::issuer(name)?,
            _ => return Err(ONE_KEY.into()),
        };
        if self.issuer.is_some() && self.iss.is_some() && self.iss != self.issuer {
            return Err("iss: leave it out; it is the issuer".into());
        }
        if self.kid.is_some() {
            return Err("kid: leave it out; each key of the set has its own".into());
        }
        if self.aud.is_none() {
            return Err("aud is missing: the issuer signs tokens for other services too".into());
        }
        let algorithm = self.algorithm.as_deref().map(Verifier::public_algorithm).transpose();
        let ca = self.ca.as_deref().map(|file| certificates(file, read));
        let algorithm = algorithm.map_err(|error: KeyError| error.to_string())?;
        Ok(Source { place, ca: ca.transpose()?, algorithm })
    }

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
            _ => return Err(ONE_KEY.into()),
        };
        let algorithm = self.algorithm.as_deref().ok_or("algorithm is missing")?;
        Verifier::new(algorithm, self.kid.clone(), material).map_err(|error: KeyError| error.to_string())
    }
}

/// The text of a file with certificates.
fn certificates(file: &Path, read: &mut Read<'_>) -> Result<String, String> {
    let text = read(file).map_err(|error| format!("ca {}: {error}", file.display()))?;
    let has_certificate = CertificateDer::pem_slice_iter(text.as_bytes()).any(|found| found.is_ok());
    if has_certificate { Ok(text) } else { Err(format!("ca {}: no certificate as PEM", file.display())) }
}

/// True for text that a header can carry as it is.
fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// True for a token, which the name of a header or a cookie is (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let is_in = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_in)
}

fn without_subject(list: &GrantList, whose: &str) -> Result<(), String> {
    if list.names_subject() {
        Err(format!("{whose} has no subject and no claims: remove the braces from the pattern"))
    } else {
        Ok(())
    }
}
