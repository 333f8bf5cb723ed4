// The browser client while answers, refusals and the page itself cross each other, in Node.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { after, describe, test } from 'node:test'
import { connect } from '../../web/rejoin.js'
import { data, has, numbers, record, scripted } from './scripted.mjs'
import { Server, socketFrom, until } from './server.mjs'

const ends = []
after(() => { for (const end of ends) end() })

/** A server for requests, which keeps each one until the test answers it. Streams open at once, unless the test does it. */
async function stub(areOpened = true) {
  const asked = [], streams = []
  const server = createServer(async (request, response) => {
    const body = JSON.parse(await text(request) || 'null')
    const answer = (status, value) => response.writeHead(status).end(JSON.stringify(value))
    const say = frame => response.write(JSON.stringify(frame) + '\n')
    const isStream = request.headers.accept.includes('ndjson'), list = isStream ? streams : asked
    list.push({ body, credential: request.headers.authorization, answer, say, drop: () => response.destroy() })
    if (isStream && areOpened) say(opened(1000))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  ends.push(() => server.close(), () => server.closeAllConnections())
  return { asked, streams, url: `http://127.0.0.1:${server.address().port}/` }
}

function open(url, options) {
  const rejoin = connect(url, options)
  const refused = [], states = []
  rejoin.on('refused', error => refused.push(error.code))
  rejoin.on('state', state => states.push(state))
  ends.push(() => rejoin.close())
  return { rejoin, refused, states }
}
const message = (topic, id) => ({ type: 'message', topic, id: String(id), data: id })
const opened = cursor => ({ type: 'open', connection: 'c', cursor: String(cursor), heartbeat_ms: 25_000 })

describe('the browser client', { concurrency: true }, () => {
  test('without a token no transport sends a credential', async () => {
    const { asked, streams, url } = await stub()
    const offered = []
    const WebSocket = class extends scripted() {
      constructor(address, protocols) { super(address), offered.push(protocols) }
    }
    for (const transport of ['ws', 'ndjson', 'poll']) open(url, { transports: [transport], WebSocket }).rejoin.subscribe('t')
    await until(() => offered[0] && streams[0] && asked[0])
    assert.deepEqual([offered[0], streams[0].credential, asked[0].credential], ['rejoin.v1', undefined, undefined])
  })

  // The client read again from the first message that had waited, although the loop had taken it and many more.
  test('a loop that takes messages while others wait gets each one once', async () => {
    const server = await Server.start(['--retain-messages', '5000'])
    ends.push(() => server.stop('SIGKILL'))
    const { rejoin } = open(server.url, { WebSocket: socketFrom(server.url) })
    const publish = async (from, to) => {
      const body = numbers(from, to).map(n => JSON.stringify({ topic: 't', data: n })).join('\n')
      await fetch(server.url + '/publish', { method: 'POST', headers: { 'Content-Type': 'application/x-ndjson' }, body })
      const last = await server.publish('end', 1)
      await until(() => rejoin.cursor === last)
    }
    const orders = rejoin.subscribe('t'), ended = record(rejoin.subscribe('end')), told = record(orders), got = []
    await until(() => has(told, 'subscribed') && has(ended, 'subscribed'))
    const loop = orders[Symbol.asyncIterator]()
    const take = async count => { while (count--) got.push((await loop.next()).value.data) }
    const first = take(1)
    await publish(1, 800)
    await first
    await take(500)
    await publish(801, 1600)
    await take(1099)
    assert.deepEqual(got, numbers(1, 1600))
  })

  // Each message that the loop took loaded up to 2 000 others, and made a new stream.
  for (const transport of ['ws', 'ndjson', 'poll']) {
    test(`${transport}: a slow loop reads no message more than three times, over one connection`, async () => {
      const server = await Server.start(['--retain-messages', '10000'])
      ends.push(() => server.stop('SIGKILL'))
      const { rejoin } = open(server.url, { WebSocket: socketFrom(server.url), transports: [transport] })
      const orders = rejoin.subscribe('t'), ended = record(rejoin.subscribe('end')), told = record(orders), got = []
      let opens = 0, read = 0
      rejoin.on('open', () => opens++)
      const real = fetch
      globalThis.fetch = async (...all) => {
        const answer = await real(...all)
        if (all[0] === server.url + '/events' && !all[1].headers.Accept.includes('ndjson')) {
          answer.clone().json().then(page => { read += page.messages.filter(it => it.topic === 't').length })
        }
        return answer
      }
      ends.push(() => { globalThis.fetch = real })
      await until(() => has(told, 'subscribed') && has(ended, 'subscribed'))
      const loop = orders[Symbol.asyncIterator](), first = loop.next()
      const body = numbers(1, 2500).map(n => JSON.stringify({ topic: 't', data: n })).join('\n')
      await fetch(server.url + '/publish', { method: 'POST', headers: { 'Content-Type': 'application/x-ndjson' }, body })
      const last = await server.publish('end', 1), before = opens
      await until(() => Number(rejoin.cursor) >= Number(last))
      got.push((await first).value.data)
      while (got.length < 2500) {
        got.push((await loop.next()).value.data)
        await new Promise(setImmediate)
        assert.ok(read <= 7_500, `${read} messages by polls for ${got.length}`)
        assert.equal(opens, before)
      }
      assert.deepEqual(got, numbers(1, 2500))
    })
  }

  test('a refusal is told once, even if several requests are refused', async () => {
    const { asked, url } = await stub()
    const { rejoin, refused } = open(url, { WebSocket: scripted({ heartbeat_ms: 25_000 }), transports: ['ws'], token: () => 'token' })
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    rejoin.subscribe('t', { after: '1' })
    rejoin.subscribe('t', { after: '2' })
    const refuse = () => asked.splice(0).forEach(it => it.answer(401, { code: 'unauthorized' }))
    await until(() => asked.length === 2)
    refuse()
    await until(() => asked.length === 2)
    refuse()
    await until(() => rejoin.state === 'refused')
    // Both have been refused once this has been answered.
    const last = assert.rejects(rejoin.publish('t', 1))
    await until(() => asked.length)
    refuse()
    await until(() => asked.length)
    refuse()
    await last
    assert.deepEqual(refused, ['unauthorized'])
  })

  test('a client that is closed says nothing more', async () => {
    const { asked, url } = await stub()
    const { rejoin, refused, states } = open(url, { WebSocket: scripted({ heartbeat_ms: 25_000 }), transports: ['ws'] })
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    rejoin.subscribe('t', { after: '1' })
    rejoin.subscribe('t', { after: '2' })
    await until(() => asked.length === 2)
    rejoin.close()
    asked[0].drop()
    asked[1].answer(403, { code: 'forbidden' })
    const sent = rejoin.publish('t', 1)
    await until(() => asked.length === 3)
    asked[2].answer(200, [{ id: '1001' }])
    await sent
    assert.deepEqual([states, rejoin.state, refused], [['live', 'closed'], 'closed', []])
  })

  test('a topic that is refused after its subscription was closed ends nothing else', async () => {
    const { asked, streams, url } = await stub()
    const { rejoin, refused } = open(url, { transports: ['ndjson'] })
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    const other = rejoin.subscribe('other', { last: 5 }), count = streams.length
    await until(() => asked.length)
    other.close()
    asked[0].answer(403, { code: 'forbidden', topic: 'other' })
    await until(() => streams.length > count || refused.length)
    assert.deepEqual([refused, streams.at(-1).body.topics], [[], ['t']])
    for (const stream of streams) stream.say(message('t', 1001))
    await until(() => data(told).length)
  })

  // The refusal was one of its topic, and ended the other subscription too.
  for (const transport of ['ws', 'ndjson']) {
    test(`${transport}: a start that cannot be ends no other subscription of its topic`, async () => {
      const { asked, streams, url } = await stub()
      const { rejoin, refused } = open(url, { WebSocket: scripted({ heartbeat_ms: 25_000 }), transports: [transport] })
      const refuse = () => asked.splice(0).forEach(it => it.answer(400, { code: 'bad_request', topic: 't' }))
      // Over HTTP each start is fetched before the first stream. A WebSocket asks by command, one after the other.
      const early = [transport === 'ws' ? {} : { since: 'soon' }, {}].map(start => record(rejoin.subscribe('t', start)))
      if (transport === 'ndjson') {
        await until(() => asked.length)
        refuse()
      }
      const healthy = early[1]
      await until(() => has(healthy, 'subscribed'))
      const late = record(rejoin.subscribe('t', { since: 'soon' })), count = streams.length
      await until(() => asked.length)
      refuse()
      await until(() => has(late, 'refused'))
      assert.deepEqual([late.at(-1).code, has(healthy, 'refused'), refused, streams.length], ['bad_request', false, [], count])
      if (transport === 'ndjson') assert.ok(has(early[0], 'refused'))
    })
  }

  test('a command whose start cannot be ends no other subscription that waits for its answer', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const { rejoin, refused } = open('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    rejoin.on('open', () => {})
    await until(() => rejoin.state === 'live')
    const bad = record(rejoin.subscribe('t', { since: 'soon' })), good = record(rejoin.subscribe('t'))
    const [socket] = Socket.all
    socket.say({ type: 'error', code: 'bad_request', topic: 't', ref: 1 })
    await until(() => socket.sent.length === 2)
    socket.say({ type: 'subscribed', topic: 't', cursor: '1000', ref: 1 })
    assert.deepEqual([bad, good].map(told => told.map(it => it.type)), [['refused'], ['subscribed']])
    assert.deepEqual([socket.sent.map(it => it.since), refused], [['soon', undefined], []])
  })

  // Each such subscription made a new stream, and so did a slow loop for each thousand messages.
  test('a second subscription with presence to a topic of the stream makes no new one', async () => {
    const { asked, streams, url } = await stub()
    const { rejoin } = open(url, { transports: ['ndjson'] })
    const first = record(rejoin.subscribe('t', { presence: true }))
    await until(() => has(first, 'subscribed'))
    const second = record(rejoin.subscribe('t', { last: 3, presence: true }))
    await until(() => asked.length)
    asked[0].answer(200, { cursor: '1000', messages: [message('t', 900)] })
    await until(() => has(second, 'subscribed'))
    assert.deepEqual([streams.map(it => it.body.presence), data(second)], [[true], [900]])
  })

  test('two reads of what one subscription has missed give each message once, also from a store with other ids', async () => {
    const { asked, url } = await stub()
    const { rejoin } = open(url, { transports: ['ndjson'] })
    const first = record(rejoin.subscribe('a'))
    await until(() => has(first, 'subscribed'))
    const told = record(rejoin.subscribe('b', { after: '5000' }))
    const reads = () => asked.filter(it => it.body.topics[0] === 'b')
    await until(() => reads().length === 1)
    // Another subscription lets the client begin to connect again.
    rejoin.subscribe('c', { after: '1000' })
    await until(() => reads().length === 2)
    assert.deepEqual(reads().map(it => it.body.after), ['5000', '5000'])
    const gap = { type: 'gap', topic: 'b', after: '5000', next: '900', cursor: '899', reason: 'unknown_cursor' }
    const page = { gaps: [gap], messages: [message('b', 900), message('b', 901)], cursor: '1000' }
    await until(() => {
      for (const { body, answer } of asked.splice(0)) {
        answer(200, body.after === '5000' ? page : { messages: [], cursor: '1000' })
      }
      return has(told, 'subscribed')
    })
    assert.deepEqual(told.map(it => it.data ?? it.type), ['gap', 900, 901, 'subscribed'])
  })

  test('a gap that ends before a subscription began is not told to it', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    const gap = (after, next) => Socket.all[0].say({ type: 'gap', topic: 't', after, next, cursor: after, reason: 'retention' })
    gap('0900', '0950')
    gap('0990', '1100')
    assert.deepEqual(told.slice(1).map(it => it.next), ['1100'])
  })

  test('a message that no token was given for was not sent, so its outcome is known', async () => {
    const { rejoin, refused } = open('http://127.0.0.1:1/', { token: () => null })
    await assert.rejects(rejoin.publish('t', 1), { code: 'unauthorized' })
    assert.deepEqual(refused, ['unauthorized'])
  })

  test('the better transport is tried when the network is back, also while a worse one opens', async () => {
    const { streams, url } = await stub(false)
    const Socket = scripted({ heartbeat_ms: 25_000 }), page = new EventTarget()
    Socket.isAway = true
    globalThis.addEventListener = page.addEventListener.bind(page)
    const { rejoin } = open(url, { WebSocket: Socket })
    delete globalThis.addEventListener
    rejoin.subscribe('t')
    await until(() => Socket.all.length)
    Socket.all[0].onclose({ code: 1006, reason: '' })
    await until(() => streams.length)
    Socket.isAway = false
    page.dispatchEvent(new Event('online'))
    streams[0].say(opened(1000))
    await until(() => rejoin.state === 'live')
    assert.equal(Socket.all.length, 2)
  })

  // It was taken for a lost answer, and sent again for four minutes. All later messages waited.
  test('a message that cannot be JSON is refused, and the next one is sent', async () => {
    const { asked, url } = await stub()
    const { rejoin } = open(url)
    await assert.rejects(rejoin.publish('t', 1n), TypeError)
    const sent = rejoin.publish('t', 1)
    await until(() => asked.length)
    asked[0].answer(200, [{ id: '1001' }])
    assert.equal(await sent, '1001')
  })

  // The loop ended as if there were no more messages.
  test('a loop that begins after the refusal of its subscription throws it', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    rejoin.subscribe('t')
    await until(() => rejoin.state === 'live')
    const secret = rejoin.subscribe('secret')
    Socket.all[0].say({ type: 'error', code: 'forbidden', topic: 'secret', ref: 1 })
    await assert.rejects(secret[Symbol.asyncIterator]().next(), { code: 'forbidden', topic: 'secret' })
  })

  test('a room that is closed while its members are on their way tells nothing', async () => {
    const { asked, url } = await stub()
    const { rejoin } = open(url, { WebSocket: scripted({ heartbeat_ms: 25_000 }), transports: ['ws'] })
    const room = await rejoin.presence('room.1'), told = []
    room.on('members', members => told.push(members))
    await until(() => asked.length === 1)
    room.close()
    asked[0].answer(200, { cursor: '1000', members: [{ sub: 'u1' }] })
    const sent = rejoin.publish('t', 1)
    await until(() => asked.length === 2)
    asked[1].answer(200, [{ id: '1001' }])
    await sent
    assert.deepEqual([told, [...room.members]], [[], []])
  })

  test('a client that leaves out its own messages knows the newest of them', async () => {
    // A thousand requests to a real server would take too long.
    let id = 2000
    const own = 'http://127.0.0.1:1/own', real = fetch
    globalThis.fetch = (...all) => all[0].startsWith(own) ? Promise.resolve(Response.json([{ id: String(++id) }])) : real(...all)
    ends.push(() => { globalThis.fetch = real })
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const { rejoin } = open(own, { WebSocket: Socket, transports: ['ws'], echo: false })
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    await Promise.all(numbers(1, 1002).map(n => rejoin.publish('t', n)))
    for (const id of [3001, 3002, 3003]) Socket.all[0].say(message('t', id))
    assert.deepEqual(data(told), [3003])
  })
})

