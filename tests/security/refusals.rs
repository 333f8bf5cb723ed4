//! An operator finds each kind of refusal in the log at its default level, and a holder of a token its mistake.

use std::os::unix::fs::PermissionsExt;

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::{
    ask::{Ask, get, post, text},
    people::{As, server, tables, until_served, usual},
    reader::refusal,
    signer::{SECRET, Signer, seconds_from_now},
    stub::{Reply, Stub},
    support::{
        Server,
        client::Transport,
        program::{Folder, Program},
    },
};

/// The lines at `warn` in a log.
fn warnings(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    // The machine that runs the test may cause others, such as one about its descriptors.
    lines.filter(|line| line["level"] == "WARN" && line["target"] != "rejoin::limits").collect()
}

#[tokio::test]
async fn each_kind_of_refusal_is_in_the_log_with_its_cause_and_the_setting_for_it() {
    let folder = Folder::new();
    let signer = Signer::new("HS256");
    let table =
        signer.table("issuer") + "kid = \"2026\"\naud = \"push\"\n[anonymous]\nsubscribe = [\"public\"]\n";
    std::fs::write(folder.path("rejoin.toml"), table).expect("a file");
    let program = Program::start(&["--config", &folder.path("rejoin.toml")]).await;
    let sign = |kid: &str, claims: Value| {
        let header =
            jsonwebtoken::Header { kid: Some(kid.into()), ..jsonwebtoken::Header::new(signer.algorithm) };
        signer.sign_as(&header, &claims)
    };
    let exp = seconds_from_now(60);
    let forged = format!("{}AAAA", sign("2026", json!({"exp": exp, "aud": "push"})));
    let shown = [
        "rejoin_unknown".to_owned(),
        sign("2025", json!({"exp": exp})),
        forged,
        "no.token.".to_owned(),
        sign("2026", json!({"aud": "push"})),
        sign("2026", json!({"exp": exp, "aud": "other"})),
        sign("2026", json!([exp])),
    ];
    for credential in &shown {
        get(&program.server, "/topics/public?wait=0")
            .answer_to(credential)
            .await
            .problem(401, "unauthorized");
    }
    let from = |request: RequestBuilder, origin: &str| request.header("origin", origin);
    let page = from(get(&program.server, "/topics/public"), "https://elsewhere.example");
    page.answer().await.problem(403, "forbidden_origin");
    let form = post(&program.server, "/topics/public").header("cookie", "rejoin_token=x");
    form.answer().await.problem(403, "forbidden_origin");
    get(&program.server, "/topics/public").header("authorization", "Basic eA==").answer().await;

    let log = program.terminate().await.log;
    let warnings = warnings(&log);
    for (cause, setting) in [
        ("sha256, which begins with", "[[key]]"),
        ("kid \"2025\"", "[[jwt]]"),
        ("bad signature", "--jwt-secret"),
        ("cannot be read", "JWT"),
        ("exp is missing", "issuer must correct"),
        ("expected an object", "issuer must correct"),
        ("claim aud", "iss and aud"),
        ("https://elsewhere.example", "--allowed-origin"),
        ("127.0.0.1", "names no Origin"),
        ("unsupported scheme", "proxy"),
    ] {
        let found = warnings
            .iter()
            .map(Value::to_string)
            .filter(|line| line.replace("\\\"", "\"").contains(cause) && line.contains(setting));
        assert_eq!(found.count(), 1, "{cause}: {log}");
    }
    for credential in &shown {
        assert!(credential.split('.').filter(|part| part.len() > 5).all(|part| !log.contains(part)), "{log}");
    }
}

#[tokio::test]
async fn a_token_with_an_unknown_key_may_be_of_an_issuer_that_is_not_configured() {
    let (folder, stub) = (Folder::new(), Stub::start(|_| Reply::json(&json!({"keys": []}))).await);
    stub.hold();
    let keys = stub.url("/keys");
    for (name, iss, hint) in [
        ("named", "iss = \"id\"", "its issuer does not publish the key"),
        ("any", "", "add its issuer as [[jwt]]"),
    ] {
        let table = format!("[[jwt]]\nname = \"id\"\njwks = \"{keys}\"\naud = \"push\"\n{iss}\n{}", usual());
        std::fs::write(folder.path(name), table.replace(&Signer::new("HS256").table("k"), ""))
            .expect("a file");
        let program = Program::start(&["--config", &folder.path(name)]).await;
        let signer = Signer::new("ES256");
        let header =
            jsonwebtoken::Header { kid: Some("2025".into()), ..jsonwebtoken::Header::new(signer.algorithm) };
        let mine = signer.sign_as(&header, &json!({"exp": seconds_from_now(60), "iss": "id", "aud": "push"}));
        let answer = async { get(&program.server, "/topics/a?wait=0").answer_to(&mine).await };
        let opened = async {
            until_served(&program.server, 1).await;
            stub.open();
        };
        tokio::join!(answer, opened).0.problem(401, "unauthorized");
        stub.hold();
        let log = program.terminate().await.log;
        assert!(warnings(&log).iter().any(|line| text(&line["message"]).contains(hint)), "{name}: {log}");
    }
}

