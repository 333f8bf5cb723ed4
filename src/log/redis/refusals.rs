//! The meaning of an error of Redis: if the script ran, if the connection is of use, and which command was refused.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// The first word of an error of Redis.
pub fn code(error: &RedisError) -> Option<&str> {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ReadOnly) => Some("READONLY"),
        ErrorKind::Server(ServerErrorKind::NoPerm) => Some("NOPERM"),
        _ => error.code(),
    }
}

/// The command that Redis names in a refusal, without the rest of the text, which may hold the name of the user.
pub fn refused_command(error: &RedisError) -> Option<String> {
    if code(error) != Some("NOPERM") {
        return None;
    }
    let (command, _) = error.detail()?.rsplit_once("to run the '")?.1.split_once('\'')?;
    Some(command.to_uppercase())
}

/// True if Redis said that it did not run the script.
pub fn is_refused(error: &RedisError) -> bool {
    use ServerErrorKind::{
        BusyLoading, ClusterDown, CrossSlot, MasterDown, Moved, NoPerm, NoScript, ReadOnly, TryAgain,
    };
    match error.kind() {
        ErrorKind::Server(
            BusyLoading | ClusterDown | CrossSlot | MasterDown | Moved | NoScript | ReadOnly | TryAgain,
        )
        | ErrorKind::AuthenticationFailed => true,
        // A command that was refused within a script may have come after others that ran.
        ErrorKind::Server(NoPerm) => !error.to_string().contains("in script"),
        _ => matches!(
            error.code(),
            Some("MISCONF" | "NOREPLICAS" | "BUSY" | "NOAUTH" | "UNFIT" | "FROZEN" | "LATE")
        ),
    }
}

/// True if the server is a copy, or a primary that became one. It takes no writes.
pub fn is_of_copy(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly))
}

/// True if the connection is of no more use.
pub fn is_broken(error: &RedisError) -> bool {
    // An answer that this version cannot read came over a connection that works.
    !matches!(error.kind(), ErrorKind::Parse) && error.is_unrecoverable_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_read_breaks_no_connection() {
        let unreadable = RedisError::from(redis::ParsingError::from("expected an id"));
        assert!(!is_broken(&unreadable));
        assert!(is_broken(&std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()));
    }
}
