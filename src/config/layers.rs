//! Flags over the environment over the file over the defaults, and the place of each value.

use std::{ffi::OsString, fmt, io, path::Path};

use clap::Parser;

use super::{
    Certificate, Config, LogKind, access,
    file::File,
    flags::{self, Flags},
    retain, shown,
};
use crate::{auth::Read, log::Credentials};

/// The credentials that a URL of Redis or of its Sentinels may lack.
const CREDENTIALS: [&str; 4] = [
    "REJOIN_REDIS_USERNAME",
    "REJOIN_REDIS_PASSWORD",
    "REJOIN_SENTINEL_USERNAME",
    "REJOIN_SENTINEL_PASSWORD",
];
/// The variables of the client commands.
const OF_COMMANDS: [&str; 2] = ["REJOIN_URL", "REJOIN_TOKEN"];
/// Variables that Kubernetes sets for a service that is called `rejoin`.
const VARIABLES_OF_KUBERNETES: [&str; 2] = ["REJOIN_SERVICE_", "REJOIN_PORT"];

/// The settings in force, and their places.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Config,
    settings: Vec<Setting>,
    /// The tables with keys and grants, as the file has them, without secrets.
    tables: String,
    /// The variables with credentials that are set.
    credentials: Vec<&'static str>,
}

/// The parts of the settings that a running server has read again, each with its mistakes.
pub struct Again {
    pub settings: Result<Settings, Vec<String>>,
    /// `None` if no files are named.
    pub certificate: Result<Option<Certificate>, Vec<String>>,
    /// The file of `tls-acme-eab`, which only the next start uses.
    pub account: Result<(), String>,
}

/// One setting, as it was written.
#[derive(Clone, Debug)]
pub struct Setting {
    pub name: String,
    text: Option<String>,
    pub place: Place,
}

/// The place of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Default,
    File { path: String, line: usize },
    Variable(String),
    Flag(String),
}

/// Settings, and the mistakes in single values.
struct Gathered {
    settings: Settings,
    mistakes: Vec<String>,
    /// The names of the settings with mistakes.
    mistaken: Vec<String>,
}

