// The browser client and the time: waits, ends of tokens, and messages that are sent again. The test moves the clock.
import assert from 'node:assert/strict'
import { afterEach, beforeEach, describe, mock, test } from 'node:test'
import { connect } from '../../web/rejoin.js'
import { data, has, record, scripted } from './scripted.mjs'

const PAGE = 'http://127.0.0.1:1/'
const ends = []
/** Lets everything run that waits for no timer. */
async function settled() {
  for (let turns = 0; turns < 30; turns++) await new Promise(setImmediate)
}
// The timers of `node:test` lose one when another that has run is cleared.
let now, timers
/** Moves the clock on. Timers that begin meanwhile run too. */
async function pass(ms) {
  for (const end = now + ms; ;) {
    const next = [...timers].filter(([, it]) => it.at <= end).sort(([, a], [, b]) => a.at - b.at)[0]
    if (!next) return now = end
    now = Math.max(now, next[1].at)
    timers.delete(next[0])
    next[1].run()
    await settled()
  }
}
beforeEach(() => {
  now = 1_800_000_000_000
  timers = new Map()
  let count = 0
  mock.method(Date, 'now', () => now)
  mock.method(globalThis, 'setTimeout', (run, ms = 0) => {
    timers.set(++count, { at: now + ms, run })
    return count
  })
  mock.method(globalThis, 'clearTimeout', id => { timers.delete(id) })
})
afterEach(() => {
  for (const end of ends.splice(0)) end()
  mock.restoreAll()
})

/** All waits are as long as they may be. */
const longest = () => mock.method(Math, 'random', () => 1)
/** A socket that does this once the client has it. */
function socketThat(acts) {
  const Silent = scripted()
  Silent.isAway = true
  return class Socket extends Silent {
    static times = []
    constructor(url) {
      super(url)
      const { length } = Socket.times
      Socket.times.push(now)
      queueMicrotask(() => acts(this, length + 1))
    }
  }
}
const opens = (socket, more) => socket.say({ type: 'open', connection: 'c', cursor: '1000', heartbeat_ms: 1e6, ...more })
const fails = socket => socket.onclose({ code: 1006, reason: '' })

function open(options) {
  const rejoin = connect(PAGE, options), refused = []
  rejoin.on('refused', error => refused.push(error.code))
  ends.push(() => rejoin.close())
  return { rejoin, refused }
}
const waits = times => times.slice(1).map((it, at) => it - times[at])

