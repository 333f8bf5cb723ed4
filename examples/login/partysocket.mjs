import {WebSocket as Reconnecting} from 'partysocket'
import {WebSocket as Plain} from 'ws'

const backend = 'http://localhost:3000'
const token = async () => (await (await fetch(backend + '/token', {method: 'POST'})).json()).token

// Only outside of a browser: with an Origin the server tells a refusal by a close code, as it tells a browser.
class WebSocket extends Plain {
  constructor(url, protocols) {
    super(url, protocols, {origin: 'http://localhost:7070'})
  }
}

let cursor
const socket = new Reconnecting(
  () => 'ws://localhost:7070/topics/users.u1.news' + (cursor ? '?after=' + cursor : ''),
  async () => ['rejoin.v1', 'bearer.' + await token()],
  {WebSocket, minReconnectionDelay: 1000 + 1000 * Math.random(), maxReconnectionDelay: 3000},
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
