// Pages in a real browser read on each transport while publishers run and faults happen. Run it by hand:
//
//     REJOIN=target/debug/rejoin node tests/browser/pages.mjs [--firefox] [--redis] [--short] [--seed N] [FAULT]...
//
// After each fault it checks every message of every page: each one once and in order, or inside a gap that was told
// before anything newer. Each fault proves that it has happened.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { BadProxy } from './bad-proxy.mjs'
import { SECRET, Server, mint, owned } from './server.mjs'
import { serveClient } from './chromium.mjs'

const { values: given, positionals: wished } = parseArgs({
  allowPositionals: true,
  options: { firefox: { type: 'boolean' }, redis: { type: 'boolean' }, short: { type: 'boolean' }, seed: { type: 'string' } },
})
const { Browser } = await import(given.firefox ? './firefox.mjs' : './chromium.mjs')
let seed = Number(given.seed ?? Date.now() % 1e6)
console.log(`${given.firefox ? 'Firefox' : 'Chromium'}, seed ${seed}`)

function random(most) {
  seed = Math.imul(seed, 1664525) + 1013904223 >>> 0
  return Math.floor(seed / 2 ** 32 * most)
}
const pause = ms => new Promise(done => setTimeout(done, ms))
/** A time of the long run, and the part of it that the short one takes. */
const time = ms => given.short ? ms / 5 : ms
async function until(condition, what, ms = 30_000) {
  for (const end = Date.now() + ms; Date.now() < end;) {
    if (await condition()) return
    await pause(50)
  }
  throw new Error('never: ' + what)
}

// The servers, and the publisher.

const folder = mkdtempSync(join(tmpdir(), 'rejoin-'))
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
const asked = {}
const origin = await serveClient(name => {
  asked[name] = (asked[name] ?? 0) + 1
  return mint(name.split('.')[0], 5, { subscribe: ['a', 'b.*', 'user.{sub}'] })
})
const flags = ['--jwt-secret', SECRET, '--heartbeat', '1s', '--retain-messages', '100000', '--retain-bytes', '64MiB', '--allowed-origin', origin.url.slice(0, -1)]
let redis
if (given.redis) {
  const probe = createServer().listen(0, '127.0.0.1')
  await pause(100)
  const { port } = probe.address()
  await new Promise(done => probe.close(done))
  redis = owned(spawn('redis-server', ['--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', folder], { stdio: 'ignore' }))
  await pause(500)
  flags.push('--log', `redis://127.0.0.1:${port}`)
} else flags.push('--state', join(folder, 'state'))
const servers = [await Server.start(flags)]
if (redis) servers.push(await Server.start(flags))
/** The server that the proxies and the publisher use now. */
let current = 0
const key = mint('backend', 86_400, { admin: true, publish: ['**'] })

/** Everything that was published and answered. */
const published = []
let isOver = false
async function publish() {
  const topics = ['a', 'b.1', 'b.2', 'user.u1', 'user.u2']
  for (let n = 1; !isOver; n++) {
    const topic = topics[random(topics.length)], server = servers[current]
    // A message without an answer may be stored or not. It is not sent again, and not expected.
    const data = topic + ' ' + n
    await fetch(`${server.url}/topics/${topic}`, { method: 'POST', signal: AbortSignal.timeout(3000),
      headers: { 'Content-Type': 'application/json', Authorization: 'Bearer ' + key }, body: JSON.stringify(data) })
      .then(async answer => answer.ok && published.push({ topic, data, id: Number((await answer.json()).id) }), () => {})
    await pause(random(given.short ? 150 : 40))
  }
}

async function restart({ signal = 'SIGTERM', isEmpty } = {}) {
  const { port } = servers[current]
  await servers[current].stop(signal)
  if (isEmpty) rmSync(join(folder, 'state'), { force: true })
  await pause(time(2500))
  servers[current] = await Server.start(flags, port)
}

// The pages.

