// The members of the topic that is read: the subjects that are present there.

import { ask, topicPath, words } from './api.js'
import { $, make, refill, short, span, timeOf, whileSeen, write } from './dom.js'
import { isPattern } from './history.js'

const ROWS = 20

export class Presence {
  #pages = ['']
  #isMissing = false

  constructor(section) {
    this.section = section
    this.body = $('tbody', section)
    $('[name=next]', section).addEventListener('click', () => this.#turn([...this.#pages, this.next]))
    $('[name=back]', section).addEventListener('click', () => this.#turn(this.#pages.slice(0, -1)))
    this.refresh = whileSeen(section, 3000, () => this.#refresh())
  }

  listens(topic) {
    this.topic = topic
    write($('h2', this.section), `Presence in ${topic}`)
    this.#turn([''])
  }

  #turn(pages) {
    this.#pages = pages
    this.refresh()
  }

  async #refresh() {
    const { topic } = this
    if (!topic || this.#isMissing) return
    if (isPattern(topic)) return this.#show([], 'Presence belongs to one topic. Read a topic without a wildcard.')
    const query = new URLSearchParams({ limit: ROWS, ...this.#pages.at(-1) && { after: this.#pages.at(-1) } })
    try {
      const { members, count, next } = await ask(`${topicPath(topic)}/presence?${query}`)
      if (topic !== this.topic) return
      this.next = next
      this.#show(members, count ? `${short(count)} present.` : 'No subject is present.')
    } catch (problem) {
      // The refusal of the topic of before says nothing of this one.
      if (topic !== this.topic) return
      this.next = null
      this.#isMissing = problem.status === 404
      this.#show([], this.#isMissing ? 'This server has no presence.'
        : words(problem, `see who is present in ${topic}`, 'presence for it'))
    }
  }

  #show(members, text) {
    $('[name=next]', this.section).disabled = !this.next
    $('[name=back]', this.section).disabled = this.#pages.length < 2
    write($('.say', this.section), text)
    refill(this.body, members.map(({ sub, connections, since, info }) => make('tr', {},
      make('th', { scope: 'row' }, sub), make('td', {}, short(connections)),
      make('td', {}, span(Date.now() - timeOf(since))),
      make('td', { class: 'wide data' }, info === undefined || info === null ? '' : JSON.stringify(info)))))
  }
}
