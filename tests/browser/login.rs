//! The example of a login in a browser, and the page that `rejoin init` leads to.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    page::{Page, in_browser},
    support::{
        login::{self, Login},
        program::Program,
    },
};

/// How many times each way must have a new token.
const RENEWALS: i64 = 3;

/// The texts in a list of the page.
async fn items(page: &Page, list: &str) -> Vec<String> {
    let items = page
        .run(&format!("return [...document.querySelectorAll('#{list} li')].map(it => it.textContent)"))
        .await;
    items.as_array().expect("a list").iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

async fn tokens(page: &Page, path: &str) -> i64 {
    let asked = "return performance.getEntriesByType('resource').filter(it => it.name.endsWith(NAME)).length";
    page.run(&asked.replace("NAME", &json!(path).to_string())).await.as_i64().expect("a number")
}

/// A token lives for 5 s here. A page that listens by a cookie, and one that listens by a token, get each message once
/// and in order over three of its ends.
#[tokio::test]
async fn the_example_of_a_login_misses_nothing_while_its_tokens_are_renewed() {
    if !login::has(&["node"], false) {
        return;
    }
    in_browser(async |page| {
        let login = Login::start(5).await;
        page.open(&login.address).await;
        let mut again = tokio::time::interval(Duration::from_millis(200));
        let mut number = 0;
        // The cookie is renewed at half of its life, so it is renewed twice for each end of a token.
        while tokens(page, "/token").await <= RENEWALS || tokens(page, "/cookie").await <= 2 * RENEWALS {
            again.tick().await;
            number += 1;
            login.publish(&number.to_string()).await;
        }
        let last = json!(number.to_string());
        for list in ["by-cookie", "by-token"] {
            page.until(&format!("document.querySelector('#{list} li:last-child')?.textContent === {last}"))
                .await;
            let heard = items(page, list).await;
            let first: i32 = heard[0].parse().expect("a number");
            let expected: Vec<String> = (first..=number).map(|number| number.to_string()).collect();
            assert_eq!(heard, expected, "{list}");
            assert!(first < 20, "{list} began at {first}");
        }
        // No token is where a script of another origin, or a log, could find it.
        assert_eq!(page.run("return document.cookie").await, "", "the cookie is not for scripts");
        let log = login.serving.terminate().await.log;
        assert!(!log.contains("refused"), "{log}");
    })
    .await;
}

/// From nothing to a message on a page, by the commands that `rejoin init` prints.
#[tokio::test]
async fn the_page_of_init_shows_what_the_backend_publishes() {
    in_browser(async |page| {
        let begun = login::init();
        let serving = Program::start(&["--config", &begun.file]).await;
        let minted = std::process::Command::new(env!("CARGO_BIN_EXE_rejoin"))
            .args(["token", "--config", &begun.file, "--sub", "u1"])
            .output()
            .expect("it runs");
        let token = String::from_utf8(minted.stdout).expect("UTF-8");
        page.open(&serving.server.http(&format!("/#topic=users.u1.news&token={}", token.trim()))).await;
        let is_live = "document.querySelectorAll('[data-state=live]').length === 2";
        page.until(is_live).await;
        assert_eq!(
            page.run("return location.href").await,
            serving.server.http("/"),
            "the token is not in the address"
        );

        let publish = async |data: &str| {
            let client = crate::client();
            let url = serving.server.http("/topics/users.u1.news");
            let request = client.post(url).bearer_auth(&begun.key).body(data.to_owned());
            assert_eq!(request.send().await.expect("an answer").status(), 201);
        };
        publish("hello").await;
        page.until("document.querySelectorAll('.message').length === 2").await;
        let shown = page
            .run("return [...document.querySelectorAll('.message .data')].map(it => it.textContent)")
            .await;
        assert_eq!(shown, json!(["hello", "hello"]));

        // The user may not publish, and reads why.
        page.run("document.querySelector('#publish button').click()").await;
        page.until("document.querySelector('#outcome').textContent.includes('publish is not granted')").await;

        // The tab keeps the token over a reload, and another tab has none.
        page.open(&serving.server.http("/")).await;
        page.until(is_live).await;
        page.run("sessionStorage.clear()").await;
        page.open(&serving.server.http("/")).await;
        page.until("document.querySelector('#websocket .state').dataset.state === 'refused'").await;
        let told: Value = page.run("return document.querySelector('#websocket .note').textContent").await;
        assert!(
            told.as_str()
                .is_some_and(|text| text.contains("without a credential") || text.contains("no credential")),
            "{told}"
        );
        serving.terminate().await;
    })
    .await;
}