const browser = await Browser.start()
/** Tabs with these options. Those of one name share a proxy. */
const KINDS = [
  ['ws', 'u1', { transports: ['ws'] }], ['ndjson', 'u1', { transports: ['ndjson'] }], ['poll', 'u1', { transports: ['poll'] }],
  ['fallback', 'u1', {}], ['shared', 'u1', { shared: 'u1' }], ['shared', 'u1', { shared: 'u1' }], ['shared', 'u2', { shared: 'u2' }],
]
const proxies = {}
const pages = []

async function open(name, sub, options, label) {
  const proxy = proxies[name] ??= await BadProxy.before(servers[current].port)
  const page = Object.assign(await browser.open(origin.url), { label, proxy, options, name, sub })
  await begin(page)
  pages.push(page)
  return page
}

/** A page that has just been loaded connects and reads. */
async function begin(page) {
  const { label, proxy, options, sub } = page
  const topics = ['a', 'b.*', 'user.' + sub]
  await page.until('window.ready')
  const code = `{ ...${JSON.stringify(options)}, token: () => fetch('/token?${label}').then(it => it.text()) }`
  await page.run(`begin('${proxy.url}', ${code}, ${JSON.stringify(topics)})`)
  // A second subscription of the same topic gets each message too.
  await page.run(`void listen({ on: rejoin.subscribe('a').on, topic: 'a again' })`)
  await page.run(`void rejoin.on('state', state => told.push({ type: 'state', state })), void (window.ticks = 0), void setInterval(() => ticks++, 100)`)
  for (const topic of topics) await page.until(`has('subscribed', '${topic}')`)
  await page.until("told.filter(it => it.type === 'subscribed').length === 4")
}

/** How often something was told to a page. */
const count = (page, type, more = 'true') => page.run(`told.filter(it => it.type === '${type}' && ${more}).length`)
const each = act => Promise.all(pages.map(act))
/** The tabs that share a connection with this one, and itself. A tab that follows stays live while the leader comes back. */
const group = ({ name, sub }) => pages.filter(it => it.name === name && it.sub === sub)
const states = async page => {
  const all = await Promise.all(group(page).map(it => count(it, 'state', "it.state !== 'live'")))
  return all.reduce((a, b) => a + b)
}

const matches = (name, topic) => name === topic || name === topic + ' again' || name === 'b.*' && topic.startsWith('b.')

/** Everything that a page was told is right. Returns the numbers of messages and gaps. */
async function check(page) {
  const told = await page.run("told.filter(it => ['message', 'gap', 'subscribed', 'refused', 'client refused'].includes(it.type)).map(({ type, topic, of, id, data, after, next, cursor, reason, code }) => ({ type, topic, of, id, data, after, next, cursor, reason, code }))")
  let gaps = 0
  const refused = told.find(it => it.type.endsWith('refused'))
  assert.ok(!refused, page.label + ' ' + JSON.stringify(refused))
  const lastEnd = Math.max(...told.filter(it => it.type === 'gap').map(it => Number(it.cursor))) + 1
  for (const name of ['a', 'a again', 'b.*', 'user.' + page.sub]) {
    const mine = told.filter(it => it.of === name)
    const from = Number(mine.find(it => it.type === 'subscribed').cursor)
    const times = new Map(), lost = []
    let newest = from
    for (const it of mine) {
      if (it.type === 'message') {
        times.set(it.data, (times.get(it.data) ?? 0) + 1)
        assert.ok(Number(it.id) >= newest, `${page.label} ${name}: ${it.id} after ${newest}`)
        newest = Number(it.id)
      } else if (it.type === 'gap') {
        gaps++
        // All but the last of several gaps have the cursor from before them, and may end where the last one ends.
        const end = it.next ? Number(it.next) : Number(it.cursor) > Number(it.after) ? Number(it.cursor) + 1 : lastEnd
        lost.push([Number(it.after) || 0, end, it.topic])
        assert.ok(!it.next || newest <= Number(it.next), `${page.label} ${name}: a gap up to ${it.next} after ${newest}`)
      }
    }
    for (const { topic, data, id } of published) {
      if (!matches(name, topic) || id <= from || id > settled) continue
      const isLost = lost.some(([after, end, of]) => matches(of, topic) && id > after && id < end)
      const got = times.get(data) ?? 0
      assert.ok(got === 1 || isLost && !got, `${page.label} ${name}: ${data} (${id}) came ${got} times; gaps ${JSON.stringify(lost)}`)
    }
    for (const [data, got] of times) assert.equal(got, 1, `${page.label}: ${data} came ${got} times`)
  }
  return { messages: told.filter(it => it.type === 'message').length, gaps }
}

