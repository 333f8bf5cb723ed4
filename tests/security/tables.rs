//! The tables that configure keys and tokens.

use std::time::SystemTime;

use base64::{Engine, engine::general_purpose};
use rejoin::{
    auth::{Identity, Why},
    config::{Flags, Settings},
};
use serde_json::{Value, json};

use crate::{
    people::{parse, parse_at, tables as authority},
    signer::{SECRET, Signer, seconds_from_now},
    support::program::Folder,
    tokens::ask,
};

pub fn mistakes(toml: &str) -> Vec<String> {
    parse(toml).expect_err(toml)
}

#[test]
fn the_example_in_the_documentation_is_valid() {
    let folder = Folder::new();
    let signer = Signer::new("ES256");
    std::fs::write(folder.path("shop.pem"), &signer.public).expect("a file");
    let document = include_str!("../../docs/security.md");
    let toml = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let path = folder.path("rejoin.toml");
    // The document has no digest, so that no key fits to it.
    assert!(parse_at(&path, toml).is_err());
    let toml = toml.replacen("\"…\"", &format!("{:?}", "5a".repeat(32)), 1);
    let toml = toml.replacen("\"…\"", &format!("{:?}", "a5".repeat(32)), 1);
    let known = parse_at(&path, &toml).expect("understood");
    assert_eq!((known.keys.len(), known.token_keys.len(), known.anonymous.is_some()), (2, 1, true));
    let claims = json!({
        "sub": "u1", "iss": "https://id.shop.example", "aud": "push", "exp": seconds_from_now(60),
        "rejoin": {"subscribe": ["users.{sub}.**"]},
    });
    let identity = ask(&known, &signer.sign(&claims)).expect("accepted");
    for asked in ["users.u1.**", "public.a"] {
        assert!(identity.grants.may_subscribe(&asked.parse().expect("a pattern")), "{asked}");
    }
}

#[test]
fn a_mistake_in_the_tables_names_its_line_and_no_secret() {
    let ec = Signer::new("ES256");
    let pem = format!("pem = '''{}'''", ec.public);
    for (text, expected) in [
        ("\n[[key]]\nname = \"a\"\nsha256 = \"beef\"", "rejoin.toml:2: key \"a\": sha256"),
        (
            "[[key]]\nname = \"a\"\nsha256 = \"00\"\nsubscribed = []",
            "rejoin.toml:4: key: unknown field `subscribed`",
        ),
        ("[[key]]\nname = \"a\"", "rejoin.toml:1: key \"a\": sha256 is missing"),
        (
            "[[key]]\nname = \"a\"\nsha256 = \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
            "rejoin.toml:1: key \"a\": sha256 is that of an empty key",
        ),
        (
            "[anonymous]\nsubscribe = [\"a..b\"]",
            "rejoin.toml:2: anonymous: \"a..b\": a topic has no empty segment",
        ),
        ("[anonymous]\nsubscribe = [\"a.{sub}\"]", "rejoin.toml:1: an anonymous client has no subject"),
        ("[anonymous]\nadmin = true", "rejoin.toml:2: anonymous: unknown field `admin`"),
        ("x = [", "rejoin.toml:1: "),
        (
            "[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"",
            "give exactly one of secret, pem, jwk, file, jwks and issuer",
        ),
        ("[[jwt]]\nname = \"k\"\nalgorithm = \"none\"\nsecret = \"x\"", "algorithm \"none\" is not one of"),
        ("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = \"hunter2\"", "at least 32 bytes"),
        (
            "[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = 7472677",
            "rejoin.toml:4: jwt: expected a string",
        ),
        ("[[key]]\nname = \"k\"\nsha256 = 7472677", "rejoin.toml:3: key: expected a string"),
        (
            "[[jwt]]\nname = \"k\"\nalgorithm = \"RS256\"\nsecret = \"hunter2\"",
            "RS256 needs another kind of key",
        ),
        (
            &format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\n{pem}"),
            "every owner of the public key could sign",
        ),
        (
            &format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = '''{}'''", ec.public),
            "every owner of the public key could sign",
        ),
        (
            &format!("[[jwt]]\nname = \"k\"\nalgorithm = \"ES384\"\n{pem}"),
            "cannot read the key as a public key of ES384",
        ),
        (
            &format!("[[jwt]]\nname = \"k\"\nalgorithm = \"RS256\"\n{pem}"),
            "cannot read the key as a public key of RS256",
        ),
        (
            &format!("[[jwt]]\nname = \"k\"\nalgorithm = \"ES384\"\njwk = '{}'", ec.jwk()),
            "for another algorithm",
        ),
        (
            &format!("[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\njwk = '{{\"keys\":[{}]}}'", ec.jwk()),
            "a set of JWKs",
        ),
        ("[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\nfile = \"not-there.pem\"", "file not-there.pem"),
        (&(ec.table("one") + &ec.table("two")), "\"two\" is the same key as \"one\""),
    ] {
        let told = mistakes(text).join("\n");
        let has_secret = told.contains("hunter2") || told.contains("7472677");
        assert!(told.contains(expected) && !has_secret, "{told:?} is not {expected:?}");
    }
    let two =
        "[[key]]\nname = \"a\"\nsha256 = \"beef\"\n[[jwt]]\nname = \"k\"\nalgorithm = \"XS\"\nsecret = \"\"";
    assert_eq!(mistakes(two).len(), 2, "all that can be found");
    assert!(
        mistakes("[[jwt]]\nname = \"k\"\nalgorithm = \"ES256\"\npem = '''-----BEGIN PRIVATE KEY-----\n'''")
            [0]
        .contains("private key")
    );
    assert!(SECRET.len() >= 32);
}

