//! The console: four lanes that lose nothing, whatever one presses, and a page that says what its token may not see.

use std::{env, io::Write, path::Path, time::Duration};

use rejoin::{Config, config::Secret};
use serde_json::{Value, json};

use crate::{
    client,
    page::{Page, in_browser},
    publish,
    signer::{SECRET, Signer, seconds_from_now},
    support::Server,
};

/// True once all lanes are connected.
const IS_LIVE: &str = "document.querySelectorAll('.lane[data-state=live]').length === 4";

async fn text_of(page: &Page, selector: &str) -> String {
    let text = format!("return document.querySelector({}).textContent", json!(selector));
    page.run(&text).await.as_str().expect("a text").to_owned()
}

/// Waits until each lane shows this many messages.
async fn until_shown(page: &Page, count: usize) {
    let all = "[...document.querySelectorAll('.lane')]";
    page.until(&format!("{all}.every(it => it.querySelectorAll('.message').length === {count})")).await;
}

/// The ids that each lane shows, newest first.
async fn shown(page: &Page) -> Vec<Vec<String>> {
    let ids = "return [...document.querySelectorAll('.lane')].map(lane =>
        [...lane.querySelectorAll('.message')].map(it => it.dataset.id))";
    serde_json::from_value(page.run(ids).await).expect("lists of ids")
}

/// Publishes this many messages.
async fn publish_some(server: &Server, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(publish(server.addr, "demo", &n.to_string()).await);
    }
    ids
}

async fn press(page: &Page, selector: &str) {
    page.session.click(selector).await.unwrap_or_else(|error| panic!("{selector}: {error}"));
}

fn with_tokens(config: &mut Config) {
    config.jwt_secret = Some(Secret(SECRET.into()));
}

fn token(grants: &Value) -> String {
    Signer::new("HS256").sign(&json!({"sub": "u1", "exp": seconds_from_now(600), "rejoin": grants}))
}

async fn enter(page: &Page, token: &str) {
    page.session.fill("#token", token).await.expect("a field for the token");
    press(page, "#credential button").await;
}

/// Opens the console of a new server, and returns the ids of five messages that were there before.
async fn open(page: &Page) -> (Server, Vec<String>) {
    let server = Server::start().await;
    let ids = publish_some(&server, 5).await;
    page.open(&server.http("/")).await;
    page.until(IS_LIVE).await;
    (server, ids)
}

/// Every lane shows exactly these, newest first, and the page says so.
async fn assert_whole(page: &Page, ids: &[String]) {
    until_shown(page, ids.len()).await;
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(shown(page).await, vec![newest_first; 4]);
    page.until(
        "document.querySelector('#verdict').textContent === 'All lanes are caught up, nothing is missing'",
    )
    .await;
}

