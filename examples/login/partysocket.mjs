import {WebSocket as Reconnecting} from 'partysocket'

async function token() {
  const answer = await fetch('http://localhost:3000/token', {method: 'POST'})
  if (!answer.ok) throw new Error(answer.status)
  return (await answer.json()).token
}

let cursor
const socket = new Reconnecting(
  () => 'ws://localhost:7070/topics/users.u1.news' + (cursor ? '?after=' + cursor : ''),
  async () => ['rejoin.v1', 'bearer.' + await token()],
  {minReconnectionDelay: 1000 + 1000 * Math.random(), maxReconnectionDelay: 3000},
)
socket.onmessage = event => {
  const frame = JSON.parse(event.data)
  if (frame.type === 'message') console.log(frame.id, frame.data)
  if (frame.type === 'gap') console.log('gap, so load again:', frame.topic)
  cursor = (frame.type === 'message' ? frame.id : frame.cursor) ?? cursor
}
socket.onclose = ({code, reason}) => {
  if (code < 4000 || code >= 4100) return
  console.log('refused:', reason)
  socket.close()
}
