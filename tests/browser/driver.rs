//! The requests to chromedriver (W3C WebDriver), as far as the tests need them.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::http_client;

/// A browser that chromedriver has started.
pub struct Session {
    http: reqwest::Client,
    url: String,
}

/// The key under which WebDriver names an element (§12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Session {
    /// Asks the driver on this port for a browser with these capabilities.
    pub async fn start(port: u16, patience: Duration, capabilities: Value) -> Self {
        let http = http_client().timeout(patience).build().expect("a client");
        let url = format!("http://127.0.0.1:{port}/session");
        let wish = json!({"capabilities": {"alwaysMatch": capabilities}});
        let answer = value_of(http.post(&url).json(&wish)).await.expect("chromium starts");
        let id = answer["sessionId"].as_str().expect("an id").to_owned();
        Self { http, url: format!("{url}/{id}") }
    }

    pub async fn close(&self) -> Result<Value, String> {
        value_of(self.http.request(Method::DELETE, &self.url)).await
    }

    pub async fn open(&self, url: &str) -> Result<Value, String> {
        self.post("url", json!({"url": url})).await
    }

    /// Opens another tab, in which the page goes on from here.
    pub async fn open_tab(&self) -> Result<String, String> {
        let tab = self.post("window/new", json!({"type": "tab"})).await?;
        let handle = tab["handle"].as_str().ok_or("no handle")?.to_owned();
        self.to_tab(&handle).await?;
        Ok(handle)
    }

    /// Goes on in this tab.
    pub async fn to_tab(&self, handle: &str) -> Result<Value, String> {
        self.post("window", json!({"handle": handle})).await
    }

    /// Runs a script in the page. If it returns a promise, this awaits it.
    pub async fn run(&self, script: &str) -> Result<Value, String> {
        self.post("execute/sync", json!({"script": script, "args": []})).await
    }

    /// Replaces the text of the first element that this selector finds, as a user does.
    pub async fn fill(&self, selector: &str, text: &str) -> Result<Value, String> {
        let element = self.find(selector).await?;
        self.post(&format!("{element}/clear"), json!({})).await?;
        self.post(&format!("{element}/value"), json!({"text": text})).await
    }

    pub async fn click(&self, selector: &str) -> Result<Value, String> {
        let element = self.find(selector).await?;
        self.post(&format!("{element}/click"), json!({})).await
    }

    /// Takes the network from the page, or gives it back (an extension of chromedriver).
    pub async fn offline(&self, is_offline: bool) -> Result<Value, String> {
        let conditions = json!({"offline": is_offline, "latency": 0, "throughput": 100_000_000});
        self.post("chromium/network_conditions", json!({"network_conditions": conditions})).await
    }

    /// A command of the Chrome DevTools protocol (an extension of chromedriver).
    pub async fn command(&self, name: &str, parameters: Value) -> Result<Value, String> {
        self.post("goog/cdp/execute", json!({"cmd": name, "params": parameters})).await
    }

    /// The path of an element.
    async fn find(&self, selector: &str) -> Result<String, String> {
        let found = self.post("element", json!({"using": "css selector", "value": selector})).await?;
        Ok(format!("element/{}", found[ELEMENT].as_str().ok_or("no element")?))
    }

    async fn post(&self, what: &str, body: Value) -> Result<Value, String> {
        value_of(self.http.post(format!("{}/{what}", self.url)).json(&body)).await
    }
}

/// The value of the answer, or the error that it names.
async fn value_of(request: RequestBuilder) -> Result<Value, String> {
    let answer = request.send().await.map_err(|error| error.to_string())?;
    let is_done = answer.status().is_success();
    let mut answer: Value = answer.json().await.map_err(|error| error.to_string())?;
    let value = answer["value"].take();
    if is_done { Ok(value) } else { Err(value.to_string()) }
}
