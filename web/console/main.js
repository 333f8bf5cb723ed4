// The console of a server: four lanes that read one topic over four transports, and what the server tells of itself.

import { ask, granted, isToken, keep, takeHash, token, topicKept, words } from './api.js'
import { Connections } from './connections.js'
import { $, make, write } from './dom.js'
import { Past } from './history.js'
import { Lane, TRANSPORTS } from './lane.js'
import { Ledger } from './ledger.js'
import { Numbers } from './numbers.js'
import { Presence } from './presence.js'
import { Publisher } from './publish.js'
import { Timeline } from './timeline.js'
import { Topics } from './topics.js'

/** A hidden tab keeps its connections for this long. A browser has only six for all tabs. */
const HIDDEN_MS = 10_000
const SHOW_MS = 200
/** The header `Date` has whole seconds, so a smaller difference of the clocks cannot be known. */
const LEAST_SKEW_MS = 1500

takeHash()
// Another address in the same tab changes only the part after #, and then the browser loads nothing.
addEventListener('hashchange', () => /[#&](topic|token)=/.test(location.hash) && location.reload())

/** Shared by all lanes. */
const page = { ledger: new Ledger(), skewMs: 0, opened }
const lanes = Object.keys(TRANSPORTS).map((transport, at) => new Lane(at + 1, transport, page))
$('#lanes').append(...lanes.map(lane => lane.box))
new Timeline($('canvas'), page, lanes)

const publisher = new Publisher($('#publish'))
const presence = new Presence($('#presence'))
const topics = new Topics($('#topics'), name => go(name))
const numbers = new Numbers($('#numbers'))
const connections = new Connections($('#connections'), $('#connection'), id => {
  const lane = lanes.find(it => it.connection === id)
  return lane && TRANSPORTS[lane.transport] + ', this page'
})

const say = (text, isBad = false) => {
  const notice = $('#notice')
  notice.hidden = !text
  notice.classList.toggle('bad', isBad)
  write($('span', notice), text)
  $('#granted').replaceChildren()
}

// The topic.

let past
let turn = 0

/** Reads this topic from now on, in the address too. */
function go(topic) {
  const address = '?topic=' + encodeURIComponent(topic)
  if (location.search !== address) history.pushState(null, '', location.pathname + address)
  keep({ topic })
  listen(topic)
  scrollTo({ top: 0 })
}

/** Shows the history, and reads on from there over all transports. */
async function listen(topic) {
  const mine = ++turn
  $('#topic').value = topic
  document.title = `${topic} · Rejoin`
  publisher.listens(topic)
  presence.listens(topic)
  past = new Past(topic)
  $('#older').hidden = true
  try {
    const { messages, cursor, note } = await past.arrive()
    if (mine !== turn) return
    page.ledger = new Ledger()
    say('')
    for (const lane of lanes) {
      lane.listen(topic, messages, cursor)
      lane.older([], note)
    }
    $('#older').hidden = !past.before
  } catch (problem) {
    if (mine !== turn) return
    if (!problem.code) throw problem
    say(words(problem, `read ${topic}`, 'subscribe for it'), true)
    for (const lane of lanes) lane.refuse('Nothing is read.')
    if (problem.code === 'forbidden') suggest()
    // These pass by themselves.
    if (!problem.status || problem.status >= 500) setTimeout(() => mine === turn && listen(topic), 2000)
  }
}

/** The topics that the token may read, to choose one. */
function suggest() {
  const choices = granted().slice(0, 8)
  $('#granted').replaceChildren(...choices.length ? ['It may read '] : [],
    ...choices.map(name => make('button', { type: 'button', class: 'plain', click: () => go(name) }, name)))
}

function firstTopic() {
  const asked = new URLSearchParams(location.search).get('topic') ?? topicKept()
  if (asked) return asked
  const may = granted()
  return may.some(name => ['**', '*', 'demo'].includes(name)) ? 'demo' : may[0] ?? 'demo'
}

function opened(lane, { sub, expires_in_ms: life }) {
  const ends = life ? `until ${new Date(Date.now() + life).toLocaleTimeString('en-GB').slice(0, 5)}` : ''
  if (lane.transport !== 'poll') write($('#who'), [sub, ends].filter(Boolean).join(' '))
}

$('#listen').addEventListener('submit', event => {
  event.preventDefault()
  go($('#topic').value.trim())
})
addEventListener('popstate', () => {
  const topic = new URLSearchParams(location.search).get('topic')
  if (topic) listen(topic)
})

$('#older').addEventListener('click', async () => {
  const of = past
  try {
    const { messages, note } = await of.older()
    if (of !== past) return
    for (const lane of lanes) lane.older(messages, note)
    $('#older').hidden = !past.before
  } catch (problem) {
    say(words(problem, `read ${of.topic}`, 'subscribe for it'), true)
  }
})

// The token.

$('#credential').addEventListener('submit', event => {
  event.preventDefault()
  const given = $('#token').value.trim()
  if (given && !isToken(given)) return say('A token has no such character, so it is not used. Copy it again.', true)
  keep({ token: given, topic: undefined })
  write($('#who'), '')
  showToken()
  listen(firstTopic())
  for (const panel of [topics, connections, numbers]) panel.reset()
})

function showToken() {
  $('#token').value = token()
}

// The faults of all lanes.

$('#faults').addEventListener('click', ({ target }) => {
  const fault = target.closest('button')?.name, order = Object.keys(TRANSPORTS)
  const isOn = !lanes.every(({ network }) => fault === 'offline' ? network.isOffline : network.isSlow)
  for (const lane of lanes) {
    if (fault === 'cut') lane.cut()
    if (fault === 'offline') lane.offline(isOn)
    if (fault === 'slow') lane.slow(isOn)
    if (fault === 'turn') lane.move(order[(order.indexOf(lane.transport) + 1) % order.length])
  }
})

let hiding
addEventListener('visibilitychange', () => {
  clearTimeout(hiding)
  if (document.hidden) hiding = setTimeout(() => lanes.forEach(lane => lane.rest(true)), HIDDEN_MS)
  else lanes.forEach(lane => lane.rest(false))
})

/** The numbers of all lanes, and one sentence about them. */
function show() {
  for (const lane of lanes) lane.show()
  for (const [name, key] of [['offline', 'isOffline'], ['slow', 'isSlow']]) {
    $(`#faults [name=${name}]`).setAttribute('aria-pressed', lanes.every(lane => lane.network[key]))
  }
  const away = lanes.filter(lane => lane.state !== 'live').length
  const late = lanes.filter(lane => lane.behind).length
  const missing = lanes.reduce((total, lane) => total + lane.missing, 0)
  const gaps = lanes.reduce((total, lane) => total + lane.account.gaps.length, 0)
  const verdict = $('#verdict'), isRefused = lanes.every(lane => lane.state === 'refused')
  verdict.dataset.state = missing || isRefused ? 'bad' : away || late ? 'wait' : 'live'
  write(verdict, isRefused ? 'Nothing is read' : missing ? `${missing} messages are missing`
    : away ? `${away} of ${lanes.length} lanes are away, nothing is missing`
    : late ? `${late} of ${lanes.length} lanes are behind, nothing is missing`
    : gaps ? 'All lanes are caught up, and every gap was told' : 'All lanes are caught up, nothing is missing')
}
setInterval(show, SHOW_MS)

// The clocks, the version and the links.

async function compareClocks() {
  const before = Date.now(), answer = await ask('health/live', { as: 'answer' })
  const skew = (before + Date.now()) / 2 - (Date.parse(answer.headers.get('date')) + 500)
  if (Math.abs(skew) > LEAST_SKEW_MS) page.skewMs = skew
}
compareClocks().catch(() => {})

// A link sends no token, so the page shows the metrics itself.
$('#metrics-link').addEventListener('click', async event => {
  if (!token()) return
  event.preventDefault()
  try {
    write($('#metrics pre'), await ask('metrics', { as: 'text' }))
    $('#metrics').showModal()
  } catch (problem) {
    say(words(problem, 'see metrics', 'metrics'), true)
  }
})

const isToBeSeen = token() && !isToken(token())
if (isToBeSeen) keep({ token: '' })
showToken()
await listen(firstTopic())
if (isToBeSeen) say('The token in the address has a character that no token has, so it is not used.', true)
