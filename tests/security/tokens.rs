//! Tokens and keys, as the authority checks them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose};
use jsonwebtoken::Header;
use rejoin::auth::{Authority, Digest, Identity, MintError, Refused, SigningKey, Wish, mint, new_key};
use serde_json::{Value, json};

use crate::{
    people::tables as authority,
    signer::{Signer, pem, seconds_from_now, unsigned},
    tables::mistakes,
};

const ALGORITHMS: [&str; 12] = [
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
    "EdDSA",
];

pub fn ask(authority: &Authority, token: &str) -> Result<Arc<Identity>, Refused> {
    authority.identify(Some(token), SystemTime::now())
}

fn claims() -> Value {
    json!({"sub": "u1", "exp": seconds_from_now(60), "rejoin": {"subscribe": ["users.{sub}.**"]}})
}

/// A server accepts these tokens, and they do not do what their issuer means.
#[test]
fn a_check_warns_of_claims_that_do_nothing() {
    let signer = Signer::new("HS256");
    let authority = authority(&signer.table("k"));
    let milliseconds = seconds_from_now(60) * 1000;
    for (claim, value, expected) in [
        (
            "rejoin",
            json!({"subscrbe": ["a"]}),
            "\"subscrbe\" grants nothing: the names are subscribe, publish",
        ),
        ("publish", json!(["a"]), "the claim \"publish\" grants nothing outside of the claim rejoin"),
        ("exp", json!(milliseconds), "looks like milliseconds"),
        ("tenant", json!("t"), ""),
    ] {
        let mut claims = claims();
        claims[claim] = value;
        let checked = authority.check(&signer.sign(&claims), SystemTime::now());
        assert!(checked.verdict.is_ok(), "{checked:?}");
        let texts = checked.findings.iter().map(|found| &*found.text);
        let warnings: Vec<_> = texts.filter(|text| text.starts_with("warning: ")).collect();
        let is_told = warnings.len() == usize::from(!expected.is_empty());
        assert!(is_told && warnings.iter().all(|text| text.contains(expected)), "{claim}: {warnings:?}");
    }
}

#[test]
fn every_algorithm_verifies_by_pem_or_secret_and_by_jwk() {
    for algorithm in ALGORITHMS {
        let (signer, other) = (Signer::new(algorithm), Signer::new(algorithm));
        let jwk = format!("[[jwt]]\nname = \"k\"\nalgorithm = {algorithm:?}\njwk = '{}'", signer.jwk());
        for table in [signer.table("k"), jwk] {
            let authority = authority(&table);
            let identity = ask(&authority, &signer.sign(&claims()))
                .unwrap_or_else(|error| panic!("{algorithm}: {error}"));
            assert!(identity.grants.may_subscribe(&"users.u1.**".parse().expect("a pattern")), "{algorithm}");
            assert_eq!(identity.name(), "u1");
            if !algorithm.starts_with("HS") {
                let refused = ask(&authority, &other.sign(&claims())).err();
                assert_eq!(refused, Some(Refused::Signature { algorithm, kid: None }));
            }
            let mut torn = signer.sign(&claims());
            torn.insert(torn.len() - 10, 'A');
            assert!(ask(&authority, &torn).is_err(), "{algorithm}");
        }
    }
}

/// Such a token was reported as one that is no JWT.
#[test]
fn a_mistake_in_signed_claims_is_told_as_one_of_the_claims() {
    for algorithm in ["HS256", "ES256", "EdDSA", "RS256"] {
        let signer = Signer::new(algorithm);
        let known = authority(&signer.table("k"));
        for (claims, why) in WRONG_CLAIMS {
            let claims: &serde_json::value::RawValue = serde_json::from_str(claims).expect(claims);
            let token = signer.sign_as(&Header::new(signer.algorithm), &claims);
            let refused = ask(&known, &token).err();
            assert_eq!(refused, Some(Refused::Claims { kid: None, why: why.into() }), "{algorithm}");
        }
    }
}

