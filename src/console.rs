//! Notes for the user on standard error, before there is a log and after it. They never hold up the process.

use std::{
    io::{self, IsTerminal, Write},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How long the process waits until a note is printed.
const PRINT_WITHIN: Duration = Duration::from_secs(1);

pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

pub fn tell_mistakes(mistakes: &[String]) {
    tell(mistakes.iter().map(|mistake| format!("error: {mistake}\n")).collect());
}

/// Prints the text. It gives up after a while, because standard error may be a pipe that nobody reads. A failure
/// is ignored, because there is no other place to tell it.
pub fn tell(text: String) {
    let (is_printed, printed) = mpsc::channel();
    let print = {
        let text = text.clone();
        move || {
            let _ = io::stderr().write_all(text.as_bytes());
            let _ = is_printed.send(());
        }
    };
    match thread::Builder::new().spawn(print) {
        Ok(_) => drop(printed.recv_timeout(PRINT_WITHIN)),
        // If the system has no thread, that is the very thing to tell.
        Err(_) => drop(io::stderr().write_all(text.as_bytes())),
    }
}
