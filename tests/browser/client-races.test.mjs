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

/** A server for requests, which keeps each one until the test answers it. */
async function stub() {
  const asked = []
  const server = createServer(async (request, response) => {
    const body = JSON.parse(await text(request) || 'null')
    const answer = (status, value) => response.writeHead(status).end(JSON.stringify(value))
    const say = frame => response.write(JSON.stringify(frame) + '\n')
    asked.push({ body, isStream: request.headers.accept.includes('ndjson'), answer, say, drop: () => response.destroy() })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  ends.push(() => server.close(), () => server.closeAllConnections())
  return { asked, url: `http://127.0.0.1:${server.address().port}/` }
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
    const { asked, url } = await stub()
    const { rejoin, refused } = open(url, { transports: ['ndjson'] })
    const told = record(rejoin.subscribe('t'))
    await until(() => asked.length === 1)
    asked[0].say(opened(1000))
    await until(() => has(told, 'subscribed'))
    const other = rejoin.subscribe('other', { last: 5 })
    await until(() => asked.length === 2)
    other.close()
    asked[1].answer(403, { code: 'forbidden', topic: 'other' })
    await until(() => asked.length === 3 || refused.length)
    assert.deepEqual(refused, [])
    assert.deepEqual([asked[2].isStream, asked[2].body.topics], [true, ['t']])
    asked[2].say(opened(1000))
    asked[2].say(message('t', 1001))
    await until(() => data(told).length)
  })

  test('two reads of what one subscription has missed give each message once, also from a store with other ids', async () => {
    const { asked, url } = await stub()
    const { rejoin } = open(url, { transports: ['ndjson'] })
    const first = record(rejoin.subscribe('a'))
    await until(() => asked.length === 1)
    asked[0].say(opened(1000))
    await until(() => has(first, 'subscribed'))
    const told = record(rejoin.subscribe('b', { after: '5000' }))
    await until(() => asked.length === 2)
    // Another subscription lets the client begin to connect again.
    rejoin.subscribe('c', { after: '1000' })
    await until(() => asked.length === 4)
    const reads = asked.slice(1).filter(it => it.body.topics[0] === 'b')
    assert.deepEqual(reads.map(it => it.body.after), ['5000', '5000'])
    const gap = { type: 'gap', topic: 'b', after: '5000', next: '900', cursor: '899', reason: 'unknown_cursor' }
    for (const read of reads) read.answer(200, { gaps: [gap], messages: [message('b', 900), message('b', 901)], cursor: '1000' })
    asked.find(it => it.body.topics[0] === 'c').answer(200, { messages: [], cursor: '1000' })
    for (let at = 4; !has(told, 'subscribed'); at++) {
      await until(() => asked.length > at || has(told, 'subscribed'))
      if (asked[at]?.isStream) asked[at].say(opened(1000))
      else asked[at]?.answer(200, { messages: [], cursor: '1000' })
    }
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
    const { asked, url } = await stub()
    const Socket = scripted({ heartbeat_ms: 25_000 }), page = new EventTarget()
    Socket.isAway = true
    globalThis.addEventListener = page.addEventListener.bind(page)
    const { rejoin } = open(url, { WebSocket: Socket })
    delete globalThis.addEventListener
    rejoin.subscribe('t')
    await until(() => Socket.all.length)
    Socket.all[0].onclose({ code: 1006, reason: '' })
    await until(() => asked.length)
    Socket.isAway = false
    page.dispatchEvent(new Event('online'))
    asked[0].say(opened(1000))
    await until(() => rejoin.state === 'live')
    assert.equal(Socket.all.length, 2)
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