describe('the clock of the browser client', () => {
  test('the wait before an attempt doubles from half a second to 20 s', async () => {
    longest()
    const Socket = socketThat(fails)
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] })
    rejoin.subscribe('t')
    await pass(75_000)
    assert.deepEqual(waits(Socket.times).slice(0, 8), [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000])
  })

  test('a connection that lived for 10 s begins the waits anew, and a shorter one does not', async () => {
    longest()
    const lives = [0, 0, 0, 9000, 11_000, 0]
    const Socket = socketThat((socket, number) => {
      const life = lives[number - 1]
      if (!life) return fails(socket)
      opens(socket)
      setTimeout(() => fails(socket), life)
    })
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] })
    rejoin.subscribe('t')
    await pass(40_000)
    assert.deepEqual(waits(Socket.times).slice(0, 5), [500, 1000, 2000, 9000 + 4000, 11_000 + 500])
  })

  test('the wait is never shorter than the server asks for', async () => {
    mock.method(Math, 'random', () => 0)
    const Socket = socketThat((socket, number) => {
      if (number > 3) return
      opens(socket)
      socket.say({ type: 'closing', code: 'draining', retry_ms: 3000 })
      socket.onclose({ code: 4200, reason: 'draining' })
    })
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] })
    rejoin.subscribe('t')
    await pass(6500)
    assert.deepEqual(waits(Socket.times), [3000, 3000])
  })

  test('a tab that is shown tries at once, and a hidden one does not', async () => {
    longest()
    const page = new EventTarget()
    globalThis.addEventListener = page.addEventListener.bind(page)
    globalThis.document = { hidden: true }
    ends.push(() => { delete globalThis.addEventListener, delete globalThis.document })
    const Socket = socketThat(fails)
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] })
    rejoin.subscribe('t')
    await pass(8000)
    const { length } = Socket.times
    page.dispatchEvent(new Event('visibilitychange'))
    await settled()
    assert.equal(Socket.times.length, length)
    document.hidden = false
    page.dispatchEvent(new Event('visibilitychange'))
    await settled()
    assert.equal(Socket.times.length, length + 1)
  })

  test('a client that is disconnected on request does not come back', async () => {
    const Socket = socketThat(socket => opens(socket))
    const { rejoin, refused } = open({ WebSocket: Socket, transports: ['ws'] })
    const told = record(rejoin.subscribe('t'))
    await pass(1)
    assert.ok(has(told, 'subscribed'))
    Socket.all[0].say({ type: 'closing', code: 'disconnected' })
    Socket.all[0].onclose({ code: 4010, reason: 'disconnected' })
    await pass(60_000)
    assert.deepEqual([refused, rejoin.state, Socket.all.length], [['disconnected'], 'refused', 1])
  })

  // The whole client was refused when the operator changed the keys, or took the grant of one topic.
  test('a connection that is forbidden later asks for a new token, and then only what is refused ends', async () => {
    const refuses = socket => {
      socket.say({ type: 'error', code: 'forbidden', topic: 'other' })
      socket.onclose({ code: 4003, reason: 'forbidden' })
    }
    const Socket = socketThat((socket, number) => number === 2 ? refuses(socket) : opens(socket)), tokens = []
    const { rejoin, refused } = open({ WebSocket: Socket, transports: ['ws'], token: () => '' + tokens.push(1) })
    const told = record(rejoin.subscribe('t')), other = record(rejoin.subscribe('other'))
    await pass(1)
    assert.ok(has(told, 'subscribed') && has(other, 'subscribed'))
    Socket.all[0].say({ type: 'closing', code: 'forbidden', detail: 'subscribe is not granted' })
    Socket.all[0].onclose({ code: 4003, reason: 'forbidden' })
    await pass(60_000)
    assert.deepEqual([refused, rejoin.state, Socket.all.length, tokens.length], [[], 'live', 3, 2])
    assert.deepEqual([has(told, 'refused'), other.at(-1).code], [false, 'forbidden'])
  })

  // The timer of a worse transport ended a better one that the network had brought back before.
  test('a WebSocket that has come back stays', async () => {
    const page = new EventTarget()
    globalThis.addEventListener = page.addEventListener.bind(page)
    ends.push(() => { delete globalThis.addEventListener })
    const Socket = socketThat((socket, number) => number > 1 ? opens(socket) : fails(socket))
    const stream = new TextEncoder().encode('{"type":"open","connection":"c","cursor":"1000","heartbeat_ms":1000000}\n')
    mock.method(globalThis, 'fetch', async () => new Response(new ReadableStream({ start: it => it.enqueue(stream) })))
    const { rejoin } = open({ WebSocket: Socket })
    const told = record(rejoin.subscribe('t'))
    await pass(1)
    assert.ok(has(told, 'subscribed') && Socket.all.length === 1)
    page.dispatchEvent(new Event('online'))
    await settled()
    await pass(610_000)
    assert.deepEqual([rejoin.state, Socket.all.length], ['live', 2])
  })

  // Each refusal asked for all other subscriptions again.
  test('refusals of one moment ask for the other subscriptions of their topics once, 2 s later', async () => {
    const Socket = socketThat(socket => opens(socket))
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] })
    rejoin.subscribe('first')
    await pass(0)
    const topics = ['a', 'b', 'c'], [socket] = Socket.all
    for (const topic of topics) for (const since of ['soon', '1h', '2h']) rejoin.subscribe(topic, { since })
    for (const topic of topics) socket.say({ type: 'error', code: 'bad_request', topic, ref: 1 })
    const asked = () => socket.sent.map(({ topic, since }) => topic + ' ' + since)
    const before = ['a soon', 'b soon', 'c soon']
    await pass(1999)
    assert.deepEqual(asked(), before)
    await pass(1)
    assert.deepEqual(asked(), [...before, 'a 1h', 'b 1h', 'c 1h'])
  })

  // All tabs of a subject came in the same moment.
  test('a list that loses a topic of the page lets the next connection wait for half a second at most', async () => {
    longest()
    const Socket = socketThat((socket, number) => opens(socket, { mine: number === 1 ? ['a'] : [] }))
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'], mine: true })
    rejoin.subscribe('a')
    await pass(0)
    Socket.all[0].say({ type: 'unsubscribed', topic: 'a', cursor: '1000', by: 'server' })
    await pass(60_000)
    assert.deepEqual(waits(Socket.times), [500])
  })

  // The wait for its next heartbeat began after the close, and kept a program of Node alive.
  test('a client that a handler closes while it opens leaves no timer', async () => {
    const { rejoin } = open({ WebSocket: socketThat(socket => opens(socket)), transports: ['ws'] })
    rejoin.subscribe('t')
    rejoin.on('open', () => rejoin.close())
    await pass(0)
    await settled()
    assert.deepEqual([rejoin.state, [...timers.values()]], ['closed', []])
  })

  test('a token is renewed at 80 % of its life, and at most 60 s before its end', async () => {
    for (const [life, renewed] of [[5000, 4000], [600_000, 540_000]]) {
      const Socket = socketThat(socket => opens(socket, { expires_in_ms: life }))
      let asked = 0
      const { rejoin } = open({ WebSocket: Socket, transports: ['ws'], token: () => 'token' + ++asked })
      rejoin.subscribe('t')
      await pass(1)
      await pass(renewed - 100)
      assert.equal(asked, 1)
      await pass(100)
      assert.equal(asked, 2)
    }
  })

  // It waited for up to 8 s, and a token of 10 s has 2 s left then.
  test('a token that could not be got is asked for again within 2 s', async () => {
    longest()
    const Socket = socketThat(socket => opens(socket, { expires_in_ms: 10_000 }))
    const asked = []
    const token = async () => {
      asked.push(Date.now())
      if (asked.length > 1) throw new Error('the backend is away')
      return 'token'
    }
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'], token })
    rejoin.subscribe('t')
    await pass(1)
    await pass(14_000)
    assert.deepEqual(waits(asked), [8000, 2000, 2000, 2000])
  })

  // The answer to such a command was dropped.
  test('presence that is refused for a while is asked for again, and one that cannot be is told', async () => {
    const Socket = socketThat(socket => opens(socket))
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] })
    const room = record(rejoin.subscribe('room.1', { presence: true })), other = record(rejoin.subscribe('other'))
    await pass(1)
    const [{ sent }] = Socket.all, command = { type: 'subscribe', topic: 'room.1', presence: true, ref: 1 }
    assert.deepEqual(sent, [command])
    Socket.all[0].say({ type: 'error', code: 'overloaded', topic: 'room.1', ref: 1 })
    assert.equal(has(room, 'refused'), false)
    await pass(2000)
    assert.deepEqual(sent, [command, command])
    Socket.all[0].say({ type: 'error', code: 'bad_request', topic: 'room.1', ref: 1 })
    assert.deepEqual([room.at(-1).code, has(other, 'refused'), rejoin.state], ['bad_request', false, 'live'])
  })
})

