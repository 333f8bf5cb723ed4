import {cursor, receive} from '/page.js'

function listen() {
  const events = new EventSource('/events' + (cursor ? '?after=' + cursor : ''))
  for (const type of ['message', 'rejoin.open', 'rejoin.gap', 'rejoin.cursor', 'rejoin.subscribed']) {
    events.addEventListener(type, event => receive(JSON.parse(event.data)))
  }
  events.onerror = async () => {
    // The browser reconnects by itself, but stops after a 502: so nginx answers while no replica runs.
    if (events.readyState !== EventSource.CLOSED) return
    // It also stops after a refusal, and does not say which. A HEAD has the same status.
    const headers = {Accept: 'text/event-stream'}
    const {status} = await fetch('/events', {method: 'HEAD', headers}).catch(error => error)
    if (status === 401 || status === 403) location = '/' // the session has ended
    else setTimeout(listen, 5000 + 5000 * Math.random())
  }
}

listen()