/** Waits until each page has a message that was published now. */
async function settle() {
  const marks = {}
  for (const topic of ['a', 'b.1', 'user.u1', 'user.u2']) {
    await until(async () => {
      marks[topic] = published.filter(it => it.topic === topic).at(-1)
      return marks[topic]?.id > since
    }, topic + ' is published')
  }
  await each(async page => {
    for (const [topic, of] of [['a', 'a'], ['a', 'a again'], ['b.1', 'b.*'], ['user.' + page.sub, 'user.' + page.sub]]) {
      await page.until(`told.filter(it => it.of === '${of}' && it.id >= '${marks[topic].id}').length`, 40_000)
        .catch(async error => { throw new Error(`${page.label}: ${error.message}, ${await page.run('rejoin.state')}, published ${published.filter(it => it.topic === topic).at(-1).id}`) })
    }
  })
  settled = Math.min(...Object.values(marks).map(it => it.id))
}
let since = 0
/** Up to this id each page must have everything. */
let settled = 0

// The faults. Each one returns its proof, and throws if it has not happened.

/** What each page had before the fault, and that the count has grown in all of them. */
async function grown(counting, act, what, of = () => true) {
  const some = pages.filter(of), before = await Promise.all(some.map(counting))
  const result = await act()
  let now
  await until(async () => (now = await Promise.all(some.map(counting))).every((it, at) => it > before[at]),
    what + ': ' + some.map(it => it.label)).catch(error => { throw new Error(`${error.message}: ${before} and ${now}`) })
  return [what, now.map((it, at) => it - before[at]).join(' '), result].filter(it => it != null).join(' ')
}
const lost = (act, of) => grown(states, act, 'lost connections', of)

/** Lets all proxies do harm for a while. They must have done it, if that is the proof. */
async function harm(mode, ms, act = () => {}, isProof = true) {
  const all = Object.values(proxies)
  for (const proxy of all) Object.assign(proxy, { harmed: 0, mode, passed: {} })
  act()
  await pause(ms)
  for (const proxy of all) proxy.mode = ''
  assert.ok(all.every(it => it.harmed) || !isProof, `${mode}: ${all.map(it => it.harmed)}`)
  return `harmed ${all.map(it => it.harmed)}`
}

/** A fault of proxies under which a page with fallback must go on. After it, the page tries the better transport again. */
async function around(mode) {
  const some = pages.filter(it => it.name === 'fallback' || it.name === 'shared')
  for (const proxy of Object.values(proxies)) Object.assign(proxy, { harmed: 0, mode, passed: {} })
  for (const proxy of Object.values(proxies)) proxy.cut()
  for (const proxy of Object.values(proxies)) proxy.harmed = 0
  const before = await Promise.all(some.map(it => count(it, 'message')))
  await pause(given.short ? 0 : 5000)
  let now
  await until(async () => {
    now = await Promise.all(some.map(it => count(it, 'message')))
    return now.every((it, at) => it > before[at] + 5) && ['ws', 'fallback', 'shared'].every(it => proxies[it].harmed)
  }, `pages go on with a proxy that ${mode}`).catch(error => { throw new Error(`${error.message}: ${some.map((it, at) => [it.label, before[at], now[at], JSON.stringify(it.proxy.passed)])}`) })
  const { harmed, passed } = proxies.fallback
  for (const proxy of Object.values(proxies)) proxy.mode = ''
  proxies.fallback.passed = {}
  await each(page => page.run("void dispatchEvent(new Event('online'))"))
  await until(() => proxies.fallback.passed.Upgrade, 'a WebSocket again')
  return `harmed ${harmed}, passed ${JSON.stringify(passed)}`
}

