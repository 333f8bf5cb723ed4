// One of the four lanes: a connection that reads the topic, what it has received, and the faults that one can press.

import { connect } from '../rejoin.js'
import { token, words } from './api.js'
import { $, clock, make, payload, short, timeOf, write } from './dom.js'
import { Account } from './ledger.js'
import { Network } from './network.js'
import { EventStream } from './sse.js'

export const TRANSPORTS = { ws: 'WebSocket', sse: 'Server-Sent Events', ndjson: 'NDJSON stream', poll: 'Long-polling' }
export const SHORT_NAMES = { ws: 'WebSocket', sse: 'SSE', ndjson: 'NDJSON', poll: 'Polling' }

/** How many messages a lane shows. */
const MOST_SHOWN = 100

const REASONS = {
  retention: 'The server no longer retains them.',
  deleted: 'They were deleted.',
  restarted: 'The server was restarted.',
  failover: 'The store of the server has failed over.',
  unknown_cursor: 'The server does not know the cursor, so everything is read again.',
}

export class Lane {
  /** The messages for the time line: `ms`, and if the message came after a fault. */
  dots = []
  /** The times without a connection: `from`, and `to` once it is back. */
  cuts = []
  account = new Account(Infinity)
  state = 'closed'
  #arrived = []
  #isResting = false

  /** `page` has the ledger and the skew of the clocks, and hears of each connection that has opened. */
  constructor(number, transport, page) {
    this.number = number
    this.transport = transport
    this.page = page
    this.network = new Network('lane-' + number)
    this.box = document.importNode($('#lane').content, true).firstElementChild
    const title = $('h3', this.box)
    title.id = `lane-${number}`
    this.box.setAttribute('aria-labelledby', title.id)
    this.list = $('ol', this.box)
    this.#buttons()
    this.#name()
  }

  get cursor() { return this.client?.cursor ?? this.from }

