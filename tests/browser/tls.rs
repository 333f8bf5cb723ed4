//! Pages over TLS: many tabs share one connection, and a WebSocket is `wss`.

use serde_json::Value;

use crate::{
    page::in_browser,
    published,
    support::{
        Server,
        tls::{PAIR, tunnel},
    },
};

/// Two more than a browser opens connections to one server.
const TABS: usize = 8;

/// In clear text a browser has six connections for all tabs together, and the seventh stream waits for ever.
#[tokio::test]
async fn eight_tabs_each_read_an_event_source_and_can_still_publish() {
    in_browser(async |page| {
        let server = Server::direct(|config| config.certificate = Some(PAIR.parsed())).await;
        let through = tunnel(server.addr).await;
        let url = format!("https://{}/", server.addr);
        let mut tabs = Vec::new();
        for _ in 0..TABS {
            tabs.push(page.session.open_tab().await.expect("a tab"));
            page.open(&url).await;
            page.run("listen('/topics/demo')").await;
            page.until("heard.some(it => it.type === 'rejoin.open')").await;
        }
        let sent = page.run("return post('/topics/demo', 'from the last tab')").await;
        assert_eq!(sent["status"], 201, "{sent}");
        published(through, "from outside").await;
        for tab in &tabs {
            page.session.to_tab(tab).await.expect("the tab is there");
            let heard = page.until("messages().length === 2").await;
            let texts: Vec<_> =
                heard.as_array().expect("an array").iter().filter_map(|it| it["data"].as_str()).collect();
            assert_eq!(texts, ["from the last tab", "from outside"]);
            let protocols = page
                .run("return performance.getEntriesByType('resource').map(it => it.nextHopProtocol)")
                .await;
            let is_http2 = |name: &Value| name == "h2" || name == "";
            assert!(protocols.as_array().is_some_and(|all| all.iter().all(is_http2)), "{protocols}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_page_reads_and_publishes_by_a_websocket_over_tls() {
    in_browser(async |page| {
        let server = Server::direct(|config| config.certificate = Some(PAIR.parsed())).await;
        let through = tunnel(server.addr).await;
        page.open(&format!("https://{}/", server.addr)).await;
        page.run("connect('/topics/demo')").await;
        page.until("heard.some(it => it.type === 'open')").await;
        published(through, "from outside").await;
        page.run("return post('/topics/demo', 'from the page')").await;
        let heard = page.until("messages().length === 2").await;
        let texts: Vec<_> =
            heard.as_array().expect("an array").iter().filter_map(|it| it["data"].as_str()).collect();
        assert_eq!(texts, ["from outside", "from the page"]);
    })
    .await;
}
