// The form that publishes, and a steady stream of messages for a demonstration.

import { ask, topicPath, words } from './api.js'
import { $, write } from './dom.js'
import { isPattern } from './history.js'

const STREAM_MS = 250

function typeOf(text) {
  try {
    // A number or a word is more often a text than JSON.
    return typeof (JSON.parse(text) ?? '') === 'object' ? 'application/json' : 'text/plain'
  } catch {
    return 'text/plain'
  }
}

export class Publisher {
  #timer
  #count = 0

  constructor(form) {
    this.form = form
    this.fields = form.elements
    this.stream = this.fields.namedItem('stream')
    form.addEventListener('submit', event => {
      event.preventDefault()
      this.#submit()
    })
    this.stream.addEventListener('click', () => this.#timer ? this.#stop('') : this.#start())
    const data = this.fields.namedItem('data')
    // Enter publishes, as in every other field; Shift and Enter begin a new line.
    data.addEventListener('keydown', event => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
      event.preventDefault()
      form.requestSubmit()
    })
  }

  /** The topic that is read is the one to publish to, if it is one. */
  listens(topic) {
    if (!isPattern(topic)) this.fields.namedItem('topic').value = topic
  }

  async #submit() {
    const value = name => this.fields.namedItem(name).value
    const isEphemeral = this.fields.namedItem('ephemeral').checked
    const options = { event: value('event'), key: value('key'), isEphemeral }
    const answer = await this.#publish(value('data'), value('type') || typeOf(value('data')), options)
    if (answer) this.#tell(answer.id ? `Published as ${answer.id}` : 'Published to all who are there now')
  }

  async #publish(body, type, { event, key, isEphemeral } = {}) {
    const topic = this.fields.namedItem('topic').value
    const query = new URLSearchParams({ ...event && { event }, ...isEphemeral && { ephemeral: '1' } })
    try {
      return await ask(`${topicPath(topic)}?${query}`, {
        method: 'POST', body, headers: { 'Content-Type': type, ...key && { 'Idempotency-Key': key } },
      })
    } catch (problem) {
      this.#stop(words(problem, `publish to ${topic}`, 'publish for it'), true)
    }
  }

  #start() {
    this.#tell('')
    this.stream.setAttribute('aria-pressed', true)
    this.#timer = setInterval(() => {
      const price = (100 + 8 * Math.sin(this.#count / 9) + Math.random()).toFixed(2)
      this.#publish(JSON.stringify({ n: ++this.#count, price: Number(price) }), 'application/json', { event: 'tick' })
    }, STREAM_MS)
  }

  #stop(text, isBad) {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.stream.setAttribute('aria-pressed', false)
    this.#tell(text, isBad)
  }

  #tell(text, isBad = false) {
    const outcome = $('output', this.form)
    outcome.classList.toggle('bad', isBad)
    write(outcome, text)
  }
}