const WRONG_CLAIMS: [(&str, &str); 4] = [
    (r#"{"exp":4000000000,"exp":4000000000}"#, r#"the claims: "exp" is given twice"#),
    (r#"{"exp":4000000000,"sub":"a","sub":"b"}"#, r#"the claims: "sub" is given twice"#),
    ("[null,null,[],4000000000]", "the claims: invalid type: sequence, expected an object"),
    ("7", "the claims: invalid type: integer `7`, expected an object"),
];

/// The test signs by itself, because no library for tokens supports this algorithm.
#[test]
fn es512_verifies_like_the_others() {
    use aws_lc_rs::{
        encoding::{AsDer, PublicKeyX509Der},
        rand::SystemRandom,
        signature::{ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
    };
    let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).expect("a key");
    let base64 = |bytes: &[u8]| general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let sign_text = |header: Value, claims: &str| {
        let signed = format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.as_bytes()));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", base64(signature.as_ref()))
    };
    let sign = |header: Value, claims: &Value| sign_text(header, &claims.to_string());
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a public key");
    let point = pair.public_key().as_ref();
    let pem = pem("PUBLIC KEY", der.as_ref());
    let jwk = json!({"kty": "EC", "crv": "P-521", "alg": "ES512", "x": base64(&point[1..67]), "y": base64(&point[67..])});
    let table =
        |algorithm: &str, key: String| format!("[[jwt]]\nname = \"k\"\nalgorithm = \"{algorithm}\"\n{key}\n");
    let good = sign(json!({"alg": "ES512"}), &claims());
    for key in [format!("pem = '''{pem}'''"), format!("jwk = '{jwk}'")] {
        assert_eq!(mistakes(&table("ES256", key.clone())).len(), 1, "it is of another curve");
        let known = authority(&table("ES512", key));
        let identity = ask(&known, &good).expect("accepted");
        assert!(identity.grants.may_subscribe(&"users.u1.**".parse().expect("a pattern")));
        let other = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).expect("a key");
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        let forged = other.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        let wrong = Refused::Signature { algorithm: "ES512", kid: None };
        for token in
            [format!("{signed}.{}", base64(forged.as_ref())), format!("{signed}."), good.replace('.', "A.")]
        {
            assert!(
                ask(&known, &token)
                    .is_err_and(|error| error == wrong || matches!(error, Refused::Malformed(_))),
                "{token}"
            );
        }
        assert!(ask(&known, &format!("{signed}.{}", &signature[2..])).is_err(), "a short signature");
        assert!(ask(&known, &sign(json!({"alg": "ES256"}), &claims())).is_err());
        for crit in [json!(["x"]), json!([]), json!(null)] {
            assert!(ask(&known, &sign(json!({"alg": "ES512", "crit": crit}), &claims())).is_err(), "{crit}");
        }
        assert!(
            ask(&known, &sign(json!({"alg": "ES512"}), &json!({"sub": "u1"}))).is_err(),
            "without an end"
        );
        for (claims, why) in WRONG_CLAIMS {
            let refused = ask(&known, &sign_text(json!({"alg": "ES512"}), claims)).err();
            assert_eq!(refused, Some(Refused::Claims { kid: None, why: why.into() }));
        }
    }
    let private = pair.to_pkcs8v1().expect("a private key");
    let key = SigningKey::parse(&crate::signer::pem("PRIVATE KEY", private.as_ref())).expect("a private key");
    let known = authority(&table("ES512", format!("pem = '''{pem}'''\nkid = \"7\"")));
    assert!(ask(&known, &minted(&known, Some(&key)).expect("a token")).is_ok());
    assert!(minted(&Authority::default(), Some(&key)).is_ok());
}

