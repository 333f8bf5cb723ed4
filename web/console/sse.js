// Server-Sent Events, which the client of this page does not speak: the stream as an `EventSource` reads it.
//
// An `EventSource` can send no token in a header, and no page can cut its connection. So this reads with `fetch`, and
// does what an `EventSource` does: it comes back after `retry:` with `Last-Event-ID`. It is called as the client is.

import { bearer } from './api.js'

/** Answers of the server that do not change by themselves. An `EventSource` stops there too. */
const isFinal = status => status >= 400 && status < 500 && status !== 429
/** A silence of one and a half heartbeats ends the connection. */
const FIRST_SILENCE_MS = 10_000

export class EventStream {
  state = 'connecting'
  #handlers = []
  #closing = new AbortController()
  #retryMs = 1000
  #heartbeatMs = 0
  #wake = () => {}

  constructor(network, topic, after) {
    this.network = network
    this.topic = topic
    this.cursor = after
    addEventListener('pageshow', () => this.#wake(), { signal: this.#closing.signal })
    this.#run()
  }

  on(type, handler) { this.#handlers.push({ type, handler }) }

  close() {
    this.#closing.abort()
    this.#wake()
  }

  #emit(type, event) {
    for (const one of this.#handlers) if (one.type === type) one.handler(event)
  }

  #say(state) {
    if (this.state !== state) this.#emit('state', this.state = state)
  }

  async #run() {
    while (!this.#closing.signal.aborted) {
      this.#say('connecting')
      try {
        await this.#read()
      } catch (why) {
        if (this.#closing.signal.aborted) break
        if (why.isFinal) {
          this.#say('refused')
          return this.#emit('refused', why)
        }
      }
      if (this.#closing.signal.aborted) break
      this.#say('waiting')
      await new Promise(done => {
        this.#wake = done
        setTimeout(done, this.#retryMs)
      })
    }
    this.#say('closed')
  }

  /** Reads one connection to its end. */
  async #read() {
    const silence = new AbortController()
    const headers = { Accept: 'text/event-stream', 'Last-Event-ID': this.cursor, ...bearer() }
    const url = `${this.network.url}/events?topic=${encodeURIComponent(this.topic)}`
    const signal = AbortSignal.any([silence.signal, this.#closing.signal])
    let timer = setTimeout(() => silence.abort(), FIRST_SILENCE_MS)
    try {
      const answer = await fetch(url, { headers, signal })
      if (!answer.ok) throw { ...await answer.json().catch(() => ({})), isFinal: isFinal(answer.status) }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
      for (let rest = ''; ;) {
        const { value, done } = await reader.read()
        if (done) return
        const blocks = (rest + value).split('\n\n')
        rest = blocks.pop()
        for (const block of blocks) this.#take(block)
        clearTimeout(timer)
        timer = setTimeout(() => silence.abort(), this.#heartbeatMs * 1.5 || FIRST_SILENCE_MS)
      }
    } finally {
      clearTimeout(timer)
    }
  }

  /** Takes one event: lines of `name: value`. The data is an object of one line, as in every envelope. */
  #take(block) {
    const fields = Object.fromEntries(block.split('\n').map(line => line.split(/: ?(.*)/, 2)))
    if (fields.retry) this.#retryMs = Number(fields.retry)
    if (!fields.data) return
    const frame = JSON.parse(fields.data)
    if (frame.type === 'open') {
      this.#heartbeatMs = frame.heartbeat_ms
      this.#say('live')
    }
    this.#emit(frame.type, frame)
    if (frame.type === 'closing' && /^(forbidden|token_expired|disconnected)/.test(frame.code)) {
      throw { ...frame, isFinal: true }
    }
    if (frame.type === 'unsubscribed' && frame.topic === this.topic) throw { code: 'conflict', isFinal: true }
    this.cursor = fields.id || this.cursor
  }
}