async function frozen(some, ms, meanwhile) {
  const before = await Promise.all(some.map(it => it.run('ticks')))
  await Promise.all(some.map(it => it.freeze(true)))
  await Promise.all([pause(ms), meanwhile?.()])
  const now = await Promise.all(some.map(it => it.run('ticks')))
  await Promise.all(some.map(it => it.freeze(false)))
  const most = Math.max(...now.map((it, at) => it - before[at]))
  assert.ok(most < ms / 200, `a frozen page counted ${most}`)
  return `${some.length} frozen`
}

/** The tabs that share a connection, the leader first. */
async function shared() {
  const tabs = pages.filter(it => it.options.shared === 'u1')
  const locks = await tabs[0].run("navigator.locks.query().then(({ held }) => held.map(it => [it.name, it.clientId]))")
  // A page does not know its own id. Its locks have it.
  const ids = await Promise.all(tabs.map(it => it.run(`navigator.locks.request('mark', () => navigator.locks.query())
    .then(({ held }) => held.find(it => it.name === 'mark').clientId)`)))
  const [, leader] = locks.find(([name]) => name.endsWith(',u1'))
  const at = ids.indexOf(leader)
  assert.ok(at >= 0, 'a tab leads')
  return [tabs[at], tabs[1 - at]]
}

const opens = page => count(page, 'open')

/** Waits until the pages have renewed their tokens so often. A tab that follows another one needs none of its own. */
async function renewals(most, before = { ...asked }) {
  const renewed = page => group(page).reduce((sum, { label }) => sum + (asked[label] ?? 0) - (before[label] ?? 0), 0)
  await until(() => pages.every(it => renewed(it) >= most), 'renewals', 120_000)
  return 'renewed ' + pages.map(renewed)
}