/// An issuer could grant its tokens everything.
#[test]
fn a_token_grants_itself_no_more_than_the_limit_of_its_issuer() {
    let signer = Signer::new("HS256");
    let limit = "subscribe = [\"public.**\"]\n[jwt.limit]\nsubscribe = [\"shop.**\", \"users.{sub}.*\"]\n\
                 publish = [\"shop.*\"]\nmetrics = true\n";
    let known = authority(&(signer.table("k") + limit));
    let identify = |rejoin: Value| {
        let claims = json!({"sub": "u1", "exp": seconds_from_now(60), "rejoin": rejoin});
        ask(&known, &signer.sign(&claims)).expect("accepted")
    };
    let may = |identity: &Identity, pattern: &str| {
        identity.grants.may_subscribe(&pattern.parse().expect("a pattern"))
    };
    let within =
        identify(json!({"subscribe": ["shop.a", "users.u1.b"], "publish": ["shop.a"], "metrics": true}));
    assert!(may(&within, "shop.a") && may(&within, "users.u1.b") && may(&within, "public.**"));
    assert!(
        within.grants.may_publish(&"shop.a".parse().expect("a topic")) && within.grants.may_read_metrics()
    );
    assert_eq!(within.unfilled, None);
    for beyond in
        [json!({"subscribe": ["**"]}), json!({"subscribe": ["users.u2.b"]}), json!({"publish": ["**"]})]
    {
        let identity = identify(beyond.clone());
        assert!(
            !may(&identity, "shop.a") && !may(&identity, "users.u2.b") && may(&identity, "public.a"),
            "{beyond}"
        );
        assert!(!identity.grants.may_publish_something(), "{beyond}");
        let told = identity.unfilled.as_deref().expect("it is told");
        assert_eq!(told.why, Why::BeyondLimit, "{beyond}");
    }
    let admin = identify(json!({"admin": true, "subscribe": ["shop.a"]}));
    assert!(!admin.grants.is_admin() && may(&admin, "shop.a"), "the rest counts");
    let told = admin.unfilled.as_deref().expect("it is told");
    assert_eq!(told.pattern.to_string(), "admin");
    assert!(mistakes(&(signer.table("k") + "[jwt.limit]\nsubcribe = []\n"))[0].contains("subcribe"));
}

fn fetched(name: &str) -> String {
    let place = format!("jwks = \"https://{name}.example/keys\"\niss = {name:?}\naud = \"app\"");
    format!("[[jwt]]\nname = {name:?}\n{place}\nsub-prefix = \"{name}-\"\n")
}

/// `rejoin token check` held the `iss` of the first issuer against the tokens of all others.
#[test]
fn a_check_explains_a_token_by_the_issuer_that_it_names() {
    let authority = authority(&(fetched("one") + &fetched("two")));
    let mistakes = |iss: &str| -> Vec<String> {
        let claims = json!({"sub": "u1", "iss": iss, "aud": "app", "exp": seconds_from_now(60)});
        let check = authority.check(&Signer::new("RS256").sign(&claims), SystemTime::now());
        let wrong = check.findings.into_iter().filter(|found| found.is_mistake);
        wrong.map(|found| format!("{}: {}", found.part, found.text)).collect()
    };
    let of_two = mistakes("two");
    assert!(
        of_two.len() == 1 && of_two[0].starts_with("signature: not checked: the keys of [[jwt]] \"two\""),
        "{of_two:?}"
    );
    assert_eq!(mistakes("three"), ["signature: no [[jwt]] with jwks or issuer has the iss \"three\""]);
}

/// If a public key were accepted as a secret, everyone who has it could sign.
#[test]
fn a_public_key_is_never_accepted_as_a_secret() {
    for signer in ["RS256", "ES256", "EdDSA"].map(Signer::new) {
        let set = format!("{{\"keys\":[{}]}}", signer.jwk());
        for key in [signer.public.clone(), signer.jwk(), set, format!("\n\t {}", signer.jwk())] {
            let oct = json!({"kty": "oct", "k": general_purpose::URL_SAFE_NO_PAD.encode(&key)});
            for given in [format!("secret = {key:?}"), format!("jwk = '{oct}'")] {
                let table = format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\n{given}\n");
                let told = mistakes(&table).join("\n");
                assert!(told.contains("begins like a PEM key or a JWK") && !told.contains(&key), "{told}");
            }
            let folder = Folder::new();
            std::fs::write(folder.path("key"), &key).expect("a file");
            let table = "[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nfile = \"key\"\n";
            assert!(parse_at(&folder.path("rejoin.toml"), table).is_err());

            let of = |typed: Option<&str>, variable: Option<&str>, file: &str| {
                let config = typed.is_none().then(|| "rejoin.toml".to_owned());
                let flags = Flags::of([("jwt-secret", typed.map(str::to_owned)), ("config", config)]);
                let environment =
                    |name: &str| variable.filter(|_| name == "REJOIN_JWT_SECRET").map(Into::into);
                Settings::read(&flags, environment, |_| Ok(file.to_owned()))
                    .expect_err("a mistake")
                    .join("\n")
            };
            for (told, place) in [
                (of(Some(&key), None, ""), "--jwt-secret: "),
                (of(None, Some(&key), ""), "REJOIN_JWT_SECRET: "),
                (of(None, None, &format!("\njwt-secret = {key:?}\n")), "rejoin.toml:2: jwt-secret: "),
            ] {
                assert!(told.starts_with(place) && told.contains("put the key in a [[jwt]]"), "{told}");
                assert!(!told.contains(&key) && told.lines().count() == 1, "{told}");
            }
        }
    }
}
