//! The settings as they were typed, before they are laid over the environment and the file.

use clap::{ArgMatches, Args, Command, FromArgMatches, parser::ValueSource, value_parser};

use super::Config;

/// The flags as they were typed. They are checked later, so that their mistakes are reported together with
/// those of the environment and of the file.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// These settings alone, as if they had been typed.
    pub fn of(typed: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Self {
        Self(typed.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect())
    }

    /// These flags and one more.
    #[must_use]
    pub fn with(mut self, name: &str, text: &str) -> Self {
        self.0.push((name.to_owned(), text.to_owned()));
        self
    }

    /// The text that was typed for the setting of this name. The values of a repeated flag are joined by
    /// commas.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(flag, _)| flag == name).map(|(_, text)| text.as_str())
    }
}

/// The id that clap has for each setting, and the setting's own name.
fn names() -> Vec<(String, String)> {
    let command = Config::augment_args(Command::new("rejoin"));
    let named = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_id().to_string(), arg.get_long()?.to_owned())));
    named.collect()
}

/// The names of all settings, in the order of the help.
pub fn settings() -> Vec<String> {
    names().into_iter().map(|(_, name)| name).collect()
}

/// The value of a setting that is given nowhere.
pub fn default(name: &str) -> Option<String> {
    let command = Config::augment_args(Command::new("rejoin"));
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name))?;
    Some(arg.get_default_values().first()?.to_string_lossy().into_owned())
}

/// The mistake in `text` as the value of one setting.
pub fn mistake(name: &str, text: &str) -> Option<String> {
    let error = Config::augment_args(Command::new("rejoin"))
        .try_get_matches_from(["rejoin".to_owned(), format!("--{name}={text}")])
        .err()?;
    // Only the source: the text around it repeats the value, which may be a secret.
    let source = std::error::Error::source(&error).map(ToString::to_string);
    Some(source.unwrap_or_else(|| "not a valid value".to_owned()))
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let ours: Vec<String> = names().into_iter().map(|(id, _)| id).collect();
        Config::augment_args(command).mut_args(|arg| {
            if !ours.iter().any(|id| arg.get_id() == id.as_str()) {
                return arg;
            }
            // `-1` and `-5s` are values, so that their mistake is that of the setting.
            let is_duration = arg.get_value_names() == Some(&["DURATION".into()]);
            arg.value_parser(value_parser!(String))
                .allow_negative_numbers(true)
                .allow_hyphen_values(is_duration)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let text = |id: &str| {
            let values: Vec<&str> = matches.get_many::<String>(id)?.map(String::as_str).collect();
            Some(values.join(","))
        };
        let typed = names().into_iter().filter(|(id, _)| is_typed(id));
        Ok(Self(typed.filter_map(|(id, name)| Some((name, text(&id)?))).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