const FAULTS = {
  tokens: () => renewals(given.short ? 2 : 10),
  offline: () => lost(async () => {
    await each(page => page.offline(true))
    assert.ok((await each(page => page.run('navigator.onLine'))).every(it => !it), 'offline')
    // The browser may have closed some connections before the proxy could. The page itself says that it has lost them.
    const harmed = await harm('away', time(10_000), () => Object.values(proxies).forEach(it => it.cut()), false)
    await each(page => page.offline(false))
    return harmed
  }),
  silent: () => lost(async () => {
    const all = Object.values(proxies)
    await until(() => all.every(it => it.streams.size || it === proxies.poll), 'streams that can become silent')
    for (const proxy of all) {
      proxy.harmed = 0
      proxy.silence(true)
    }
    await pause(given.short ? 2500 : 5000)
    for (const proxy of all) proxy.silence(false)
    assert.ok(all.every(it => it.harmed || it === proxies.poll))
    // A poll is silent by itself.
  }, it => it.name !== 'poll'),
  resets: () => lost(async () => {
    const all = Object.values(proxies)
    for (const proxy of all) proxy.harmed = 0
    for (let n = 0; n < (given.short ? 3 : 12) || n < 50 && !all.every(it => it.harmed); n++) {
      for (const proxy of all) proxy.cut('resetAndDestroy')
      await pause(random(1500))
    }
    assert.ok(all.every(it => it.harmed))
    return `resets ${all.map(it => it.harmed)}`
    // The browser itself repeats a poll that was reset.
  }, it => it.name !== 'poll'),
  cuts: () => lost(() => harm('cuts', given.short ? 3000 : 15_000, () => Object.values(proxies).forEach(it => it.cut())), it => it.name !== 'poll'),
  strips: () => around('strips'),
  posts: () => around('posts'),
  // The end of a token ends a stream too, and then such a proxy hands on all of it.
  buffers: () => around('buffers'),
  hidden: async () => {
    const other = await browser.open(origin.url + 'other')
    await other.show()
    const before = await each(it => count(it, 'message'))
    await pause(time(15_000))
    assert.ok((await each(it => it.run('document.hidden'))).every(it => it), 'hidden')
    const now = await each(it => count(it, 'message'))
    assert.ok(now.every((it, at) => it > before[at]), 'hidden pages go on')
    await other.close()
    for (const page of pages) await page.show()
    return 'all hidden'
  },
  kept: async () => {
    await each(page => page.run('void (window.mark = 1)'))
    await each(page => page.go(origin.url + 'other'))
    await pause(time(5000))
    await each(page => page.back())
    await each(page => page.until('window.ready && window.told'))
    const marks = await each(page => page.run('window.mark === 1 && shown.at(-1) === true'))
    assert.ok(marks.every(it => it), 'kept: ' + pages.map((it, at) => it.label + ' ' + marks[at]))
    return `kept ${pages.length}`
  },
  frozen: () => frozen(pages, time(15_000)),
  'leader frozen': async () => {
    const [leader, follower] = await shared()
    const before = await opens(follower)
    return frozen([leader], given.short ? 2000 : 15_000, () => until(async () => await opens(follower) > before, 'another tab leads'))
  },
  'leader closed': async () => {
    const [leader, follower] = await shared()
    const before = await opens(follower)
    // What it has got so far is right.
    await check(leader)
    await leader.close()
    pages.splice(pages.indexOf(leader), 1)
    await until(async () => await opens(follower) > before, 'another tab leads')
    await open('shared', 'u1', { shared: 'u1' }, 'u1.' + pages.length + random(1000))
    return `${before} and ${await opens(follower)} connections`
  },
}
if (given.firefox) {
  // It keeps hardly any page that has a connection.
  delete FAULTS.kept
  delete FAULTS.frozen
  delete FAULTS['leader frozen']
}
/** Those of the short run. */
const SHORT = ['offline', 'kept', 'leader closed', 'restarted with state', 'restarted without state']
/** Faults of the server alone. Only the last two may lose something. */
const LOSING = ['killed', 'restarted without state']
if (redis) Object.assign(FAULTS, {
  drained: () => lost(() => restart()),
  killed: () => lost(() => restart({ signal: 'SIGKILL' })),
  'another replica': () => lost(async () => {
    current = 1 - current
    for (const proxy of Object.values(proxies)) {
      proxy.port = servers[current].port
      proxy.cut()
    }
    return `from ${1 - current} to ${current}`
  }, it => it.name !== 'poll'),
})
else Object.assign(FAULTS, {
  'restarted with state': () => lost(() => restart()),
  'restarted without state': () => lost(() => restart({ isEmpty: true })),
  killed: () => lost(() => restart({ signal: 'SIGKILL' })),
})

for (const [at, [name, sub, options]] of KINDS.entries()) await open(name, sub, options, `${sub}.${name}.${at}`)
const publishing = publish()
// A server that is killed before its first answer would prove nothing.
await until(() => published.length, 'a message is published')
let gapsBefore = 0
for (const name of wished.length ? wished : Object.keys(FAULTS).filter(it => !given.short || SHORT.includes(it))) {
  const began = Date.now()
  const proof = await FAULTS[name]()
  since = published.at(-1).id
  await settle()
  const checked = await each(check)
  const gaps = checked.reduce((sum, it) => sum + it.gaps, 0)
  assert.ok(LOSING.includes(name) && !redis || gaps <= gapsBefore, `${name}: ${gaps} gaps`)
  console.log(`${name}: ${((Date.now() - began) / 1000).toFixed(1)} s, ${proof}; ${checked.reduce((sum, it) => sum + it.messages, 0)} messages so far, ${gaps} gaps`)
  gapsBefore = gaps
}
console.log(await renewals(3, {}))
isOver = true
await publishing
await browser.stop()
console.log(`${published.length} published, nothing lost and nothing twice`)
process.exit()