impl Settings {
    /// Lays the flags over `environment`, over the file that they name, over the defaults. `read` reads the
    /// files, also if the result is an error.
    ///
    /// # Errors
    /// All mistakes, each with its place.
    pub fn read(
        typed: &Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        mut read: impl FnMut(&Path) -> io::Result<String>,
    ) -> Result<Self, Vec<String>> {
        let (mut settings, mut mistakes) = Self::without_certificate(typed, environment, &mut read);
        settings.read_certificate(&mut read).unwrap_or_else(|wrong| mistakes.extend(wrong));
        settings.read_account(&mut read).unwrap_or_else(|wrong| mistakes.push(wrong));
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    /// The same for a server that runs with these settings. A mistake in one part does not hold up the others: the
    /// certificate would expire because of a mistake elsewhere, and a key that leaked would stay valid because of a mistake
    /// in the certificate.
    pub fn read_again(
        &self,
        typed: &Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        mut read: impl FnMut(&Path) -> io::Result<String>,
    ) -> Again {
        let (mut settings, mistakes) = Self::without_certificate(typed, environment, &mut read);
        let is_right = mistakes.is_empty();
        // A server that requires credentials does not take settings without any.
        let is_taken =
            is_right && (self.config.authority().is_open() || !settings.config.authority().is_open());
        // Those in force say which files they are, unless the new ones are taken.
        let mut of_files = if is_taken { settings.clone() } else { self.clone() };
        let certificate = of_files.read_certificate(&mut read).map(|()| of_files.config.certificate);
        settings.config.certificate = certificate.clone().unwrap_or_else(|_| self.config.certificate.clone());
        let account = if is_right { settings.read_account(&mut read) } else { Ok(()) };
        if account.is_err() {
            settings.config.acme_account.clone_from(&self.config.acme_account);
        }
        Again { settings: if is_right { Ok(settings) } else { Err(mistakes) }, certificate, account }
    }

    /// The settings without the files of the certificate and of the account, and all mistakes.
    fn without_certificate(
        typed: &Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        read: &mut Read<'_>,
    ) -> (Self, Vec<String>) {
        let Gathered { settings, mut mistakes, mistaken } = Self::gather(typed, environment, read);
        for contradiction in settings.config.contradictions() {
            let between = |setting: &&Setting| contradiction.between.contains(&setting.name.as_str());
            let all = || settings.settings.iter().filter(between);
            if !all().any(|setting| mistaken.contains(&setting.name)) {
                let stand: Vec<_> = all().map(ToString::to_string).collect();
                mistakes.push(format!("{} ({})", contradiction.what, stand.join("; ")));
            }
        }
        (settings, mistakes)
    }

    /// Reads the files of `tls-cert` and `tls-key`.
    fn read_certificate(&mut self, read: &mut Read<'_>) -> Result<(), Vec<String>> {
        let (Some(chain), Some(key)) = (&self.config.tls_cert, &self.config.tls_key) else { return Ok(()) };
        let mut mistakes = Vec::new();
        let mut text = |path: &Path| {
            read(path)
                .map_err(|error| mistakes.push(format!("{}: cannot read the file: {error}", path.display())))
        };
        // Both are read, so that both are watched.
        let (Ok(chain_text), Ok(key_text)) = (text(chain), text(key)) else { return Err(mistakes) };
        let certificate = Certificate::from_pem(&chain_text, &key_text).map_err(|wrong| {
            let path = if wrong.is_of_key() { key } else { chain };
            vec![format!("{}: {wrong}", path.display())]
        })?;
        self.config.certificate = Some(certificate);
        Ok(())
    }

    /// Reads the file of `tls-acme-eab`.
    fn read_account(&mut self, read: &mut Read<'_>) -> Result<(), String> {
        let Some(path) = &self.config.tls_acme_eab else { return Ok(()) };
        let text = read(path).map_err(|error| format!("cannot read the file: {error}"));
        let account = text.and_then(|text| text.parse().map_err(str::to_owned));
        self.config.acme_account = Some(account.map_err(|wrong| format!("{}: {wrong}", path.display()))?);
        Ok(())
    }

    /// Reads the settings for a command that starts no server: it may be given only a part of the settings, so these
    /// may contradict each other.
    ///
    /// # Errors
    /// All mistakes in single values, each with its place.
    pub fn read_in_part(
        typed: &Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        read: impl FnMut(&Path) -> io::Result<String>,
    ) -> Result<Self, Vec<String>> {
        let Gathered { settings, mistakes, .. } = Self::gather(typed, environment, read);
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    fn gather(
        typed: &Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        mut read: impl FnMut(&Path) -> io::Result<String>,
    ) -> Gathered {
        // An empty variable counts as not set, because scripts that pass variables on write it so.
        let environment = |name: &str| environment(name).filter(|text| !text.is_empty());
        // Such a variable must not count as not set: without its secret the server would be open.
        let is_no_text = |name: &String| environment(name).is_some_and(|text| text.to_str().is_none());
        let mut mistakes: Vec<_> =
            variables().filter(is_no_text).map(|name| format!("{name}: expected text in UTF-8")).collect();
        let environment = |name: &str| environment(name)?.into_string().ok();
        let path = typed.find("config").map(str::to_owned).or_else(|| environment(&variable("config")));
        let path = path.unwrap_or_default();
        let text = text_of(&path, &mut read, &mut mistakes);
        let mut file = File::parse(&path, &text, &mut mistakes);

        let mut settings = Vec::new();
        let mut mistaken = Vec::new();
        for name in flags::settings() {
            let mut layers = Vec::new();
            layers.extend(typed.find(&name).map(|text| (text.to_owned(), Place::Flag(format!("--{name}")))));
            let variable = variable(&name);
            layers.extend(environment(&variable).map(|text| (text, Place::Variable(variable))));
            if name != "config" {
                let in_file = file.take_setting(&name, &mut mistakes);
                layers.extend(in_file.map(|(text, line)| (text, Place::File { path: path.clone(), line })));
            }
            // An overridden value is checked too: one day it is no longer overridden.
            for (above, (text, place)) in layers.iter().enumerate() {
                let what = match shown::is_hidden(&name, text) {
                    // The secret comes from above, as it did for the server that printed this.
                    true => (above == 0).then(|| shown::PUT_SECRET.to_owned()),
                    false => flags::mistake(&name, text),
                };
                if let Some(what) = what {
                    mistakes.push(match place {
                        Place::File { .. } => format!("{place}: {name}: {what}"),
                        _ => format!("{place}: {what}"),
                    });
                    mistaken.push(name.clone());
                }
            }
            let first = layers.into_iter().next().map(|(text, place)| (Some(text), place));
            let (text, place) = first.unwrap_or_else(|| (flags::default(&name), Place::Default));
            settings.push(Setting { name, text, place });
        }
        let shown = shown::tables(&text, Path::new(&path));
        let tables = access::authority(&mut file, Path::new(&path), &mut read, &mut mistakes);
        let retain = retain::rules(&mut file, &mut mistakes);
        mistakes.extend(file.leftovers());

        let right = settings.iter().filter(|setting| !mistaken.contains(&setting.name));
        let arguments =
            right.filter_map(|setting| Some(format!("--{}={}", setting.name, setting.text.as_ref()?)));
        let mut config = Config::parse_from(std::iter::once("rejoin".to_owned()).chain(arguments));
        (config.tables, config.retain) = (tables, retain);
        if let LogKind::Redis(address) = &mut config.log {
            let credentials = |of: &str| Credentials {
                username: environment(&format!("{of}_USERNAME")),
                password: environment(&format!("{of}_PASSWORD")),
            };
            let of_redis = credentials("REJOIN_REDIS");
            **address = (**address).clone().or_credentials(of_redis, credentials("REJOIN_SENTINEL"));
        }
        let credentials = CREDENTIALS.into_iter().filter(|name| environment(name).is_some()).collect();
        Gathered { settings: Self { config, settings, tables: shown, credentials }, mistakes, mistaken }
    }

    /// The names of the settings whose values differ from those in `other`. The account in a file counts as its setting.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let is_other_account = self.config.acme_account != other.config.acme_account;
        let pairs = self.settings.iter().zip(&other.settings);
        let pairs = pairs.filter(move |(one, other)| {
            one.text != other.text || (is_other_account && one.name == "tls-acme-eab")
        });
        pairs.map(|(one, _)| one.name.as_str())
    }

    /// True if the file of `--config` has a secret.
    pub fn has_secrets_in_file(&self) -> bool {
        let is_secret = |setting: &&Setting| {
            let shown = setting.text.as_deref().map(|text| shown::value(&setting.name, text));
            matches!(setting.place, Place::File { .. }) && shown != setting.text
        };
        self.settings.iter().any(|setting| is_secret(&setting)) || shown::hides_a_secret(&self.tables)
    }

    /// A file of these settings, keys and grants. Each setting has its place, and `***` stands for a secret.
    pub fn show(&self) -> String {
        let line = |setting: &Setting| shown::setting(&setting.name, setting.text.as_deref());
        let lines: Vec<_> = self.settings.iter().map(|setting| (line(setting), &setting.place)).collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or_default();
        let settings = lines.iter().map(|(line, place)| format!("{line:width$}  # {place}\n"));
        let elsewhere =
            self.credentials.iter().map(|name| format!("# {name} is set, and is not in this file\n"));
        let is_open = self.config.authority().is_open();
        let open = if is_open { "# open: no credentials are required\n" } else { "" };
        let tables = if self.tables.is_empty() { String::new() } else { format!("\n{}", self.tables) };
        format!("{}{}{open}{tables}", settings.collect::<String>(), elsewhere.collect::<String>())
    }
}

/// The names of the variables in the environment that look like settings and are none.
pub fn unknown_variables() -> impl Iterator<Item = String> {
    let known: Vec<_> = variables().collect();
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    names.filter(move |name| {
        name.starts_with("REJOIN_")
            && !known.contains(name)
            && !OF_COMMANDS.contains(&name.as_str())
            && !VARIABLES_OF_KUBERNETES.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// The variables that the server reads.
fn variables() -> impl Iterator<Item = String> {
    let settings = flags::settings().into_iter().map(|name| variable(&name));
    settings.chain(CREDENTIALS.map(str::to_owned))
}

fn variable(name: &str) -> String {
    format!("REJOIN_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// The text of the file, or empty text if there is no file.
fn text_of(path: &str, read: &mut Read<'_>, mistakes: &mut Vec<String>) -> String {
    if path.is_empty() {
        return String::new();
    }
    read(Path::new(path)).unwrap_or_else(|error| {
        mistakes.push(format!("{path}: cannot read the file: {error}"));
        String::new()
    })
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{} = {}, {}", self.name, shown::value(&self.name, text), self.place),
            None => write!(f, "{} is not set", self.name),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}
