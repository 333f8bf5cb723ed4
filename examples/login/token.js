const url = 'ws://localhost:7070/topics/users.u1.news'
const wait = milliseconds => new Promise(resume => setTimeout(resume, milliseconds))
let cursor

function show(frame) {
  const item = document.createElement('li')
  item.textContent = frame.data
  document.querySelector('#by-token').append(item)
}

async function listen() {
  // A new token for each connection. The server closes a connection with 4201 when its token ends.
  const answer = await fetch('/token', {method: 'POST'})
  if (!answer.ok) throw new Error(answer.status)
  const {token} = await answer.json()
  const protocols = ['rejoin.v1', 'bearer.' + token]
  const socket = new WebSocket(url + (cursor ? '?after=' + cursor : ''), protocols)
  socket.onmessage = event => {
    const frame = JSON.parse(event.data)
    if (frame.type === 'message') show(frame)
    if (frame.type === 'gap') console.log('gap, so load again')
    cursor = (frame.type === 'message' ? frame.id : frame.cursor) ?? cursor
  }
  socket.onclose = ({code, reason}) => {
    if (code >= 4000 && code < 4100) console.log('refused:', reason)
    else again()
  }
}

async function again() {
  await wait(1000 + 2000 * Math.random())
  listen().catch(again)
}

listen().catch(again)
