// The network between one lane and the server, which the page can cut, take away or slow down.

import { base } from './api.js'

/** While a reader is slow, it takes one message in this time. */
const SLOW_MS = 500
/** A page cannot stop reading a WebSocket. So it holds this many messages, and then the connection is lost. */
const MOST_HELD = 1000

const realFetch = fetch.bind(window)
/** All networks, by the address of their server. */
const networks = new Map()

// The client of this page asks through `fetch`, and the address says for which lane.
window.fetch = (input, init) => {
  const [url, network] = [...networks].find(([url]) => String(input).startsWith(url)) ?? []
  return network ? network.fetch(String(input).replace(url, base.href), init) : realFetch(input, init)
}

export class Network {
  isOffline = false
  isSlow = false
  /** The connections that are open, each with `abort`. */
  #open = new Set()
  /** Ends the pauses of a slow reader. */
  #hurry = new Set()

  /** The client speaks to this address. It looks like a folder of the server, and reaches no server as it is. */
  constructor(name) {
    this.url = new URL(name, base).href
    networks.set(this.url + '/', this)
    const network = this
    this.WebSocket = class {
      constructor(url, protocols) {
        const [lane, server] = [network.url + '/', base.href].map(it => it.replace('http', 'ws'))
        return new Line(network, url.replace(lane, server), protocols)
      }
    }
  }

  /** Every connection is lost, as on a line that breaks: neither side says goodbye. */
  cut() {
    for (const one of [...this.#open]) one.abort()
  }

  offline(isOffline) {
    this.isOffline = isOffline
    if (isOffline) return this.cut()
    // The client tries at once when a page comes back. Otherwise it would wait up to 20 s.
    dispatchEvent(new Event('pageshow'))
  }

  slow(isSlow) {
    this.isSlow = isSlow
    if (!isSlow) for (const resume of this.#hurry) resume()
  }

  opened(one) { this.#open.add(one) }
  closed(one) { this.#open.delete(one) }

  /** Waits as long as a slow reader takes for one message. */
  async pause() {
    let resume
    await new Promise(done => {
      resume = done
      this.#hurry.add(done)
      setTimeout(done, SLOW_MS)
    })
    this.#hurry.delete(resume)
  }

  async fetch(url, init = {}) {
    if (this.isOffline) throw new TypeError('this lane is offline')
    const one = new AbortController()
    this.opened(one)
    const signals = [one.signal, ...init.signal ? [init.signal] : []]
    try {
      const answer = await realFetch(url, { ...init, signal: AbortSignal.any(signals) })
      if (answer.body) return new Response(this.#paced(answer, one), answer)
      this.closed(one)
      return answer
    } catch (error) {
      this.closed(one)
      throw error
    }
  }

  /** The body of an answer, which a slow reader takes message by message. It reads no more than it was asked for. */
  #paced(answer, one) {
    const reader = answer.body.getReader()
    const end = endOf(answer.headers.get('content-type') ?? '')
    let rest = new Uint8Array()
    return new ReadableStream({
      pull: async controller => {
        if (!rest.length) {
          const { value, done } = await reader.read()
          if (done) {
            this.closed(one)
            return controller.close()
          }
          rest = value
        }
        if (this.isSlow) await this.pause()
        const length = this.isSlow ? end(rest) : rest.length
        controller.enqueue(rest.subarray(0, length))
        rest = rest.subarray(length)
      },
      cancel: reason => {
        this.closed(one)
        return reader.cancel(reason)
      },
    }, { highWaterMark: 0 })
  }
}

/** Finds the end of the first message in bytes of this type. */
function endOf(type) {
  if (!/event-stream|ndjson/.test(type)) return bytes => bytes.length
  const isBlock = type.includes('event-stream')
  return bytes => {
    for (let at = 0; at < bytes.length; at++) {
      if (bytes[at] === 10 && (!isBlock || bytes[at + 1] === 10)) return at + 1
    }
    return bytes.length
  }
}

/** A WebSocket of a lane. */
class Line {
  #held = []
  #isGiving = false

  constructor(network, url, protocols) {
    this.network = network
    if (network.isOffline) {
      setTimeout(() => this.#end())
      return
    }
    this.socket = new WebSocket(url, protocols)
    network.opened(this)
    this.socket.binaryType = 'arraybuffer'
    this.socket.onmessage = event => this.#take(() => this.onmessage?.(event))
    this.socket.onclose = event => this.#take(() => this.#end(event))
  }

  send(data) { this.socket?.send(data) }
  close() { this.socket?.close() }

  abort() {
    if (!this.socket) return
    this.socket.onmessage = this.socket.onclose = null
    this.#held = []
    this.socket.close()
    this.#end()
  }

  #end(event = { code: 1006, reason: '' }) {
    this.network.closed(this)
    this.onclose?.(event)
  }

  async #take(give) {
    if (this.#held.push(give) > MOST_HELD) return this.abort()
    if (this.#isGiving) return
    this.#isGiving = true
    while (this.#held.length) {
      if (this.network.isSlow) await this.network.pause()
      this.#held.shift()?.()
    }
    this.#isGiving = false
  }
}
