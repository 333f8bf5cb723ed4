import {EventSource} from 'eventsource'

async function token() {
  const answer = await fetch('http://localhost:3000/token', {method: 'POST'})
  if (!answer.ok) throw new Error(answer.status)
  return (await answer.json()).token
}

const events = new EventSource('http://localhost:7070/topics/users.u1.news', {
  // The library asks anew for each connection, so each one has a new token.
  fetch: async (url, options) => {
    const headers = {...options.headers, Authorization: 'Bearer ' + await token()}
    const answer = await fetch(url, {...options, headers})
    // The library stops at every status but 200. After an error it asks again.
    if (answer.status === 429 || answer.status >= 500) throw new Error(answer.status)
    return answer
  },
})
events.onmessage = event => console.log(event.lastEventId, event.data)
events.addEventListener('rejoin.gap', event => console.log('gap, so load again:', event.data))
events.onerror = event => events.readyState === EventSource.CLOSED && console.log('refused:', event.message)
