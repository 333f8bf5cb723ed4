import {WebSocket} from 'ws'

globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, {origin: 'http://localhost:7070'})
  }
}