  /** Shows what was there before, and reads the topic from this cursor on. */
  listen(topic, past, cursor) {
    this.#leave()
    this.topic = topic
    this.from = cursor
    this.account = new Account(Number(cursor))
    this.dots = past.map(({ id }) => ({ ms: timeOf(id) }))
    this.cuts = []
    this.#arrived = []
    this.list.replaceChildren(...past.map(message => this.#item(message)).reverse())
    this.#say('closed')
    this.#start()
  }

  /** The topic cannot be read. */
  refuse(text) {
    this.#leave()
    this.topic = undefined
    this.list.replaceChildren(make('li', { class: 'note' }, text))
    this.#say('refused')
  }

  /** Adds a page of the history below the others. */
  older(messages, note) {
    this.list.append(...messages.map(message => this.#item(message)).reverse())
    if (note) this.list.append(make('li', { class: 'note' }, note))
  }

  // The faults.

  cut() { this.network.cut() }

  offline(isOffline = !this.network.isOffline) {
    this.network.offline(isOffline)
    this.#name()
  }

  slow(isSlow = !this.network.isSlow) {
    this.network.slow(isSlow)
    this.#name()
  }

  /** Goes on over another transport, from the same cursor. */
  move(transport) {
    if (transport === this.transport) return
    this.#leave()
    this.transport = transport
    this.#name()
    if (this.topic) this.#note(`From here over ${TRANSPORTS[transport]}, from the same cursor.`)
    this.#start()
  }

  /** Leaves the server alone while the tab is hidden. */
  rest(isResting) {
    if (isResting === this.#isResting) return
    this.#isResting = isResting
    if (isResting) this.#leave()
    // A lane that was refused waits for Resume.
    else if (this.state !== 'refused') this.#start()
  }

  // The connection.

  #start() {
    if (this.#isResting || !this.topic) return
    const { network, topic, from: after, transport } = this
    let reading
    if (transport === 'sse') reading = this.client = new EventStream(network, topic, after)
    else {
      const given = token() ? { token: () => token() } : {}
      this.client = connect(network.url, { after, transports: [transport], WebSocket: network.WebSocket, ...given })
      reading = this.client.subscribe(topic)
    }
    const { client } = this, isCurrent = () => this.client === client
    client.on('state', state => isCurrent() && this.#say(state))
    client.on('open', frame => isCurrent() && this.#open(frame))
    reading.on('message', message => isCurrent() && this.#message(message))
    reading.on('gap', gap => isCurrent() && this.#gap(gap))
    for (const it of new Set([client, reading])) it.on('refused', problem => isCurrent() && this.#refused(problem))
    this.#say(client.state)
  }

  #leave() {
    const client = this.client
    this.from = this.cursor
    this.client = undefined
    client?.close()
    if (client) this.#say('closed')
  }

  #open(frame) {
    this.connection = frame.connection
    this.resumedAt = Date.now()
    this.page.opened(this, frame)
  }

  #say(state) {
    const { cuts } = this, isOpen = state === 'live', last = cuts.at(-1)
    if (this.state === 'live' && !isOpen) cuts.push({ from: Date.now() })
    if (isOpen && last && !last.to) last.to = Date.now()
    if (cuts.length > 100) cuts.shift()
    this.state = state
    this.box.dataset.state = state
    write($('.state', this.box), { waiting: 'away', closed: 'paused' }[state] ?? state)
    write($('[name=cut]', this.box), state === 'refused' && this.topic ? 'Resume' : 'Cut')
  }

  #message(message) {
    const { id, ephemeral } = message
    const isLate = this.cuts.length && timeOf(id) < this.resumedAt - this.page.skewMs
    this.dots.push({ ms: id ? timeOf(id) : undefined, at: Date.now(), isLate, ephemeral })
    if (this.dots.length > 4000) this.dots.splice(0, 1000)
    if (id) {
      this.page.ledger.note(Number(id))
      this.account.take(Number(id))
    } else this.account.received++
    this.#arrived.push(message)
    if (this.#arrived.length > MOST_SHOWN) this.#arrived.shift()
  }

  #gap(gap) {
    this.account.gap(gap)
    this.#arrived.push({ note: `Gap: messages after ${gap.after} are gone. ${REASONS[gap.reason] ?? gap.reason} `
      + 'An application loads its state again now.', kind: 'gap' })
  }

  #refused(problem) {
    // A client whose only topic is refused is live, and reads nothing.
    this.#leave()
    this.#say('refused')
    const text = problem.code === 'disconnected'
      ? 'The server has ended this connection on request. Press Resume to come back.'
      : problem.code === 'conflict' ? 'The topic was taken from this connection on request. Press Resume to read it again.'
      : words(problem, `read ${this.topic}`, 'subscribe for it')
    this.#note(text)
  }

  #note(text) { this.#arrived.push({ note: text, kind: 'note' }) }

  // The view.

  /** Shows what has arrived since the last time, and the numbers. */
  show() {
    const arrived = this.#arrived.splice(0)
    if (arrived.length) {
      this.list.prepend(...arrived.map(it => this.#item(it)).reverse())
      // Pages of the history may be longer than this, and go when new messages come.
      while (this.list.children.length > MOST_SHOWN) this.list.lastChild.remove()
    }
    const cursor = this.cursor, { missing, behind } = this.page.ledger.compare(this.account, Number(cursor))
    this.missing = missing
    this.behind = behind
    const { account } = this
    write($('.cursor', this.box), cursor ?? 'none yet')
    write($('.received', this.box), short(account.received))
    write($('.behind', this.box), short(behind))
    $('.gaps', this.box).hidden = !account.gaps.length
    write($('.gaps', this.box), account.gaps.length === 1 ? '1 gap' : `${account.gaps.length} gaps`)
    write($('.missing', this.box), String(missing))
    $('.missing', this.box).classList.toggle('bad', missing > 0)
  }

  #item(message) {
    if (message.note) return make('li', { class: message.kind }, message.note)
    const { id, event, topic, by } = message
    const head = make('span', { class: 'head' }, make('span', { class: 'id' }, id ?? 'ephemeral'))
    if (event) head.append(make('b', {}, event))
    if (topic !== this.topic) head.append(make('span', {}, topic))
    if (by) head.append(make('span', {}, `by ${by}`))
    if (id) head.append(make('time', { datetime: new Date(timeOf(id)).toISOString() }, clock(timeOf(id))))
    const data = make('span', { class: 'data' }, payload(message).slice(0, 2000))
    return make('li', { class: 'message', 'data-id': id }, head, data)
  }

  #buttons() {
    for (const [name, press] of Object.entries({
      cut: () => this.state === 'refused' ? this.#again() : this.cut(),
      offline: () => this.offline(),
      slow: () => this.slow(),
    })) $(`[name=${name}]`, this.box).addEventListener('click', press)
    const choice = $('select', this.box)
    choice.append(...Object.entries(SHORT_NAMES).map(([value, text]) => make('option', { value }, text)))
    choice.addEventListener('change', () => this.move(choice.value))
  }

  #again() {
    this.#leave()
    this.#start()
  }

  #name() {
    const { isOffline, isSlow } = this.network
    write($('h3', this.box), TRANSPORTS[this.transport])
    $('select', this.box).value = this.transport
    for (const [name, isOn] of [['offline', isOffline], ['slow', isSlow]]) {
      $(`[name=${name}]`, this.box).setAttribute('aria-pressed', isOn)
    }
    this.box.dataset.fault = isOffline ? 'offline' : isSlow ? 'slow' : ''
  }
}
