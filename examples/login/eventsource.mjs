import {EventSource} from 'eventsource'

const backend = 'http://localhost:3000'
const token = async () => (await (await fetch(backend + '/token', {method: 'POST'})).json()).token

const events = new EventSource('http://localhost:7070/topics/users.u1.news', {
  // The library asks anew for each connection, so each one has a new token.
  fetch: async (url, options) => {
    const headers = {...options.headers, Authorization: 'Bearer ' + await token()}
    return fetch(url, {...options, headers})
  },
})
events.onmessage = event => console.log(event.lastEventId, event.data)
events.addEventListener('rejoin.gap', event => console.log('gap, so load again:', event.data))
