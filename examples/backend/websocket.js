import {cursor, receive} from '/page.js'

function listen() {
  const url = location.origin.replace('http', 'ws') + '/events'
  const socket = new WebSocket(url + (cursor ? '?after=' + cursor : ''))
  socket.onmessage = event => receive(JSON.parse(event.data))
  socket.onclose = ({code}) => {
    if (code >= 4000 && code < 4100) location = '/' // the session has ended
    else setTimeout(listen, 1000 + 2000 * Math.random())
  }
}

listen()
