//! Publishes three messages, and prints their ids.

use rejoin::client::{Client, ClientError, Draft, Progress};
use tokio_stream::StreamExt;

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let url = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7070".into());
    let client = Client::new(&url)?;
    let drafts = ["one", "two", "three"].map(|text| Draft::new("demo", text).with_event("number"));
    let mut publishing = client.publish_all(tokio_stream::iter(drafts));
    while let Some(progress) = publishing.next().await {
        match progress? {
            Progress::Stored { id } => println!("{id}"),
            Progress::Refused(error) => eprintln!("refused: {error}"),
            Progress::Doubtful { count } => eprintln!("the next {count} may be stored twice"),
            _ => {}
        }
    }
    Ok(())
}
