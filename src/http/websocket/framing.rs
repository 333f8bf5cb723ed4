//! Finds from the heads of a client's frames whether a command has begun that is not whole (RFC 6455 §5.2).
//!
//! tungstenite keeps such bytes, and does not say that it has any.

/// The bit of the last frame of a message.
const FIN: u8 = 0x80;
/// The bit of the frames that may come between those of a message.
const CONTROL: u8 = 0x08;
/// The bit that says that a mask of four bytes follows the length.
const MASKED: u8 = 0x80;

/// The place in the frames of a client up to which they have arrived.
#[derive(Debug, Default)]
pub struct Framing {
    /// How many bytes of the current head have arrived. It is 0 between frames.
    head_bytes: u8,
    /// The first byte of the current frame: its kind, and whether it is the last of its message.
    first: u8,
    /// The ends of the length in the current head, and of the head. Its second byte tells both.
    length_end: u8,
    head_end: u8,
    /// How many bytes of the current payload have not arrived.
    missing: u64,
    /// How many bytes of the current command have arrived, with the heads of its frames.
    command_bytes: usize,
}

impl Framing {
    /// These bytes have arrived.
    pub fn read(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            let taken = if self.is_in_payload() {
                let length =
                    usize::try_from(self.missing).map_or(bytes.len(), |missing| missing.min(bytes.len()));
                self.missing -= length as u64;
                length
            } else {
                self.read_head(byte);
                bytes.len() - rest.len()
            };
            if self.first & CONTROL == 0 {
                self.command_bytes += taken;
            }
            bytes = &bytes[taken..];
            if self.is_in_payload() && self.missing == 0 {
                self.end_frame();
            }
        }
    }

    /// How many bytes of a command have arrived that is not whole.
    pub fn command_bytes(&self) -> usize {
        self.command_bytes
    }

    /// True if nothing has begun that is not whole.
    pub fn is_whole(&self) -> bool {
        self.head_bytes == 0 && self.command_bytes == 0
    }

    fn is_in_payload(&self) -> bool {
        self.head_bytes >= 2 && self.head_bytes == self.head_end
    }

    fn read_head(&mut self, byte: u8) {
        match self.head_bytes {
            0 => self.first = byte,
            1 => {
                let (extended, length) = match byte & !MASKED {
                    126 => (2, 0),
                    127 => (8, 0),
                    length => (0, length),
                };
                self.missing = length.into();
                self.length_end = 2 + extended;
                self.head_end = self.length_end + if byte & MASKED == 0 { 0 } else { 4 };
            }
            at if at < self.length_end => self.missing = self.missing << 8 | u64::from(byte),
            // The mask.
            _ => {}
        }
        self.head_bytes += 1;
    }

    fn end_frame(&mut self) {
        self.head_bytes = 0;
        if self.first & (FIN | CONTROL) == FIN {
            self.command_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames as a client sends them: a text of two fragments with a ping between them, then one that is long.
    fn frames() -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for (first, length) in [(0x01, 3), (0x89, 2), (0x80, 0), (0x81, 126), (0x8a, 0), (0x81, 70_000)] {
            bytes.push(first);
            match u16::try_from(length) {
                Ok(short @ ..126) => bytes.push(MASKED | short as u8),
                Ok(long) => {
                    bytes.push(MASKED | 126);
                    bytes.extend(long.to_be_bytes());
                }
                Err(_) => {
                    bytes.push(MASKED | 127);
                    bytes.extend((length as u64).to_be_bytes());
                }
            }
            // A mask and a payload that look like heads.
            bytes.extend(std::iter::repeat_n(0x01, 4 + length));
            if first != 0x01 && first != 0x89 {
                ends.push(bytes.len());
            }
        }
        (bytes, ends)
    }

    #[test]
    fn a_command_is_whole_where_its_last_frame_ends_and_nowhere_else() {
        let (bytes, ends) = frames();
        let mut framing = Framing::default();
        let whole: Vec<_> = (0..=bytes.len())
            .filter(|&at| {
                framing.read(&bytes[at.saturating_sub(1)..at]);
                framing.is_whole()
            })
            .collect();
        assert_eq!(whole, ends);
    }

    #[test]
    fn pieces_of_any_size_lead_to_the_same_place() {
        let (bytes, _) = frames();
        for at in [1, 2, 7, 9, 14, 20, 30, 200, 1_000, 60_000] {
            let (mut one, mut other) = (Framing::default(), Framing::default());
            one.read(&bytes[..at]);
            bytes[..at].chunks(3).for_each(|piece| other.read(piece));
            assert_eq!(format!("{one:?}"), format!("{other:?}"), "{at}");
        }
    }

    #[test]
    fn the_bytes_of_a_ping_between_fragments_are_none_of_the_command() {
        let (bytes, _) = frames();
        let first_fragment = 2 + 4 + 3;
        for ping in 0..=8 {
            let mut framing = Framing::default();
            framing.read(&bytes[..first_fragment + ping]);
            assert_eq!(framing.command_bytes(), first_fragment, "{ping} bytes of the ping");
        }
    }
}