#[test]
fn several_keys_are_accepted_at_once_so_that_they_can_be_rotated() {
    let (old, new) = (Signer::new("ES256"), Signer::new("ES256"));
    let both = authority(&(old.table("old") + &new.table("new")));
    assert!(ask(&both, &old.sign(&claims())).is_ok() && ask(&both, &new.sign(&claims())).is_ok());
    let identity = ask(&both, &old.sign(&claims())).expect("accepted");
    let only_new = authority(&new.table("new"));
    assert_eq!(only_new.again(&identity, SystemTime::now()).err(), Some(Refused::KeyGone));
    let renamed = authority(&(new.table("new") + &old.table("renamed")));
    assert!(renamed.again(&identity, SystemTime::now()).is_ok());
}

#[test]
fn a_token_that_names_a_key_is_verified_by_that_one() {
    let signer = Signer::new("ES256");
    let authority = authority(&(signer.table("k") + "kid = \"2026\"\n"));
    let sign = |kid: Option<&str>| {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(signer.algorithm) };
        ask(&authority, &signer.sign_as(&header, &claims()))
    };
    assert!(sign(None).is_ok() && sign(Some("2026")).is_ok());
    assert!(matches!(sign(Some("2025")), Err(Refused::NoKey { kid: Some(_), .. })));
}

#[test]
fn issuer_and_audience_are_checked_if_they_are_configured() {
    let signer = Signer::new("HS256");
    let strict = authority(&(signer.table("k") + "iss = \"https://id.example\"\naud = \"push\"\n"));
    let with = |iss: Value, aud: Value| {
        let mut claims = claims();
        for (name, value) in [("iss", iss), ("aud", aud)] {
            if !value.is_null() {
                claims[name] = value;
            }
        }
        ask(&strict, &signer.sign(&claims)).err()
    };
    let wrong = |claim| Some(Refused::Claim { key: "k".into(), claim });
    assert_eq!(with(json!("https://id.example"), json!("push")), None);
    assert_eq!(with(json!("https://id.example"), json!(["shop", "push"])), None);
    assert_eq!(with(json!("https://id.example"), json!(["shop"])), wrong("aud"));
    assert_eq!(with(json!("https://id.example"), Value::Null), wrong("aud"));
    assert_eq!(with(json!("https://other.example"), json!("push")), wrong("iss"));
    assert_eq!(with(Value::Null, json!("push")), wrong("iss"));
    // After a reload the stricter rules also count for connections that are already open.
    let identity = ask(&authority(&signer.table("k")), &signer.sign(&claims())).expect("accepted");
    assert_eq!(strict.again(&identity, SystemTime::now()).err(), wrong("iss"));
}

#[test]
fn a_token_must_expire_and_must_be_valid_now() {
    let signer = Signer::new("HS256");
    let authority = authority(&signer.table("k"));
    let with = |claims: Value| ask(&authority, &signer.sign(&claims)).err();
    assert_eq!(with(json!({"exp": seconds_from_now(0)})), Some(Refused::Expired { key: "k".into() }));
    assert!(matches!(with(json!({"sub": "u1"})), Some(Refused::Claims { .. })));
    assert!(matches!(with(json!({"exp": seconds_from_now(60).to_string()})), Some(Refused::Claims { .. })));
    let nbf = |seconds| with(json!({"exp": seconds_from_now(600), "nbf": seconds_from_now(seconds)}));
    assert_eq!((nbf(-1), nbf(10)), (None, None));
    assert_eq!(nbf(60), Some(Refused::Claim { key: "k".into(), claim: "nbf" }));
    let identity = ask(&authority, &signer.sign(&claims())).expect("accepted");
    let later = SystemTime::now() + Duration::from_secs(61);
    assert_eq!(authority.again(&identity, later).err(), Some(Refused::Expired { key: "k".into() }));
}

