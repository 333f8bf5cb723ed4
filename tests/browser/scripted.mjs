// A server that a test speaks for, and a record of what a subscription tells.

/** Records everything that a subscription tells. */
export function record(subscription) {
  const told = []
  for (const type of ['message', 'gap', 'subscribed', 'refused']) {
    subscription.on(type, event => told.push({ ...event, type }))
  }
  return told
}
export const data = told => told.filter(it => it.type === 'message').map(it => it.data)
export const has = (told, type) => told.some(it => it.type === type)
export const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => from + at)

/** A WebSocket that a test speaks for, since a real server sends these frames only in rare moments. */
export function scripted(open) {
  return class Socket {
    static all = []
    constructor(url) {
      this.url = url
      this.sent = []
      Socket.all.push(this)
      if (!Socket.isAway) setTimeout(() => this.say({ type: 'open', connection: 'c', cursor: '1000', ...open }))
    }
    say(frame) { this.onmessage({ data: JSON.stringify(frame) }) }
    send(text) { this.sent.push(JSON.parse(text)) }
    close() {}
  }
}

/** Gives a program of Node the locks of a browser. Returns what takes them away. */
export function withLocks() {
  const known = Object.getOwnPropertyDescriptor(globalThis, 'navigator'), queues = new Map()
  const request = (name, { signal }, held) => new Promise((done, failed) => {
    const before = queues.get(name) ?? Promise.resolve()
    const run = () => signal?.aborted ? failed(signal.reason) : Promise.resolve(held()).then(done, failed)
    queues.set(name, new Promise(next => before.then(run).finally(next)))
  })
  Object.defineProperty(globalThis, 'navigator', { value: { locks: { request } }, configurable: true })
  return () => known ? Object.defineProperty(globalThis, 'navigator', known) : delete globalThis.navigator
}
