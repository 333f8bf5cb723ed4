const url = 'http://localhost:7070/topics/users.u1.news'
const wait = milliseconds => new Promise(resume => setTimeout(resume, milliseconds))
let cursor, renewal

async function logIn() {
  clearTimeout(renewal)
  const answer = await fetch('/cookie', {method: 'POST'})
  if (!answer.ok) throw new Error(answer.status)
  const {seconds} = await answer.json()
  renewal = setTimeout(() => logIn().catch(console.error), seconds * 500)
}

function show(event) {
  const item = document.createElement('li')
  item.textContent = event.data
  document.querySelector('#by-cookie').append(item)
}

async function listen() {
  await logIn()
  const events = new EventSource(url + (cursor ? '?after=' + cursor : ''), {withCredentials: true})
  for (const type of ['message', 'rejoin.open', 'rejoin.gap', 'rejoin.cursor', 'rejoin.closing']) {
    events.addEventListener(type, event => cursor = event.lastEventId || cursor)
  }
  events.onmessage = show
  events.addEventListener('rejoin.gap', () => console.log('gap, so load again'))
  // The browser reconnects by itself, with the newest cookie. It stops if the cookie ended while the tab slept.
  events.onerror = () => events.readyState === EventSource.CLOSED && again()
}

async function again() {
  await wait(5000 + 5000 * Math.random())
  listen().catch(again)
}

listen().catch(again)