/// Each fault alone on each lane, and then all lanes together, with messages before, during and after it.
#[tokio::test]
async fn each_fault_brings_every_lane_back_with_nothing_missing() {
    in_browser(async |page| {
        let (server, mut ids) = open(page).await;
        assert_whole(page, &ids).await;

        for lanes in [".lane", "#faults"] {
            let buttons = |name: &str| {
                format!("document.querySelectorAll('{lanes} [name={name}]').forEach(it => it.click())")
            };
            page.run(&buttons("cut")).await;
            ids.extend(publish_some(&server, 3).await);
            assert_whole(page, &ids).await;

            page.run(&buttons("offline")).await;
            page.until("!document.querySelector('.lane[data-state=live]')").await;
            ids.extend(publish_some(&server, 3).await);
            page.run(&buttons("offline")).await;
            assert_whole(page, &ids).await;

            page.run(&buttons("slow")).await;
            ids.extend(publish_some(&server, 5).await);
            // Such a reader takes two messages a second, so all lanes are behind now.
            page.until("[...document.querySelectorAll('.lane .message')].length < 4 * COUNT".replace("COUNT", &ids.len().to_string()).as_str()).await;
            page.run(&buttons("slow")).await;
            assert_whole(page, &ids).await;
        }

        for _ in 0..4 {
            press(page, "#faults [name=turn]").await;
            ids.extend(publish_some(&server, 2).await);
            assert_whole(page, &ids).await;
        }
        page.run("const choice = document.querySelector('.lane select'); choice.value = 'poll'; choice.dispatchEvent(new Event('change'))").await;
        ids.extend(publish_some(&server, 2).await);
        assert_whole(page, &ids).await;
        assert_eq!(text_of(page, ".lane h3").await, "Long-polling");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_lane_that_comes_back_too_late_shows_the_gap_that_the_server_tells() {
    in_browser(async |page| {
        let server = Server::with(|config| config.retain_messages = 2).await;
        publish_some(&server, 2).await;
        page.open(&server.http("/")).await;
        page.until(IS_LIVE).await;
        press(page, "#faults [name=offline]").await;
        page.until("!document.querySelector('.lane[data-state=live]')").await;
        publish_some(&server, 6).await;
        press(page, "#faults [name=offline]").await;
        page.until("document.querySelectorAll('.lane .gap').length === 4").await;
        until_shown(page, 4).await;
        page.until("document.querySelector('#verdict').textContent === 'All lanes are caught up, and every gap was told'").await;
        server.stop().await;
    })
    .await;
}

/// The page was dead as soon as credentials were configured.
#[tokio::test]
async fn a_token_for_one_topic_reads_it_and_the_page_says_what_it_may_not_see() {
    in_browser(async |page| {
        let server = Server::with(with_tokens).await;
        page.open(&server.http("/")).await;
        page.until("document.querySelector('#notice').textContent.includes('This server wants a token')").await;

        let token = token(&json!({"subscribe": ["news.{sub}"]}));
        enter(page, &token).await;
        page.until(IS_LIVE).await;
        assert_eq!(page.run("return document.querySelector('#topic').value").await, "news.u1");
        page.until("document.querySelector('#who').textContent.startsWith('u1 until ')").await;
        for (section, said) in [
            ("topics", "This token may not list topics. It needs the grant admin."),
            ("connections", "This token may not see connections. It needs the grant admin."),
            ("numbers", "This token may not see the numbers of the server. It needs the grant admin."),
        ] {
            page.run(&format!("document.querySelector('#{section}').scrollIntoView()")).await;
            page.until(&format!("document.querySelector('#{section} .say').textContent === {}", json!(said))).await;
        }
        press(page, "#publish button").await;
        page.until("document.querySelector('#publish output').textContent === 'This token may not publish to news.u1. It needs the grant publish for it.'").await;

        // Another topic is refused, and the page offers the one that is granted.
        page.open(&server.http("/?topic=other")).await;
        page.until("document.querySelector('#notice').textContent.includes('may not read other')").await;
        press(page, "#granted button").await;
        page.until(IS_LIVE).await;
        assert_eq!(page.run("return location.search").await, "?topic=news.u1");

        // A lane does not go on with the topic of before, whatever one presses.
        page.session.fill("#topic", "other").await.expect("a field for the topic");
        press(page, "#listen button").await;
        let is_refused = "document.querySelectorAll('.lane[data-state=refused]').length === 4";
        page.until(is_refused).await;
        press(page, ".lane [name=cut]").await;
        press(page, "#faults [name=turn]").await;
        assert_eq!(page.run(&format!("return {is_refused}")).await, true);
        press(page, "#granted button").await;
        page.until(IS_LIVE).await;

        // The token is in this tab alone.
        let places = page.run("return [JSON.stringify(localStorage), document.cookie, location.href, document.title].join()").await;
        assert!(!places.to_string().contains(&token), "{places}");
        assert_eq!(page.run("return JSON.parse(sessionStorage.rejoin).token").await, token);
        server.stop().await;
    })
    .await;
}

/// The page cannot read such a cookie, so it must not need its claims.
#[tokio::test]
async fn a_cookie_alone_reads_and_publishes_and_the_page_keeps_no_token() {
    in_browser(async |page| {
        let server = Server::with(with_tokens).await;
        let value = token(&json!({"subscribe": ["demo"], "publish": ["demo"]}));
        let cookie = json!({"url": server.http("/"), "name": "rejoin_token", "value": value, "httpOnly": true, "sameSite": "Strict"});
        page.session.command("Network.setCookie", cookie).await.expect("a cookie");
        page.open(&server.http("/")).await;
        page.until(IS_LIVE).await;
        page.until("document.querySelector('#who').textContent.startsWith('u1 until ')").await;
        press(page, "#publish button").await;
        until_shown(page, 1).await;
        let kept = "return [document.cookie, document.querySelector('#token').value, document.querySelector('#notice').textContent.trim()]";
        assert_eq!(page.run(kept).await, json!(["", "", ""]));
        let token = page.run("return JSON.parse(sessionStorage.rejoin ?? '{}').token ?? null").await;
        assert_eq!(token, Value::Null);
        server.stop().await;
    })
    .await;
}

/// Without motion no line is coloured for a moment, and the time line moves on by whole seconds.
#[tokio::test]
async fn a_person_who_wants_no_motion_sees_none() {
    in_browser(async |page| {
        let (server, _ids) = open(page).await;
        until_shown(page, 5).await;
        page.run(
            "window.drawn = []; const clear = CanvasRenderingContext2D.prototype.clearRect;
            CanvasRenderingContext2D.prototype.clearRect = function (...all) {
                drawn.push(document.timeline.currentTime);
                clear.apply(this, all);
            }",
        )
        .await;
        for (wish, animation) in [("no-preference", "arrive"), ("reduce", "none")] {
            let media = json!({"features": [{"name": "prefers-reduced-motion", "value": wish}]});
            page.session.command("Emulation.setEmulatedMedia", media).await.expect("a wish");
            let name = page
                .run("return getComputedStyle(document.querySelector('.lane .message')).animationName")
                .await;
            assert_eq!(name, animation, "{wish}");
        }
        // The first picture may be of the time before.
        page.run("drawn.length = 0").await;
        page.until("drawn.length > 3").await;
        let between = page.run("return drawn.slice(2).map((it, at) => it - drawn[at + 1])").await;
        let between: Vec<f64> = serde_json::from_value(between).expect("times");
        assert!(between.iter().all(|&ms| ms >= 999.0), "{between:?}");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_admin_finds_topics_and_changes_and_ends_a_connection() {
    in_browser(async |page| {
        let server = Server::with(with_tokens).await;
        let token = token(&json!({"subscribe": ["**"], "publish": ["**"], "admin": true}));
        page.open(&server.http(&format!("/#topic=demo&token={token}"))).await;
        page.until(IS_LIVE).await;
        for topic in ["orders.1", "orders.2", "orders.2.paid", "users.1"] {
            let post = "return fetch('/topics/TOPIC', {method: 'POST', body: 'news of TOPIC', headers: {Authorization: 'Bearer TOKEN'}})
                .then(answer => answer.status)";
            let status = page.run(&post.replace("TOPIC", topic).replace("TOKEN", &token)).await;
            assert_eq!(status, 201);
        }
        page.run("document.querySelector('#topics').scrollIntoView()").await;
        page.session.fill("#topics input", "orders.*").await.expect("a field for the pattern");
        page.until("[...document.querySelectorAll('#topics tbody button')].map(it => it.textContent).join() === 'orders.1,orders.2'").await;
        page.until("document.querySelector('#topics tbody').textContent.includes('news of orders.2')").await;

        page.run("document.querySelector('#connections').scrollIntoView()").await;
        page.until("document.querySelectorAll('#connections tbody tr').length === 3").await;
        page.run("[...document.querySelectorAll('#connections tbody tr')].find(it => it.textContent.includes('WebSocket')).querySelector('button').click()").await;
        page.session.fill("#connection input", "orders.**").await.expect("a field for the topic");
        press(page, "#connection [value=add]").await;
        page.until("document.querySelector('#connection output').textContent === 'It reads orders.** now.'").await;
        press(page, "#connection [value=end]").await;
        page.until("document.querySelector('.lane[data-state=refused]')?.textContent.includes('ended this connection')").await;
        press(page, "#connection [value=close]").await;
        // The lane comes back when one presses for it.
        press(page, ".lane[data-state=refused] [name=cut]").await;
        page.until(IS_LIVE).await;

        page.run("document.querySelector('#numbers').scrollIntoView()").await;
        page.until("/^Replica /.test(document.querySelector('#numbers .say').textContent)").await;
        assert_eq!(page.run("return document.querySelectorAll('#numbers path').length").await, 6);
        server.stop().await;
    })
    .await;
}

/// The lanes were live again without a topic, and counted what came to the others as missing.
#[tokio::test]
async fn a_lane_whose_topic_is_taken_is_refused_until_one_presses_resume() {
    in_browser(async |page| {
        let (server, mut ids) = open(page).await;
        let connections = client().get(server.http("/connections")).send().await.expect("an answer");
        let connections: Value = connections.json().await.expect("JSON");
        for connection in connections["connections"].as_array().expect("a list") {
            let id = connection["connection"].as_str().expect("an id");
            let path = server.http(&format!("/connections/{id}/topics/demo"));
            assert_eq!(client().delete(path).send().await.expect("an answer").status(), 204);
        }
        // The fourth lane polls, so no connection of its can lose a topic.
        let refused = "[...document.querySelectorAll('.lane[data-state=refused]')]";
        page.until(&format!("{refused}.length === 3")).await;
        page.until(&format!("{refused}.every(it => it.textContent.includes('The topic was taken'))")).await;
        ids.extend(publish_some(&server, 2).await);
        page.until("document.querySelectorAll('.lane[data-state=live] .message').length === 7").await;
        let rows = "return [...document.querySelectorAll('.lane')].map(it => [it.dataset.state, it.querySelector('.missing').textContent])";
        let lanes = page.run(rows).await;
        assert_eq!(lanes, json!([["refused", "0"], ["refused", "0"], ["refused", "0"], ["live", "0"]]));

        // A tab that is hidden for a while leaves the server, and a lane that was refused does not come back with it.
        let hide = "const real = setTimeout
            window.setTimeout = (run, ms, ...more) => real(run, ms === 10_000 ? 0 : ms, ...more)
            window.look = isHidden => {
                Object.defineProperty(document, 'hidden', { value: isHidden, configurable: true })
                dispatchEvent(new Event('visibilitychange'))
            }
            look(true)
            window.setTimeout = real";
        page.run(hide).await;
        let states = "[...document.querySelectorAll('.lane')].map(it => it.dataset.state).join()";
        page.until(&format!("{states} === 'refused,refused,refused,closed'")).await;
        let shown = page.run(&format!("look(false); return {states}")).await;
        assert_eq!(shown, json!("refused,refused,refused,connecting"));
        page.until("document.querySelectorAll('.lane[data-state=live]').length === 1").await;

        page.run(&format!("{refused}.forEach(it => it.querySelector('[name=cut]').click())")).await;
        page.until(IS_LIVE).await;
        assert_whole(page, &ids).await;
        let buttons = page.run("return [...document.querySelectorAll('.lane [name=cut]')].map(it => it.textContent)").await;
        assert_eq!(buttons, json!(["Cut", "Cut", "Cut", "Cut"]));
        server.stop().await;
    })
    .await;
}

/// The console shows who is present in the topic that is read, and who leaves.
#[tokio::test]
async fn the_members_of_the_topic_are_shown_as_they_come_and_go() {
    in_browser(async |page| {
        let server = Server::with(|config| {
            with_tokens(config);
            config.presence_grace = Duration::from_millis(100);
        })
        .await;
        let token = token(&json!({"subscribe": ["**"], "presence": ["**"]}));
        page.open(&server.http(&format!("/#topic=room.1&token={token}"))).await;
        page.until(IS_LIVE).await;
        page.run("document.querySelector('#presence').scrollIntoView()").await;
        page.until("document.querySelector('#presence .say').textContent === 'No subject is present.'").await;
        assert_eq!(text_of(page, "#presence h2").await, "Presence in room.1");
        let join = "return import('/rejoin.js').then(({ connect }) => {
            window.guest = connect('/', { token: () => JSON.parse(sessionStorage.rejoin).token });
            guest.subscribe('room.1', { presence: true });
        })";
        page.run(join).await;
        page.until("document.querySelector('#presence tbody th')?.textContent === 'u1'").await;
        page.until("document.querySelector('#presence .say').textContent === '1 present.'").await;
        page.run("guest.close()").await;
        page.until("document.querySelector('#presence .say').textContent === 'No subject is present.'").await;
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_form_publishes_with_a_key_a_content_type_and_as_an_ephemeral_message() {
    in_browser(async |page| {
        let (server, ids) = open(page).await;
        let fill = async |name: &str, text: &str| {
            let field = format!("#publish [name={name}]");
            page.session.fill(&field, text).await.unwrap_or_else(|error| panic!("{field}: {error}"));
        };
        let said = "document.querySelector('#publish output').textContent";
        fill("data", "a,b").await;
        fill("type", "text/csv").await;
        fill("event", "table").await;
        fill("key", "once").await;
        // With the same key it is stored once, and answered with the same id.
        press(page, "#publish button").await;
        page.until(&format!("{said}.startsWith('Published as ')")).await;
        let first = page.run(&format!("return {said}")).await;
        until_shown(page, ids.len() + 1).await;
        page.run("document.querySelector('#publish output').textContent = ''").await;
        press(page, "#publish button").await;
        page.until(&format!("{said} === {first}")).await;
        let stored = client().get(server.http("/topics/demo?last=1&wait=0")).send().await.expect("an answer");
        let stored: Value = stored.json().await.expect("JSON");
        let message = &stored["messages"][0];
        assert_eq!((&message["content_type"], &message["event"]), (&json!("text/csv"), &json!("table")), "{stored}");

        fill("key", "").await;
        fill("data", "now or never").await;
        page.run("document.querySelector('#publish [name=ephemeral]').click()").await;
        press(page, "#publish button").await;
        page.until(&format!("{said} === 'Published to all who are there now'")).await;
        // A poll that is not held just then misses it.
        page.until("[...document.querySelectorAll('.lane')].filter(it => it.textContent.includes('now or never')).length >= 3").await;
        let newest = client().get(server.http("/topics/demo?last=1&wait=0")).send().await.expect("an answer");
        let newest: Value = newest.json().await.expect("JSON");
        assert_eq!(newest["messages"], stored["messages"]);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_deep_link_shows_the_history_of_its_topic() {
    in_browser(async |page| {
        let server = Server::start().await;
        let mut ids = Vec::new();
        for n in 0..130 {
            ids.push(publish(server.addr, "a.b", &n.to_string()).await);
        }
        page.open(&server.http("/?topic=a.b")).await;
        until_shown(page, 20).await;
        page.until(IS_LIVE).await;
        press(page, "#older").await;
        until_shown(page, 120).await;
        press(page, "#older").await;
        until_shown(page, 130).await;
        ids.reverse();
        assert_eq!(shown(page).await[0], ids);
        assert!(text_of(page, ".lane ol").await.ends_with("This is the first message of the topic."));
        assert_eq!(page.run("return document.querySelector('#older').hidden").await, true);
        server.stop().await;
    })
    .await;
}

/// A person without a mouse reaches everything that can be pressed.
#[tokio::test]
async fn the_keyboard_reaches_every_control_and_a_phone_scrolls_in_one_direction() {
    in_browser(async |page| {
        let (server, _ids) = open(page).await;
        let controls = "[...document.querySelectorAll('a, button, input, textarea, select, ol, .table')]
            .filter(it => it.checkVisibility() && !it.disabled && !it.closest('tbody'))";
        page.run(&format!("window.reached = new Set(); window.controls = () => {controls};
            addEventListener('focusin', ({{target}}) => reached.add(target)); document.activeElement.blur()")).await;
        let count = page.run("return controls().length").await.as_u64().expect("a number");
        assert!(count > 40, "{count}");
        for _ in 0..count + 10 {
            let key = json!({"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            page.session.command("Input.dispatchKeyEvent", key).await.expect("a key");
        }
        let missed = page.run("return controls().filter(it => !reached.has(it)).map(it => it.outerHTML.slice(0, 200))").await;
        assert_eq!(missed, json!([]));

        for (width, height) in [(390, 844), (1280, 800)] {
            let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
            page.session.command("Emulation.setDeviceMetricsOverride", size).await.expect("a size");
            let wide = page.run("return document.documentElement.scrollWidth").await;
            assert!(wide.as_i64() <= Some(width), "{wide} of {width}");
        }
        // All lanes with messages are to be seen at 1280 x 800 without scrolling.
        let bottom = page.run("return Math.max(...[...document.querySelectorAll('.lane')].map(it => it.getBoundingClientRect().bottom))").await;
        assert!(bottom.as_f64() <= Some(800.0), "{bottom}");
        // The longest title and the state of a lane that is away are in one line, so the lists stay beside each other.
        press(page, ".lane:nth-child(2) [name=offline]").await;
        page.until("document.querySelectorAll('.lane')[1].dataset.state === 'waiting'").await;
        let tops = page.run("return new Set([...document.querySelectorAll('.lane ol')].map(it => it.getBoundingClientRect().top)).size").await;
        assert_eq!(tops, 1);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn axe_finds_nothing_in_light_and_dark() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/node_modules/axe-core/axe.min.js");
    let Ok(axe) = std::fs::read_to_string(file) else {
        assert!(env::var_os("CI").is_none(), "npm ci --prefix web has not run");
        let _ = writeln!(std::io::stderr(), "SKIPPED axe: npm ci --prefix web has not run");
        return;
    };
    in_browser(async |page| {
        let (server, _ids) = open(page).await;
        page.run("document.querySelector('#connections').scrollIntoView()").await;
        page.until("document.querySelector('#connections tbody tr')").await;
        page.run(&axe).await;
        for scheme in ["light", "dark"] {
            let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
            page.session.command("Emulation.setEmulatedMedia", media).await.expect("a scheme");
            let found = page.run("return axe.run().then(({violations}) => violations.map(it => [it.id, it.nodes.map(node => node.html)]))").await;
            assert_eq!(found, json!([]), "{scheme}");
        }
        server.stop().await;
    })
    .await;
}
