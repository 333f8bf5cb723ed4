//! The configuration as a file, without its secrets.
//!
//! `***` stands for each secret, and no server accepts it as one. So a server that starts from such a file has the
//! same keys and grants, and never fewer.

use std::path::{Path, absolute};

use toml::{Table, Value};

/// The names of the tables: retention by pattern, keys and grants.
const TABLES: [&str; 5] = ["retain", "key", "jwt", "hook", "anonymous"];

/// Stands for a secret.
const HIDDEN: &str = "***";

/// The mistake of a setting in which `***` still stands for a secret.
pub const PUT_SECRET: &str =
    "*** is not a secret: `rejoin config` prints it in place of one; put the secret here";

/// True for a text that [`setting`] has printed in place of a secret.
pub fn is_hidden(name: &str, text: &str) -> bool {
    match name {
        "log" => {
            let pairs = text.split(['?', '&']).skip(1);
            text.contains("://***@") || pairs.into_iter().any(|pair| pair == HIDDEN || pair.ends_with("=***"))
        }
        "jwt-secret" => text == HIDDEN,
        _ => false,
    }
}

/// The value of a setting, with its secrets hidden.
pub fn value(name: &str, text: &str) -> String {
    match name {
        "log" => without_credentials(text),
        "jwt-secret" => HIDDEN.to_owned(),
        _ => text.to_owned(),
    }
}

/// A setting as a line of the file.
pub fn setting(name: &str, text: Option<&str>) -> String {
    let Some(text) = text else { return format!("# {name} is not set") };
    let text = value(name, text);
    // A number is written as one only if it is read back as the same text.
    let is_number = text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    let value = if is_number || text == "true" || text == "false" { text } else { quoted(text) };
    let is_here = if name == "config" { "# " } else { "" };
    format!("{is_here}{name} = {value}")
}

fn quoted(text: String) -> String {
    Value::String(text).to_string()
}

/// The tables in the file at `path`, which has this text.
///
/// The names of the files in them are made absolute, so that they mean the same files from every folder.
pub fn tables(text: &str, path: &Path) -> String {
    // The caller has reported the mistakes in the text already.
    let Ok(mut file) = text.parse::<Table>() else { return String::new() };
    file.retain(|name, _| TABLES.contains(&name));
    if let Some(Value::Array(jwts)) = file.get_mut("jwt") {
        jwts.iter_mut().filter_map(Value::as_table_mut).for_each(|jwt| hide(jwt, path));
    }
    if let Some(Value::Table(hook)) = file.get_mut("hook") {
        hide(hook, path);
    }
    toml::to_string(&file).expect("it was read from TOML")
}

/// True if [`tables`] has hidden a secret in this text.
pub fn hides_a_secret(tables: &str) -> bool {
    tables.contains(&quoted(HIDDEN.to_owned()))
}

/// Hides the secret of a `[[jwt]]` or a `[hook]`, and makes its paths absolute.
fn hide(jwt: &mut Table, path: &Path) {
    // A JWK is a secret if the algorithm has shared secrets.
    let is_shared = jwt.get("algorithm").and_then(Value::as_str).is_some_and(|name| name.starts_with("HS"));
    let secrets = ["secret", "jwk"].into_iter().filter(|name| *name == "secret" || is_shared);
    for name in secrets {
        if let Some(secret) = jwt.get_mut(name) {
            *secret = HIDDEN.into();
        }
    }
    for name in ["file", "ca"] {
        let Some(Value::String(file)) = jwt.get_mut(name) else { continue };
        let named = path.parent().unwrap_or(Path::new("")).join(&file);
        if let Some(path) = absolute(named).ok().and_then(|path| path.into_os_string().into_string().ok()) {
            *file = path;
        }
    }
}

/// The URL without user and password. Every parameter but `prefix` and `db` is hidden too.
fn without_credentials(url: &str) -> String {
    let (address, query) = url.split_once('?').map_or((url, None), |(address, query)| (address, Some(query)));
    // Up to the last @, in case the password contains one that is not written as %40.
    let shown = match (address.split_once("://"), url.rfind('@')) {
        (Some((scheme, _)), Some(_)) => {
            let host = address.rsplit_once('@').map_or("", |(_, host)| host);
            format!("{scheme}://***@{host}")
        }
        _ => address.to_owned(),
    };
    let Some(query) = query else { return shown };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name @ ("prefix" | "db"), value)) => format!("{name}={value}"),
        Some((name, _)) => format!("{name}=***"),
        None => HIDDEN.to_owned(),
    });
    format!("{shown}?{}", pairs.collect::<Vec<_>>().join("&"))
}
