// The list of topics: found by pattern, a page at a time, with the newest message and the rate of each.

import { ask, askJson, words } from './api.js'
import { $, make, payload, rate, refill, short, size, span, timeOf, whileSeen, write } from './dom.js'
import { isPattern } from './history.js'

const ROWS = 20
/** How many topics one search looks at. */
const MOST_SEARCHED = 20_000
/** The rate of a topic is that of its newest messages. */
const SAMPLE = 5
const QUIET_MS = 10_000

/** A test of names, and the beginning that all of them have. A text without a wildcard is a beginning. */
export function search(text) {
  if (!isPattern(text)) return { begin: text, fits: name => name.startsWith(text) }
  const parts = text.split('.'), plain = parts.slice(0, parts.findIndex(part => part[0] === '*'))
  const begin = plain.map(it => it + '.').join('')
  const fits = name => {
    const segments = name.split('.')
    return parts.every((part, at) => segments[at] === part || part[0] === '*' && at < segments.length)
      && (parts.at(-1) === '**' || parts.length === segments.length)
  }
  return { begin, fits }
}

export class Topics {
  /** The names after which the pages before this one began. */
  #pages = ['']
  #newest = new Map()
  /** Topics that the token may not read. */
  #closed = new Set()

  constructor(section, listen) {
    this.section = section
    this.listen = listen
    this.body = $('tbody', section)
    this.form = $('form', section)
    this.field = $('input', section)
    this.form.addEventListener('submit', event => event.preventDefault())
    for (const type of ['input', 'change']) this.form.addEventListener(type, () => this.#turn(['']))
    $('[name=next]', section).addEventListener('click', () => this.#turn([...this.#pages, this.last]))
    $('[name=back]', section).addEventListener('click', () => this.#turn(this.#pages.slice(0, -1)))
    this.refresh = whileSeen(section, 3000, () => this.#refresh())
  }

  /** Another token may see other topics. */
  reset() {
    this.#newest.clear()
    this.#closed.clear()
    this.#turn([''])
  }

  #turn(pages) {
    this.#pages = pages
    this.refresh()
  }

  async #refresh() {
    const asked = this.field.value.trim(), isNewest = this.form.elements.namedItem('newest').checked
    try {
      const { found, isMore, looked } = await this.#find(search(asked), this.#pages.at(-1), isNewest)
      this.last = found.at(-1)?.topic
      $('[name=next]', this.section).disabled = isNewest || !isMore
      $('[name=back]', this.section).disabled = isNewest || this.#pages.length < 2
      await this.#sample(found)
      this.#show(found)
      this.#say(!found.length ? asked ? 'No topic fits.' : 'There is no topic yet. The first message makes one.'
        : isNewest ? `The newest of ${short(looked)} topics.`
        : `Page ${this.#pages.length}, by name.`)
    } catch (problem) {
      this.body.replaceChildren()
      this.#say(problem.code ? words(problem, 'list topics', 'admin') : String(problem))
    }
  }

  #say(text) { write($('.say', this.section), text) }

  /** Looks from this name on, as long as names can fit. */
  async #find({ begin, fits }, from, isNewest) {
    const found = [], limit = isNewest || isPattern(this.field.value) ? 1000 : ROWS + 1
    // A name that is just before the beginning, so that the beginning itself is found.
    let after = from || begin.slice(0, -1), looked = 0, next = ''
    while (next !== null && looked < MOST_SEARCHED && (isNewest || found.length <= ROWS)) {
      const page = await ask(`topics?limit=${limit}&after=${encodeURIComponent(after)}`)
      looked += page.topics.length
      found.push(...page.topics.filter(it => fits(it.topic)))
      after = next = page.next ?? null
      if (begin && next > begin && !next.startsWith(begin)) break
    }
    if (isNewest) found.sort((a, b) => Number(b.newest) - Number(a.newest))
    return { found: found.slice(0, ROWS), isMore: found.length > ROWS, looked }
  }

  /** Asks for the newest messages of those topics in the table that have new ones. */
  async #sample(found) {
    const topics = found.filter(it => this.#newest.get(it.topic)?.id !== it.newest && it.messages)
      .map(it => it.topic).filter(topic => !this.#closed.has(topic))
    if (!topics.length) return
    try {
      const { messages } = await askJson('events', { topics, last: SAMPLE, wait: 0, limit: ROWS * SAMPLE })
      const byTopic = Map.groupBy(messages, it => it.topic)
      for (const [topic, some] of byTopic) {
        const last = some.at(-1), ms = timeOf(last.id) - timeOf(some[0].id)
        const rate = ms > 0 ? (some.length - 1) * 1000 / ms : 0
        this.#newest.set(topic, { id: last.id, text: payload(last).slice(0, 200), rate })
      }
      if (this.#newest.size > 1000) this.#newest.clear()
    } catch (problem) {
      // One topic that is not granted refuses all of them. The next time asks without it.
      if (problem.topic) this.#closed.add(problem.topic)
    }
  }

  #show(found) {
    const newestMs = Math.max(...found.map(it => timeOf(it.newest)))
    refill(this.body, found.map(({ topic, newest, messages, bytes, subscribers }) => {
      const sample = this.#newest.get(topic), age = Math.max(newestMs, Date.now()) - timeOf(newest)
      const text = sample?.id === newest ? sample.text : this.#closed.has(topic) ? 'not for this token' : ''
      return make('tr', { 'data-key': topic },
        make('th', { scope: 'row' },
          make('button', { class: 'link', type: 'button', click: () => this.listen(topic) }, topic)),
        make('td', { class: 'wide data' }, text),
        make('td', {}, messages ? `${span(age)} ago` : 'none retained'),
        make('td', {}, sample && age < QUIET_MS ? `${rate(sample.rate)}/s` : '0/s'),
        make('td', {}, short(messages)), make('td', {}, size(bytes)), make('td', {}, short(subscribers)))
    }))
  }
}