describe('the transports', () => {
  /** Answers of a server over HTTP: a stream that opens, and polls. Nothing while `isAway`. */
  function http() {
    const asked = [], frame = '{"type":"open","connection":"c","cursor":"1000","heartbeat_ms":1000000}\n'
    mock.method(globalThis, 'fetch', async (url, { body, headers, signal }) => {
      const isStream = headers.Accept.includes('ndjson'), { wait } = JSON.parse(body)
      asked.push({ kind: isStream ? 'ndjson' : 'poll', at: Date.now(), wait })
      if (http.isAway) throw new TypeError('fetch failed')
      if (isStream) return new Response(new ReadableStream({ start: it => it.enqueue(new TextEncoder().encode(frame)) }))
      if (!wait) return Response.json({ cursor: '1000', messages: [] })
      return new Promise((_, failed) => { signal.onabort = () => failed(signal.reason) })
    })
    http.isAway = false
    return asked
  }
  const silent = socketThat.bind(undefined, () => {})

  test('one that brings no frame within 4 s gives way to the next, at once', async () => {
    const Socket = silent(), asked = http(), { rejoin } = open({ WebSocket: Socket }), began = now
    const told = record(rejoin.subscribe('t'))
    await pass(3999)
    assert.deepEqual([Socket.all.length, asked], [1, []])
    await pass(1)
    assert.deepEqual([asked.map(it => [it.kind, it.at - began]), has(told, 'subscribed'), Socket.all.length], [[['ndjson', 4000]], true, 1])
  })

  test('a better one is tried again after 10 minutes', async () => {
    const Socket = socketThat((socket, number) => number > 1 ? opens(socket) : fails(socket)), asked = http(), states = []
    const { rejoin } = open({ WebSocket: Socket })
    const told = record(rejoin.subscribe('t'))
    rejoin.on('state', state => states.push(state))
    await pass(599_000)
    assert.deepEqual([Socket.all.length, asked.length, has(told, 'subscribed')], [1, 1, true])
    await pass(1000)
    assert.deepEqual([Socket.all.length, asked.length, states], [2, 1, ['live']])
  })

  test('a server that is away changes nothing: the best one is tried first when it is back', async () => {
    longest()
    const Socket = socketThat((socket, number) => number > 3 ? opens(socket) : fails(socket)), asked = http()
    http.isAway = true
    const { rejoin } = open({ WebSocket: Socket })
    rejoin.subscribe('t')
    await pass(4000)
    http.isAway = false
    assert.deepEqual([Socket.all.length, asked.map(it => it.kind), rejoin.state], [4, Array(3).fill(['ndjson', 'poll']).flat(), 'live'])
  })

  test('what has worked is remembered for 10 minutes for the same server alone', async () => {
    // A browser keeps text alone.
    globalThis.sessionStorage = new Proxy({}, { set: (all, name, value) => Reflect.set(all, name, String(value)) })
    ends.push(() => { delete globalThis.sessionStorage })
    const asked = http(), read = async url => {
      const Socket = socketThat(fails), rejoin = connect(url, { WebSocket: Socket })
      rejoin.subscribe('t')
      await pass(1)
      assert.equal(rejoin.state, 'live')
      rejoin.close()
      return Socket.all.length
    }
    assert.deepEqual([await read(PAGE), await read(PAGE), await read('http://127.0.0.1:2/')], [1, 0, 1])
    await pass(590_000)
    assert.equal(await read(PAGE), 0)
    await pass(10_000)
    assert.equal(await read(PAGE), 1)
    assert.ok(asked.every(it => it.kind === 'ndjson'))
  })

  test('a poll is cut when it is not answered 5 s after its wait', async () => {
    longest()
    const asked = http(), { rejoin } = open({ transports: ['poll'] }), states = []
    rejoin.on('state', state => states.push(state))
    rejoin.subscribe('t')
    await pass(1)
    assert.deepEqual(asked.map(it => it.wait), [0, 25])
    await pass(29_900)
    assert.equal(rejoin.state, 'live')
    await pass(200)
    assert.deepEqual(states, ['live', 'waiting'])
    await pass(500)
    assert.deepEqual([asked.map(it => it.wait), rejoin.state], [[0, 25, 0, 25], 'live'])
  })

  // A stream without the topic opened, and the client made the next one at once, again and again.
  test('a start that the server cannot read now is asked for again after the usual waits', async () => {
    longest()
    http()
    const { fetch } = globalThis, asked = []
    mock.method(globalThis, 'fetch', async (...all) => {
      if (!JSON.parse(all[1].body).last) return fetch(...all)
      if (asked.push(now) > 50) return new Promise(() => {})
      return Response.json({ code: 'overloaded', topic: 'u' }, { status: 503 })
    })
    const { rejoin, refused } = open({ transports: ['ndjson'] })
    const told = record(rejoin.subscribe('t')), late = record(rejoin.subscribe('u', { last: 1 }))
    await pass(10_000)
    assert.ok(asked.length > 2 && asked.length < 20, String(asked.length))
    assert.deepEqual([late, has(told, 'refused'), refused], [[], false, []])
  })

  test('a token is kept until its end, and not asked for with each request', async () => {
    let count = 0
    const asked = http(), { rejoin } = open({ transports: ['poll'], token: () => 'token' + ++count })
    rejoin.subscribe('t')
    await pass(35_000)
    assert.ok(asked.length >= 4)
    assert.equal(count, 1)
  })
})

