//! The example of a login in a browser, and the page that `rejoin init` leads to.

use std::time::Duration;

use serde_json::json;

use crate::{
    page::{Page, in_browser},
    support::{
        login::{self, Login},
        program::Program,
    },
};

/// How many times each way must have a new token.
const RENEWALS: i64 = 3;

/// How many messages are published until then, at most. This turns a hang into a failure.
const MAX_MESSAGES: i32 = 300;

/// More requests for tokens than the page needs in that time. A browser lists at most 250 requests.
const MAX_ASKED: i64 = 100;

/// The texts in a list of the page.
async fn items(page: &Page, list: &str) -> Vec<String> {
    let items = page
        .run(&format!("return [...document.querySelectorAll('#{list} li')].map(it => it.textContent)"))
        .await;
    items.as_array().expect("a list").iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

/// True if each list of the page has a message.
async fn all_listen(page: &Page) -> bool {
    let is_empty = "return [...document.querySelectorAll('ul')].some(list => !list.children.length)";
    page.run(is_empty).await == false
}

async fn tokens(page: &Page, path: &str) -> i64 {
    let asked = "return performance.getEntriesByType('resource').filter(it => it.name.endsWith(NAME)).length";
    page.run(&asked.replace("NAME", &json!(path).to_string())).await.as_i64().expect("a number")
}

/// A token lives for 5 s here. A page that listens with the client, by a cookie and by a token gets each message once
/// and in order over three of its ends. The first answers of the backend are errors.
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
        // The client renews its token before its end. The cookie is renewed at half of its life, so it is renewed twice
        // for each end of a token.
        while !all_listen(page).await
            || tokens(page, "/token").await <= 2 * RENEWALS
            || tokens(page, "/cookie").await <= 2 * RENEWALS
        {
            again.tick().await;
            number += 1;
            assert!(number < MAX_MESSAGES, "the page asks for no new token");
            login.publish(&number.to_string()).await;
        }
        let last = json!(number.to_string());
        for list in ["by-client", "by-cookie", "by-token"] {
            page.until(&format!("document.querySelector('#{list} li:last-child')?.textContent === {last}"))
                .await;
            let heard = items(page, list).await;
            let first: i32 = heard[0].parse().expect("a number");
            let expected: Vec<String> = (first..=number).map(|number| number.to_string()).collect();
            assert_eq!(heard, expected, "{list}");
        }
        let asked = tokens(page, "/cookie").await + tokens(page, "/token").await;
        assert!(asked < MAX_ASKED, "the page has asked {asked} times for tokens");
        // No token is where a script of another origin, or a log, could find it.
        assert_eq!(page.run("return document.cookie").await, "", "the cookie is not for scripts");
        let log = login.serving.terminate().await.log;
        assert!(!log.contains("refused"), "{log}");
    })
    .await;
}

const IS_REFUSED: &str = "document.querySelectorAll('.lane[data-state=refused]').length === 4";
const IS_LIVE: &str = "document.querySelectorAll('.lane[data-state=live]').length === 4";

/// The words of the page above its lanes, and in the first of them.
async fn notes(page: &Page) -> String {
    let notes = "return [...document.querySelectorAll('#notice, .lane:first-child .note')].map(it => it.textContent).join()";
    page.run(notes).await.as_str().expect("a text").to_owned()
}

/// Goes to another address of the page in the same tab. The browser does not load the page for that, so the page has to.
async fn go(page: &Page, hash: &str) {
    page.run(&format!("window.isOld = true; location.hash = {}", json!(hash))).await;
    for _ in 0..600 {
        // A script fails while the page is loaded.
        if page.session.run("return window.isOld !== true").await.is_ok_and(|is_new| is_new == true) {
            return page.prepare().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the page does not take another address");
}

/// A token of `rejoin init` ends after an hour. Then a person runs the command again, and opens the new address in the
/// same tab. The page ignored it, and the token stayed in the address.
#[tokio::test]
async fn another_address_in_the_same_tab_gives_the_page_another_token() {
    in_browser(async |page| {
        let begun = login::init();
        let serving = Program::start(&["--config", &begun.file]).await;
        let token = |arguments: &[&str]| {
            let arguments = [&["token", "--config", &begun.file], arguments].concat();
            let made = std::process::Command::new(env!("CARGO_BIN_EXE_rejoin")).args(arguments).output();
            String::from_utf8(made.expect("it runs").stdout).expect("UTF-8").trim().to_owned()
        };
        page.open(&serving.server.http("/#topic=users.u1.news&token=a.b.c")).await;
        page.until(IS_REFUSED).await;
        go(page, &format!("topic=users.u1.news&token= {} ", token(&["--sub", "u1"]))).await;
        page.until(IS_LIVE).await;
        assert_eq!(page.run("return location.href").await, serving.server.http("/"));
        let kept = page.run("return JSON.stringify(sessionStorage)").await;
        assert!(!kept.to_string().contains("a.b.c"), "{kept}");

        // A WebSocket cannot send this. It stopped the whole page.
        go(page, "topic=users.u1.news&token=a token").await;
        page.until(IS_REFUSED).await;
        page.until("document.querySelector('#notice').textContent.includes('no token has')").await;
        let told = notes(page).await;
        assert!(told.contains("has a character that no token has"), "{told}");

        // An address without a token gives the page none.
        go(page, "topic=users.u1.news&token=a.b.c").await;
        go(page, "topic=users.u1.news").await;
        page.until(IS_REFUSED).await;
        assert!(notes(page).await.contains("This server wants a token"));

        // The page cannot renew a token. It asked again for ever, and its notes hid the messages.
        go(page, &format!("topic=users.u1.news&token={}", token(&["--sub", "u1", "--ttl", "2s"]))).await;
        page.until(IS_REFUSED).await;
        page.until("document.body.textContent.includes('The token has ended')").await;
        serving.terminate().await;
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
        page.until(IS_LIVE).await;
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
        page.until("document.querySelectorAll('.message').length === 4").await;
        let shown = page
            .run("return [...document.querySelectorAll('.message .data')].map(it => it.textContent)")
            .await;
        assert_eq!(shown, json!(["hello", "hello", "hello", "hello"]));

        // The user may not publish, and reads why.
        page.run("document.querySelector('#publish button').click()").await;
        page.until("document.querySelector('#publish output').textContent.includes('may not publish to users.u1.news')").await;

        // The tab keeps the token over a reload, and another tab has none.
        page.open(&serving.server.http("/")).await;
        page.until(IS_LIVE).await;
        page.run("sessionStorage.clear()").await;
        page.open(&serving.server.http("/")).await;
        page.until(IS_REFUSED).await;
        let told = notes(page).await;
        assert!(told.contains("This server wants a token"), "{told}");
        serving.terminate().await;
    })
    .await;
}
