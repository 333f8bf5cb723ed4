import {cursor, receive} from '/page.js'

function listen() {
  const events = new EventSource('/events' + (cursor ? '?after=' + cursor : ''))
  for (const type of ['message', 'rejoin.open', 'rejoin.gap', 'rejoin.cursor', 'rejoin.subscribed']) {
    events.addEventListener(type, event => receive(JSON.parse(event.data)))
  }
  events.onerror = () => {
    // The browser reconnects by itself, but stops after a 502: so nginx answers while no replica runs.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000 + 5000 * Math.random())
  }
}

listen()