// By themselves: they look at the timers of everything, and let nothing else run for a while.
describe('the browser client alone', () => {
  // They were all kept, without a bound, and then all dropped for one too many.
  test('a loop that is slow over a topic of the server is told a gap after a thousand messages', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    let given
    rejoin.on('subscription', subscription => { given = subscription })
    rejoin.subscribe('t')
    await until(() => rejoin.state === 'live')
    const say = (from, to) => numbers(from, to).forEach(id => Socket.all[0].say(message('given', id)))
    Socket.all[0].say({ type: 'subscribed', topic: 'given', cursor: '1000', by: 'server' })
    const gaps = [], got = [], loop = given[Symbol.asyncIterator](), first = loop.next()
    given.on('gap', gap => gaps.push(gap))
    const take = async count => { while (count--) got.push((await loop.next()).value.data) }
    say(1001, 2001)
    got.push((await first).value.data)
    assert.deepEqual(gaps, [])
    say(2002, 4003)
    await take(1000)
    assert.deepEqual([got.splice(0), gaps], [numbers(1001, 2001), []])
    // What comes after the gap, while there is room again, is told.
    say(4004, 4006)
    await take(3)
    assert.deepEqual(gaps, [{ type: 'gap', topic: 'given', after: '2001', next: null, cursor: '4003', reason: 'too_slow' }])
    assert.deepEqual(got, [4004, 4005, 4006])
  })

  // The wait for a lock that is refused had no end.
  for (const [what, locks] of [['without', undefined], ['that is refused', { request: async () => { throw new DOMException('no', 'SecurityError') } }]]) {
    test(`each tab connects by itself: a client with a name for the login, and a lock ${what}`, async () => {
      const known = Object.getOwnPropertyDescriptor(globalThis, 'navigator')
      Object.defineProperty(globalThis, 'navigator', { value: { locks }, configurable: true })
      ends.push(() => known ? Object.defineProperty(globalThis, 'navigator', known) : delete globalThis.navigator)
      const Socket = scripted({ heartbeat_ms: 25_000 })
      const tabs = [1, 2].map(() => open('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'], shared: 'u1' }).rejoin)
      const told = tabs.map(it => record(it.subscribe('t')))
      await until(() => told.every(it => has(it, 'subscribed')))
      for (const socket of Socket.all) socket.say(message('t', 1001))
      assert.deepEqual([Socket.all.length, told.map(data)], [2, [[1001], [1001]]])
      for (const it of tabs) it.close()
    })
  }

  test('a client without the class of a WebSocket makes one stream, and looks for no better one', async ({ mock }) => {
    const { asked, streams, url } = await stub(), Class = globalThis.WebSocket
    delete globalThis.WebSocket
    ends.push(() => { if (Class) globalThis.WebSocket = Class })
    const waits = [], real = globalThis.setTimeout
    mock.method(globalThis, 'setTimeout', (run, ms, ...more) => {
      waits.push(ms)
      return real(run, ms, ...more)
    })
    const { rejoin } = open(url)
    rejoin.subscribe('t')
    await until(() => rejoin.state === 'live')
    mock.restoreAll()
    assert.deepEqual([streams.length, asked.length, waits.includes(600_000)], [1, 0, false])
  })
})
