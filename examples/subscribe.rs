//! Prints the messages of a topic as they are published, and reconnects by itself.

use rejoin::client::{Client, ClientError, Event, Start};
use tokio_stream::StreamExt;

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let url = std::env::args().nth(1).unwrap_or("http://127.0.0.1:7070".into());
    let mut subscription = Client::new(&url)?.subscribe(["demo"], Start::Now);
    while let Some(event) = subscription.next().await {
        match event? {
            Event::Message(message) => println!("{}", String::from_utf8_lossy(&message.payload)),
            Event::Gap(gap) => println!("gap, so load again: {gap}"),
            _ => {}
        }
    }
    Ok(())
}
