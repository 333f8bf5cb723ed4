//! Prints messages of a topic, and reconnects by itself.
use rejoin::client::{Client, ClientError, Event, Start};
use tokio_stream::StreamExt;

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let client = Client::new("http://127.0.0.1:7070")?;
    let mut subscription = client.subscribe(["demo"], Start::Now);
    while let Some(event) = subscription.next().await {
        match event? {
            Event::Message(message) => println!("{}", String::from_utf8_lossy(&message.payload)),
            Event::Gap(gap) => println!("gap, so load again: {gap}"),
            _ => {}
        }
    }
    Ok(())
}