#[test]
fn headers_cannot_change_how_a_token_is_verified() {
    let (signer, foreign) = (Signer::new("ES256"), Signer::new("ES256"));
    let authority = authority(&signer.table("k"));
    // A key that the token brings itself, as a value or as an address.
    let header = Header {
        jwk: serde_json::from_str(&foreign.jwk()).ok(),
        jku: Some("https://elsewhere.example/keys".into()),
        ..Header::new(foreign.algorithm)
    };
    let refused = ask(&authority, &foreign.sign_as(&header, &claims())).err();
    assert_eq!(refused, Some(Refused::Signature { algorithm: "ES256", kid: None }));
    let header = Header { crit: Some(vec!["b64".into()]), ..Header::new(signer.algorithm) };
    assert!(matches!(ask(&authority, &signer.sign_as(&header, &claims())), Err(Refused::Malformed(_))));
    for alg in ["none", "None", "NONE", "", "HS1", "ES256K"] {
        let token = unsigned(&json!({"alg": alg}), &claims());
        assert!(matches!(ask(&authority, &token), Err(Refused::Malformed(_))), "{alg:?}");
    }
    for token in ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "\0", &"a.".repeat(100_000)] {
        assert!(ask(&authority, token).is_err(), "{token:.20}");
    }
}

#[test]
fn an_api_key_is_known_by_its_hash_and_has_its_configured_grants() {
    let (key, other) = (new_key(), new_key());
    let toml = format!(
        "[[key]]\nname = \"backend\"\nsha256 = \"{}\"\npublish = [\"orders.*\"]\nmetrics = true\n",
        Digest::of(key.as_bytes())
    );
    let authority = authority(&toml);
    let identity = ask(&authority, &key).expect("known");
    assert!(identity.grants.may_publish(&"orders.1".parse().expect("a topic")));
    assert!(identity.grants.may_read_metrics() && !identity.grants.is_admin());
    assert_eq!((identity.name(), identity.expires_at), ("backend", None));
    for wrong in [other.as_str(), "", &key[..key.len() - 1], &format!("{key} "), &key.to_uppercase()] {
        let sha256 = Digest::of(wrong.as_bytes()).to_string()[..8].to_owned();
        assert_eq!(ask(&authority, wrong).err(), Some(Refused::UnknownKey { sha256 }), "{wrong:?}");
    }
    assert_eq!(authority.identify(None, SystemTime::now()).err(), Some(Refused::Missing));
}

/// Otherwise each connection would hold an identity of its own, and they may be very many.
#[test]
fn clients_with_one_api_key_share_an_identity_and_so_do_those_without_a_credential() {
    let key = new_key();
    let sha256 = Digest::of(key.as_bytes());
    let toml =
        format!("[[key]]\nname = \"backend\"\nsha256 = \"{sha256}\"\n[anonymous]\nsubscribe = [\"a\"]\n");
    for (authority, credential) in [
        (authority(&toml), Some(&*key)),
        (authority(&toml), None),
        (Authority::default(), None),
        (Authority::default(), Some(&*key)),
    ] {
        let now = SystemTime::now();
        let [one, other] = [(); 2].map(|()| authority.identify(credential, now).expect("accepted"));
        assert!(
            Arc::ptr_eq(&one, &other) && Arc::ptr_eq(&one, &authority.again(&one, now).expect("accepted"))
        );
    }
}

/// Mints a token for `u1` that expires in a minute.
fn minted(authority: &Authority, key: Option<&SigningKey>) -> Result<String, MintError> {
    let rejoin = serde_json::from_value(json!({"subscribe": ["users.{sub}.**"]})).expect("grants");
    let wish = Wish { sub: Some("u1".into()), rejoin, ttl: Duration::from_secs(60) };
    mint(authority, key, &wish, SystemTime::now()).map(|minted| minted.token)
}

