//! Notes for the user while a server does not answer: one for each reason, and one when it answers again.

use rejoin::client::ClientError;

use super::tell;

#[derive(Debug, Default)]
pub struct Notes {
    /// The last note, until the server answers again.
    last: Option<String>,
}

impl Notes {
    /// An attempt failed, and another one comes.
    pub fn retrying(&mut self, error: &ClientError) {
        let why = error.to_string();
        if self.last.as_ref() != Some(&why) {
            tell(format_args!("{why}; trying again"));
        }
        self.last = Some(why);
    }

    pub fn recovered(&mut self) {
        if self.last.take().is_some() {
            tell("the server answers again");
        }
    }
}