describe('publishing', () => {
  const problem = (status, code) => () => Response.json({ code }, { status })
  const away = () => { throw new TypeError('fetch failed') }
  const page = () => new Response('<h1>Bad gateway</h1>', { status: 502 })
  const stored = () => Response.json([{ id: '1001' }])

  /** Answers in this order, the last one again and again. Returns what was sent. */
  function answers(...all) {
    const sent = []
    mock.method(globalThis, 'fetch', async (_, { body }) => {
      sent.push({ ...JSON.parse(body)[0], at: Date.now() })
      return all[Math.min(sent.length, all.length) - 1]()
    })
    return sent
  }
  async function publish(options) {
    const { rejoin } = open({ transports: ['poll'] })
    let code
    rejoin.publish('t', 1, options).catch(error => { code = error.code ?? 'none' })
    await settled()
    return () => code
  }

  test('a message is sent again for 4 minutes, each time with the same key', async () => {
    const sent = answers(away), code = await publish()
    await pass(239_000)
    assert.equal(code(), undefined)
    await pass(25_000)
    assert.equal(code(), 'unknown_outcome')
    const [{ at: first, idempotency_key: key }] = sent
    assert.ok(key && sent.length > 10 && sent.every(it => it.idempotency_key === key && it.at <= first + 240_000))
  })

  // It waited for up to 20 s although the client read messages again.
  test('a message is sent again at once when the connection is open again', async () => {
    longest()
    const Socket = socketThat((socket, number) => number > 6 ? opens(socket) : fails(socket))
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'] }), sent = answers(away)
    rejoin.subscribe('t')
    // The attempts to connect and those to publish are not at the same times.
    await pass(3000)
    rejoin.publish('t', 1).catch(() => {})
    await pass(29_000)
    assert.deepEqual([rejoin.state, sent.at(-1).at], ['live', Socket.times.at(-1)])
  })

  test('a page that only publishes sends its message again at once when the network is back', async () => {
    longest()
    const page = new EventTarget()
    globalThis.addEventListener = page.addEventListener.bind(page)
    ends.push(() => { delete globalThis.addEventListener })
    const sent = answers(...Array(5).fill(away), stored), { rejoin } = open({ transports: ['poll'] })
    let id
    rejoin.publish('t', 1).then(it => { id = it })
    await settled()
    await pass(8000)
    assert.deepEqual([sent.length, id], [5, undefined])
    page.dispatchEvent(new Event('online'))
    await settled()
    assert.deepEqual([sent.length, id], [6, '1001'])
  })

  // The server knows a key for 5 minutes, and stored the message once more after that.
  test('a message is not sent again after the tab was frozen for 6 minutes', async () => {
    const sent = answers(away, stored), code = await publish()
    now += 360_000
    await pass(30_000)
    assert.deepEqual([code(), sent.length], ['unknown_outcome', 1])
  })

  test('a rejected message has the code unknown_outcome if any attempt may have stored it', async () => {
    const unknown = problem(503, 'unknown_outcome'), unavailable = problem(503, 'unavailable')
    for (const [expected, ...all] of [
      ['unknown_outcome', page], ['unknown_outcome', unknown, unavailable], ['unknown_outcome', away, unavailable],
      ['unknown_outcome', unknown, problem(403, 'forbidden')], ['unavailable', unavailable], ['forbidden', problem(403, 'forbidden')],
    ]) {
      answers(...all)
      const code = await publish()
      await pass(265_000)
      assert.equal(code(), expected)
    }
  })

  test('an ephemeral message has no key, and is not sent again', async () => {
    const sent = answers(away, stored), code = await publish({ ephemeral: true })
    await pass(30_000)
    assert.deepEqual([code(), sent.length, 'idempotency_key' in sent[0]], ['unknown_outcome', 1, false])
  })

  // The connection may bring the message before the answer to its publish.
  test('a message of the client itself that comes before its answer is left out, and others of its topic wait', async () => {
    const Socket = socketThat(socket => opens(socket))
    const { rejoin } = open({ WebSocket: Socket, transports: ['ws'], echo: false })
    const told = record(rejoin.subscribe('*'))
    await pass(1)
    let answer
    mock.method(globalThis, 'fetch', () => new Promise(done => { answer = done }))
    const sent = rejoin.publish('t', 'own')
    await settled()
    const say = (topic, id) => Socket.all[0].say({ type: 'message', topic, id, data: id })
    say('other', '1001')
    say('t', '1002')
    say('t', '1003')
    assert.deepEqual(data(told), ['1001'])
    answer(Response.json([{ id: '1002' }]))
    assert.equal(await sent, '1002')
    assert.deepEqual(data(told), ['1001', '1003'])
  })

  test('each message has a key of its own, and excludes no connection', async () => {
    const sent = answers(stored), { rejoin } = open({ transports: ['poll'], echo: false })
    await Promise.all([rejoin.publish('t', 1), rejoin.publish('t', 2), rejoin.publish('t', 3, { key: 'mine' })])
    assert.equal(new Set(sent.map(it => it.idempotency_key)).size, 3)
    assert.equal(sent[2].idempotency_key, 'mine')
    assert.deepEqual(Object.keys(sent[0]), ['topic', 'data', 'idempotency_key', 'at'])
  })
})