#[test]
fn a_minted_token_is_accepted() {
    let mut authority = authority(&(Signer::new("ES256").table("one") + &Signer::new("EdDSA").table("two")));
    assert_eq!(minted(&authority, None), Err(MintError::OnlyPublic(r#""one", "two""#.into())));
    assert_eq!(minted(&Authority::default(), None), Err(MintError::NoKey));
    authority.add_development_secret("short");
    let token = minted(&authority, None).expect("a token");
    let identity = ask(&authority, &token).expect("accepted");
    assert!(identity.grants.may_subscribe(&"users.u1.x".parse().expect("a topic")));
    assert!(identity.expires_at.is_some_and(|end| end > SystemTime::now() + Duration::from_secs(58)));
}

#[test]
fn a_private_key_mints_tokens_that_its_public_key_accepts() {
    for algorithm in ALGORITHMS {
        let signer = Signer::new(algorithm);
        let strict = signer.table("k")
            + "kid = \"1\"\niss = \"https://id.example\"\naud = \"push\"\nsub-prefix = \"id-\"\n";
        let known = authority(&(Signer::new("ES256").table("other") + &strict));
        let key = SigningKey::parse(&signer.private).expect("a private key");
        let token = minted(&known, Some(&key)).unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        assert_eq!(ask(&known, &token).map(|identity| identity.name().to_owned()), Ok("id-u1".into()));
        let stranger = authority(&Signer::new("ES256").table("other"));
        assert_eq!(minted(&stranger, Some(&key)), Err(MintError::Unknown), "{algorithm}");
        assert!(
            minted(&Authority::default(), Some(&key)).is_ok(),
            "{algorithm}: for a server that knows the key"
        );
        if !algorithm.starts_with("HS") {
            assert_eq!(SigningKey::parse(&signer.public).err(), Some(MintError::Public));
            assert_eq!(SigningKey::parse(&signer.jwk()).err(), Some(MintError::Jwk));
        }
    }
    let other_form = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
    assert_eq!(SigningKey::parse(other_form).err(), Some(MintError::Unreadable));
}

/// The check explains the verdict of the server, so it must never find a mistake where the server accepts, or none
/// where it refuses.
#[test]
fn a_check_finds_a_mistake_exactly_in_the_credentials_that_are_refused() {
    let (signer, foreign) = (Signer::new("ES256"), Signer::new("ES256"));
    let key = new_key();
    let known = authority(&format!(
        "{}kid = \"1\"\niss = \"id\"\naud = \"push\"\n[[key]]\nname = \"k\"\nsha256 = \"{}\"\n",
        signer.table("users"),
        Digest::of(key.as_bytes())
    ));
    let right = json!({"sub": "u1", "iss": "id", "aud": ["push"], "exp": seconds_from_now(60), "nbf": 1});
    let mut credentials = vec![key, "rejoin_other".into(), "a.b".into(), "..".into(), foreign.sign(&right)];
    let signed = |kid: &str, claims: &Value| {
        signer.sign_as(&Header { kid: Some(kid.into()), ..Header::new(signer.algorithm) }, claims)
    };
    credentials.extend([
        signed("1", &right),
        signed("2", &right),
        signer.sign(&right),
        signer.sign(&json!([1])),
    ]);
    for name in ["sub", "iss", "aud", "exp", "nbf", "rejoin", "other"] {
        for value in [
            json!(null),
            json!(7),
            json!("x"),
            json!([]),
            json!({"admin": true}),
            json!(seconds_from_now(600)),
            json!(-1),
        ] {
            let mut claims = right.clone();
            claims[name] = value;
            credentials.push(signed("1", &claims));
        }
        let mut claims = right.clone();
        claims.as_object_mut().expect("an object").remove(name);
        credentials.push(signed("1", &claims));
    }
    let mut accepted = 0;
    for credential in &credentials {
        let check = known.check(credential, SystemTime::now());
        assert!(!check.findings.is_empty());
        let has_mistake = check.findings.iter().any(|found| found.is_mistake);
        assert_eq!(check.verdict.is_err(), has_mistake, "{:?} {:?}", check.verdict, check.findings);
        accepted += usize::from(check.verdict.is_ok());
    }
    assert!((10..credentials.len() - 10).contains(&accepted), "{accepted} of {}", credentials.len());
}