#[tokio::test]
async fn a_refused_host_is_in_the_log_with_the_setting_for_it() {
    let program = Program::start(&[]).await;
    let asked = get(&program.server, "/topics/a").header("host", "push.example\u{e9}");
    asked.answer().await.problem(403, "forbidden_host");
    let asked = get(&program.server, "/topics/a").header("host", "push.example");
    asked.answer().await.problem(403, "forbidden_host");
    let log = program.terminate().await.log;
    let warnings = warnings(&log);
    let is_told =
        |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains("--allowed-host"));
    assert_eq!(warnings.iter().filter(is_told).count(), 2, "{log}");
    assert!(
        warnings.iter().any(|line| line["host"].as_str().is_some_and(|host| host.contains("push.example")))
    );
}

/// A mistake in a claim was answered with the same words as a wrong signature.
#[tokio::test]
async fn the_holder_of_a_signed_token_learns_which_claim_is_wrong() {
    let server = server().await;
    let exp = seconds_from_now(60);
    for (claims, mistake) in [
        (json!({"sub": "u1"}), "exp is missing"),
        (json!({"exp": exp, "sub": 7}), "sub: invalid type: integer `7`, expected a string"),
        (json!({"exp": exp, "nbf": exp}), "nbf is in the future"),
        (json!({"exp": exp, "rejoin": {"subscribe": "a"}}), "rejoin: "),
        (json!([null, null, [], exp]), "the claims: invalid type: sequence, expected an object"),
    ] {
        let token = Signer::new("HS256").sign(&claims);
        for transport in Transport::ALL {
            let path = format!("/topics/public.a?token={token}");
            let problem = refusal(&server, transport, &path, &[]).await.problem(401, "unauthorized");
            assert!(text(&problem["detail"]).contains(mistake), "{transport}: {problem}");
            let forged = format!("/topics/public.a?token={token}AAAA");
            let problem = refusal(&server, transport, &forged, &[]).await.problem(401, "unauthorized");
            assert!(
                text(&problem["detail"]).starts_with("the credential is not accepted: "),
                "{transport}: {problem}"
            );
        }
    }
}

#[tokio::test]
async fn an_empty_credential_is_none() {
    let server = server().await;
    for (path, cookie) in [
        ("/topics/public.a?wait=0&token=", "a=b"),
        ("/topics/public.a?wait=0", "rejoin_token="),
        ("/topics/public.a?wait=0&token=", "rejoin_token=\"\"; a=b"),
    ] {
        let answer = get(&server, path).header("cookie", cookie).answer().await;
        assert_eq!(answer.status, 200, "{path} {cookie}: {answer:?}");
    }
    let refused =
        get(&server, "/topics/users.u1.a?wait=0&token=").answer().await.problem(401, "unauthorized");
    assert!(text(&refused["detail"]).contains("without a credential"), "{refused}");
    let wrong = get(&server, "/topics/public.a?wait=0").header("authorization", "Bearer ");
    wrong.answer().await.problem(401, "unauthorized");
}

fn issuer(grants: &str) -> String {
    Signer::new("HS256").table("issuer") + grants
}

#[tokio::test]
async fn a_grant_names_another_claim_or_any_subject() {
    let grants = "subscribe = [\"t.{claim.tenant}.**\", \"{claim.https://x.example/role}\", \"users.{sub.encoded}.*\"]\n";
    let server = {
        let tables = tables(&issuer(grants));
        Server::with(|config| config.tables = tables).await
    };
    let token = |claims: Value| {
        let mut all = json!({"exp": seconds_from_now(60)});
        all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
        Signer::new("HS256").sign(&all)
    };
    let may = async |token: &str, topic: &str| {
        let path = format!("/events?wait=0&topic={}", topic.replace('%', "%25"));
        let answer = get(&server, &path).answer_to(token).await;
        assert!(matches!(answer.status, 200 | 403), "{answer:?}");
        answer.status == 200
    };
    let good = token(json!({"sub": "ann@example.com", "tenant": "acme", "https://x.example/role": "staff"}));
    for topic in
        ["t.acme.a", "t.acme.**", "staff", "users.ann@example%2Ecom.inbox", "users.ann@example%2Ecom.*"]
    {
        assert!(may(&good, topic).await, "{topic}");
    }
    for topic in
        ["t.other.a", "t.*.a", "t.**", "users.*.inbox", "users.ann@example.com", "users.ann@example.com.x"]
    {
        assert!(!may(&good, topic).await, "{topic}");
    }
    for tenant in [
        json!("*"),
        json!("**"),
        json!("a.b"),
        json!("acme.**"),
        json!(""),
        json!(7),
        json!(["acme"]),
        json!(null),
    ] {
        let wrong = token(json!({"sub": "*", "tenant": tenant}));
        for topic in ["t.acme.a", "t.*.a", "t.a.b", "t.**", "t.7.a", "users.ann.x", "users.*.x"] {
            assert!(!may(&wrong, topic).await, "{tenant} {topic}");
        }
        assert!(may(&wrong, "users.%2A.x").await, "the other grants stay");
    }
}

