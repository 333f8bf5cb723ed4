import {WebSocket} from 'ws'

globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, {origin: 'http://localhost:7070'})
    // partysocket removes its listeners before it gives up a connection. An error without a listener ends Node.
    this.on('error', () => {})
  }
}
