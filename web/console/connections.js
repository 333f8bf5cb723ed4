// The connections of all replicas, and what one may do to them: end one, add a topic to it, remove one.

import { ask, words } from './api.js'
import { $, make, refill, span, whileSeen, write } from './dom.js'

const ROWS = 20

export class Connections {
  #pages = ['']

  /** `names` says which connections are the lanes of this page. */
  constructor(section, dialog, names) {
    this.section = section
    this.dialog = dialog
    this.names = names
    this.body = $('tbody', section)
    this.form = $('form', section)
    this.form.addEventListener('submit', event => event.preventDefault())
    this.form.addEventListener('change', () => this.#turn(['']))
    $('[name=next]', section).addEventListener('click', () => this.#turn([...this.#pages, this.next]))
    $('[name=back]', section).addEventListener('click', () => this.#turn(this.#pages.slice(0, -1)))
    this.refresh = whileSeen(section, 3000, () => this.#refresh())
    $('form', dialog).addEventListener('submit', event => this.#do(event))
  }

  reset() { this.#turn(['']) }

  #turn(pages) {
    this.#pages = pages
    this.refresh()
  }

  async #refresh() {
    const query = new URLSearchParams({ limit: ROWS, after: this.#pages.at(-1) })
    for (const name of ['sub', 'topic']) {
      const value = this.form.elements.namedItem(name).value.trim()
      if (value) query.set(name, value)
    }
    if (!this.#pages.at(-1)) query.delete('after')
    try {
      const { connections, next, missing } = await ask('connections?' + query)
      this.next = next
      $('[name=next]', this.section).disabled = !next
      $('[name=back]', this.section).disabled = this.#pages.length < 2
      refill(this.body, connections.map(it => this.#row(it)))
      this.#say(missing?.length ? `Replicas that do not answer, whose connections are missing: ${missing.join(', ')}.`
        : connections.length ? `Page ${this.#pages.length}.` : 'No connection fits.')
    } catch (problem) {
      this.body.replaceChildren()
      this.#say(problem.code ? words(problem, 'see connections', 'admin') : String(problem))
    }
  }

  #say(text) { write($('.say', this.section), text) }

  #row(it) {
    const { connection, sub, transport, replica, since, topics, topic_count, address, behind } = it
    const own = this.names(connection)
    return make('tr', { 'data-key': connection },
      make('th', { scope: 'row' },
        make('button', { class: 'link', type: 'button', click: () => this.#open(it) }, connection.slice(-8)),
        ...own ? [make('span', { class: 'chip' }, own)] : []),
      make('td', {}, sub ?? '–'), make('td', {}, transport), make('td', {}, replica.slice(0, 8)),
      make('td', { class: 'wide data' },
        topics.slice(0, 3).join(' ') + (topic_count > 3 ? ` and ${topic_count - 3} more` : '')),
      make('td', { class: behind ? 'late' : undefined }, behind ? span(behind) : 'caught up'),
      make('td', {}, span(Date.now() - Date.parse(since))), make('td', {}, address ?? '–'))
  }

  #open(it) {
    this.shown = it
    write($('h2', this.dialog), `Connection ${it.connection}`)
    const names = it.topics.join(' ') || 'nothing'
    write($('.about', this.dialog), `${it.sub ?? 'No subject'}, ${it.transport}, reads ${names}`
      + (it.topic_count > it.topics.length ? ` and ${it.topic_count - it.topics.length} more.` : '.'))
    this.#tell('')
    this.dialog.showModal()
  }

  #tell(text, isBad = false) {
    const outcome = $('output', this.dialog)
    outcome.classList.toggle('bad', isBad)
    write(outcome, text)
  }

  /** Each button of the dialog names a request. */
  async #do(event) {
    const deed = event.submitter.value
    if (deed === 'close') return
    event.preventDefault()
    const { connection } = this.shown, topic = $('input', this.dialog).value.trim()
    if (deed !== 'end' && !topic) return this.#tell('Which topic or pattern? Write it into the field.', true)
    const path = `connections/${connection}` + (deed === 'end' ? '' : `/topics/${encodeURIComponent(topic)}`)
    try {
      await ask(path, { method: deed === 'add' ? 'PUT' : 'DELETE' })
      const [add, remove] = [`It reads ${topic} now.`, `It no longer reads ${topic}.`]
      const done = { end: 'The connection has ended.', add, remove }
      this.#tell(done[deed])
      this.refresh()
    } catch (problem) {
      this.#tell(problem.code === 'not_found' ? 'This connection has ended already.'
        : words(problem, 'change connections', deed === 'end' ? 'admin' : `admin, or manage for ${topic}`), true)
    }
  }
}