#[tokio::test]
async fn a_pattern_that_grants_nothing_is_in_the_log_once_for_each_kind() {
    let folder = Folder::new();
    std::fs::write(folder.path("rejoin.toml"), issuer("subscribe = [\"t.{claim.tenant}.**\"]\n"))
        .expect("a file");
    let program = Program::start(&["--config", &folder.path("rejoin.toml")]).await;
    let exp = seconds_from_now(60);
    for _ in 0..3 {
        for claims in [json!({"exp": exp, "sub": "ann"}), json!({"exp": exp, "sub": "bob", "tenant": "a.b"})]
        {
            let token = Signer::new("HS256").sign(&claims);
            get(&program.server, "/topics/t.a.b?wait=0").answer_to(&token).await.problem(403, "forbidden");
        }
    }
    let log = program.terminate().await.log;
    let mut told = warnings(&log);
    told.retain(|line| line["pattern"].is_string());
    let of = |who: &str| told.iter().filter(|line| line["who"] == who).count();
    assert_eq!((of("ann"), of("bob"), told.len()), (1, 1, 2), "{log}");
    assert!(told.iter().all(|line| line["pattern"] == "t.{claim.tenant}.**"), "{log}");
}

/// An operator saw nothing in the log, and the client did not learn where the grant is missing.
#[tokio::test]
async fn the_first_refusal_of_each_grant_says_where_to_grant_it() {
    let folder = Folder::new();
    std::fs::write(folder.path("rejoin.toml"), issuer("subscribe = [\"a\"]\n")).expect("a file");
    let program = Program::start(&["--config", &folder.path("rejoin.toml")]).await;
    let token = Signer::new("HS256").sign(&json!({"exp": seconds_from_now(60), "sub": "ann"}));
    for _ in 0..3 {
        for asked in [
            get(&program.server, "/topics/b"),
            post(&program.server, "/topics/b").body("x"),
            get(&program.server, "/topics/$presence.b"),
        ] {
            let problem = asked.answer_to(&token).await.problem(403, "forbidden");
            let detail = problem["detail"].as_str().expect("a text");
            assert!(detail.ends_with("grant it in the token's claim rejoin, or in its [[jwt]]"), "{detail}");
        }
    }
    let batch = post(&program.server, "/publish").header("content-type", "application/json").body("[]");
    let problem = batch.answer_to(&token).await.problem(403, "forbidden");
    assert!(problem.to_string().contains("publish is not granted for any topic"), "{problem}");
    let log = program.terminate().await.log;
    let told = warnings(&log).into_iter().filter(|line| line["who"] == "ann");
    let told: Vec<_> = told.map(|line| (line["grant"].clone(), line["topic"].clone())).collect();
    let expected = ["subscribe", "publish", "presence"].map(|grant| (json!(grant), json!("b")));
    assert_eq!(told, expected, "{log}");
}

#[tokio::test]
async fn a_file_with_a_secret_that_every_user_can_read_is_warned_of() {
    let folder = Folder::new();
    let (config, secret) = (folder.path("rejoin.toml"), folder.path("secret"));
    let in_file = "[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nfile = \"secret\"\n";
    let in_place = format!("[[jwt]]\nname = \"k\"\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n");
    std::fs::write(&secret, SECRET).expect("written");
    for (text, modes, warned) in [
        (in_place.as_str(), [0o644, 0o600], Some(&config)),
        (&in_place, [0o640, 0o600], None),
        (in_file, [0o644, 0o604], Some(&secret)),
        (in_file, [0o644, 0o600], None),
        ("jwt-secret = \"a-secret-of-thirty-two-bytes-or-more\"", [0o644, 0o600], Some(&config)),
        ("[anonymous]\nsubscribe = [\"a\"]\n", [0o644, 0o600], None),
    ] {
        std::fs::write(&config, text).expect("written");
        for (path, mode) in [&config, &secret].into_iter().zip(modes) {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }
        let log = Program::start(&["--config", &config]).await.terminate().await.log;
        let told =
            warnings(&log).into_iter().filter(|line| line.to_string().contains("every user of this machine"));
        let paths: Vec<_> = told.map(|line| line["path"].as_str().map(str::to_owned)).collect();
        assert_eq!(
            paths,
            warned.map(|path| Some(path.clone())).into_iter().collect::<Vec<_>>(),
            "{text} {modes:?}"
        );
        assert!(!log.contains(SECRET), "{log}");
    }
}
