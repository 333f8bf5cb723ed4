// Topics that the server adds and takes beside those that the page reads by itself, in Node.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { after, describe, test } from 'node:test'
import { connect } from '../../web/rejoin.js'
import { data, has, numbers, record, scripted, withLocks } from './scripted.mjs'
import { SECRET, Server, mint, socketFrom, until } from './server.mjs'

const ends = []
after(() => { for (const end of ends) end() })

function open(url, options) {
  const rejoin = connect(url, { mine: true, transports: ['ws'], ...options }), given = []
  rejoin.on('subscription', subscription => given.push(subscription))
  ends.push(() => rejoin.close())
  return { rejoin, given }
}
const message = (topic, id) => ({ type: 'message', topic, id: String(id), data: id })
const added = (topic, cursor) => ({ type: 'subscribed', topic, cursor: String(cursor), by: 'server' })
const taken = (topic, cursor) => ({ type: 'unsubscribed', topic, cursor: String(cursor), by: 'server' })

describe('a topic of the page that the list has too', { concurrency: true }, () => {
  // The subscription of the page was refused: the client looked for one of the list, and it was closed.
  test('goes on when it leaves the list, although the page has closed that of the list', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: ['a'] })
    const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    const own = record(rejoin.subscribe('a'))
    await until(() => given.length && has(own, 'subscribed'))
    given[0].close()
    Socket.all[0].say(taken('a', 1001))
    await until(() => Socket.all.length === 2 && rejoin.state === 'live')
    Socket.all[1].say(message('a', 1002))
    assert.deepEqual([own.map(it => it.type), data(own)], [['subscribed', 'message'], [1002]])
  })

  // The old connection stayed open until the next one had opened. It may have moved the cursor past messages of the topic.
  test('ends the connection at once when it leaves the list, and nothing more of that connection counts', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: ['a'] })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    const own = record(rejoin.subscribe('a')), other = record(rejoin.subscribe('other'))
    await until(() => has(own, 'subscribed') && has(other, 'subscribed'))
    const [first] = Socket.all
    first.say(message('a', 1001))
    Socket.isAway = true
    const states = []
    rejoin.on('state', state => states.push(state))
    // The server has given everything up to this cursor.
    first.say(taken('a', 1003))
    first.say(message('other', 1005))
    await until(() => Socket.all.length === 2)
    assert.deepEqual([data(own), data(other), new URL(Socket.all[1].url).searchParams.get('after')], [[1001], [], '1003'])
    // The change is meant, so the client does not wait as after a failure.
    assert.ok(!states.includes('waiting'), states)
  })

  // The answer said that the topic is read, and the client took that for the whole replay.
  test('begins where the page asks for it, although the page has closed that of the list', async () => {
    const server = await Server.start(['--jwt-secret', SECRET])
    ends.push(() => server.stop('SIGKILL'))
    server.key = mint('backend', 600, { admin: true, publish: ['**'] })
    await server.ask('PUT', '/subjects/u1/topics/a')
    const { rejoin, given } = open(server.url, { WebSocket: socketFrom(server.url), token: () => mint('u1', 60) })
    await until(() => given.length)
    given[0].close()
    for (const n of numbers(1, 5)) await server.publish('a', n)
    const own = record(rejoin.subscribe('a', { last: 3 }))
    await until(() => has(own, 'subscribed'))
    await server.publish('a', 6)
    await until(() => data(own).includes(6))
    assert.deepEqual(data(own), numbers(3, 6))
  })

  // It was refused although the page was not reading it yet on the connection whose list lost it.
  test('begins although it leaves the list while its start is on the way', async () => {
    const polls = [], streams = []
    const stub = createServer(async (request, response) => {
      const body = JSON.parse(await text(request)), isStream = request.headers.accept.includes('ndjson')
      const say = frame => response.write(JSON.stringify(frame) + '\n')
      const list = isStream ? streams : polls
      list.push({ body, say, answer: page => response.end(JSON.stringify(page)) })
      if (isStream) say({ type: 'open', connection: 'c', cursor: '1000', heartbeat_ms: 25_000, mine: streams.length > 1 ? [] : ['a'] })
    })
    stub.listen(0, '127.0.0.1')
    await once(stub, 'listening')
    ends.push(() => stub.close(), () => stub.closeAllConnections())
    const { rejoin, given } = open(`http://127.0.0.1:${stub.address().port}/`, { transports: ['ndjson'] })
    await until(() => given.length)
    const listed = record(given[0]), own = record(rejoin.subscribe('a', { last: 5 }))
    await until(() => polls.length)
    streams[0].say(taken('a', 1000))
    await until(() => has(listed, 'refused'))
    for (const it of polls) it.answer({ cursor: '1000', messages: [message('a', 900)] })
    await until(() => has(own, 'subscribed'))
    assert.deepEqual([streams[1].body.topics, own.map(it => it.type)], [['a'], ['message', 'subscribed']])
  })

  // The client went on to open, and looked for its connection.
  test('is given no more once a handler has closed the client', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: ['a', 'b'] })
    const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    const opened = []
    rejoin.on('open', () => opened.push(1))
    rejoin.on('subscription', () => rejoin.close())
    await until(() => given.length)
    await new Promise(done => setTimeout(done))
    assert.deepEqual([given.length, opened, rejoin.state], [1, [], 'closed'])
  })

  test('is taken from the page by the backend if only the page reads it', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: [] })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    const own = record(rejoin.subscribe('a'))
    await until(() => has(own, 'subscribed'))
    Socket.all[0].say(taken('a', 1000))
    assert.deepEqual([own.at(-1).code, Socket.all.length], ['conflict', 1])
  })

  // The list replays nothing. Its subscription was told what the server replayed for the page.
  test('is told no replay that the page has asked for', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: [] })
    const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    await until(() => rejoin.state === 'live')
    rejoin.subscribe('a', { last: 5 })
    const [socket] = Socket.all, listed = []
    rejoin.on('subscription', subscription => listed.push(record(subscription)))
    socket.say({ ...message('a', 901), replay: true })
    socket.say(added('a', 1000))
    assert.deepEqual([given.length, listed.map(data)], [1, [[]]])
    // The client cannot know whose the rest is. A new connection reads each of them from its place.
    await until(() => Socket.all.length === 2)
  })
})

describe('a replay of a pattern of the page', { concurrency: true }, () => {
  const replayed = (topic, id) => ({ ...message(topic, id), replay: true, pattern: 'r.*' })
  /** A page that has asked for a pattern with a start, of which the first message has come. */
  async function begun(options) {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: options.mine ? [] : undefined })
    const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket, ...options })
    rejoin.on('open', () => {})
    await until(() => rejoin.state === 'live')
    const own = record(rejoin.subscribe('r.*', { last: 5 })), [socket] = Socket.all
    socket.say(replayed('r.1', 901))
    return { rejoin, given, own, socket }
  }
  const answer = { type: 'subscribed', topic: 'r.*', cursor: '1000', ref: 1 }

  // What had come of it was dropped, and no gap said so.
  test('is whole, although the backend adds and takes a topic of it meanwhile', async () => {
    const { own, socket } = await begun({ mine: false })
    socket.say(taken('r.1', 1000))
    socket.say(replayed('r.1', 902))
    socket.say(answer)
    assert.deepEqual(data(own), [901, 902])
  })

  // The subscription of the list was told what the page had asked for.
  test('is whole, although the list gains a topic of it meanwhile', async () => {
    const { own, given, socket } = await begun({ mine: true })
    const listed = []
    socket.say(added('r.1', 1000))
    listed.push(record(given[0]))
    socket.say(replayed('r.1', 902))
    socket.say(answer)
    assert.deepEqual([data(own), listed.map(data)], [[901, 902], [[]]])
  })
})

describe('a replay that the backend has begun', { concurrency: true }, () => {
  test('is not told to a pattern that the list gains meanwhile', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: [] })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    await until(() => rejoin.state === 'live')
    const [socket] = Socket.all, told = {}
    rejoin.on('subscription', subscription => { told[subscription.topic] = record(subscription) })
    socket.say({ ...message('a.b', 901), replay: true })
    socket.say(added('a.*', 1000))
    socket.say({ ...message('a.b', 902), replay: true })
    socket.say(added('a.b', 1000))
    assert.deepEqual([data(told['a.*']), data(told['a.b'])], [[], [901, 902]])
  })

  // Its rest was never told.
  test('goes on for a topic that the list gains meanwhile', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: [] })
    const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket })
    await until(() => rejoin.state === 'live')
    const [socket] = Socket.all
    let told
    rejoin.on('subscription', subscription => { told = record(subscription) })
    socket.say(added('a', 1000))
    socket.say(message('a', 1001))
    socket.say({ ...message('a', 901), replay: true })
    socket.say({ ...message('a', 902), replay: true })
    socket.say(added('a', 1001))
    socket.say(message('a', 1002))
    assert.deepEqual(data(told), [1001, 901, 902, 1002])
  })
})

// They were told before it had loaded, and it may already contain them.
test('a subscription with state is told no message of the time before it is read', async () => {
  const Socket = scripted({ heartbeat_ms: 25_000 })
  const { rejoin } = open('http://127.0.0.1:1/', { WebSocket: Socket, mine: false, after: '1000' })
  rejoin.on('open', () => {})
  await until(() => rejoin.state === 'live')
  const told = record(rejoin.subscribe('a', { state: () => told.push('state') })), [socket] = Socket.all
  socket.say({ ...message('a', 1001), replay: true })
  socket.say({ type: 'subscribed', topic: 'a', cursor: '1002', ref: 1 })
  socket.say(message('a', 1003))
  await until(() => has(told, 'message'))
  assert.deepEqual([told.map(it => it.type ?? it), data(told)], [['subscribed', 'state', 'message'], [1003]])
})

describe('a topic that only the backend adds', { concurrency: true }, () => {
  /** A client without a list, and its connection. */
  async function opened() {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket, mine: false })
    rejoin.on('open', () => {})
    await until(() => rejoin.state === 'live')
    return { rejoin, given, socket: Socket.all[0] }
  }

  // The gap of the server was made longer, but said that reading goes on at its old end. It is also told to others.
  test('tells a gap of its own behind one of the server, if the page is too slow for both', async () => {
    const { rejoin, given, socket } = await opened()
    socket.say(added('a', 1000))
    const other = rejoin.subscribe('*')
    socket.say({ type: 'subscribed', topic: '*', cursor: '1000', ref: 1 })
    const others = [], gaps = [], got = [], loop = given[0][Symbol.asyncIterator](), first = loop.next()
    given[0].on('gap', gap => gaps.push(gap))
    other.on('gap', gap => others.push(gap))
    for (const id of numbers(1001, 2000)) socket.say(message('a', id))
    const ofServer = { type: 'gap', topic: 'a', after: '2000', next: '2100', cursor: '2099', reason: 'too_slow' }
    socket.say(ofServer)
    for (const id of numbers(2100, 2102)) socket.say(message('a', id))
    got.push((await first).value.data)
    for (let left = 999; left--;) got.push((await loop.next()).value.data)
    // This takes the gaps that follow the last message.
    const next = loop.next()
    socket.say(message('a', 2103))
    assert.equal((await next).value.data, 2103)
    assert.deepEqual(got, numbers(1001, 2000))
    assert.deepEqual(gaps, [ofServer, { type: 'gap', topic: 'a', after: '2099', next: null, cursor: '2102', reason: 'too_slow' }])
    assert.deepEqual(others, [ofServer])
  })

  // Its next subscription was read by a poll first. Ephemeral messages of that time were lost.
  test('is read at once when the page asks for it after it has closed it', async () => {
    const { rejoin, given, socket } = await opened()
    socket.say(added('a', 1000))
    given[0].close()
    socket.say({ type: 'unsubscribed', topic: 'a', cursor: '1000', ref: 1 })
    const own = record(rejoin.subscribe('a'))
    socket.say({ type: 'subscribed', topic: 'a', cursor: '1000', ref: 1 })
    socket.say({ type: 'message', topic: 'a', data: 1, ephemeral: true })
    assert.deepEqual([socket.sent.map(it => it.type), own.map(it => it.type)], [['unsubscribe', 'subscribe'], ['subscribed', 'message']])
  })

  // The client went on to believe that it reads the topic.
  test('is refused if the server adds it just before it takes it because the page has closed its own', async () => {
    const { rejoin, given, socket } = await opened()
    const own = rejoin.subscribe('a')
    socket.say({ type: 'subscribed', topic: 'a', cursor: '1000', ref: 1 })
    own.close()
    socket.say(added('a', 1000))
    const told = record(given[0])
    socket.say({ type: 'unsubscribed', topic: 'a', cursor: '1000', ref: 1 })
    assert.deepEqual(told.map(it => it.code), ['conflict'])
  })

  // A pattern of the page that the server had added already took the replay. The topic then had a hole.
  test('gets what is replayed of it, although the page asks for a pattern of it meanwhile', async () => {
    const { rejoin, given, socket } = await opened()
    socket.say(added('a.*', 1000))
    rejoin.subscribe('a.*')
    socket.say({ ...message('a.b', 900), replay: true })
    socket.say({ type: 'subscribed', topic: 'a.*', cursor: '1000', ref: 1 })
    let told
    rejoin.on('subscription', subscription => { told = record(subscription) })
    socket.say({ ...message('a.b', 901), replay: true })
    socket.say(added('a.b', 1000))
    assert.deepEqual([given.map(it => it.topic), data(told)], [['a.*', 'a.b'], [900, 901]])
  })

  // It was refused. The server read it for nobody, and the next subscription lost what came in between.
  test('goes on for the page that asks for it just before the backend takes it', async () => {
    const { rejoin, given, socket } = await opened()
    socket.say(added('a', 1000))
    const of = record(given[0]), own = record(rejoin.subscribe('a'))
    socket.say(taken('a', 1000))
    socket.say({ type: 'subscribed', topic: 'a', cursor: '1000', ref: 1 })
    socket.say(message('a', 1001))
    assert.deepEqual([of.map(it => it.code), own.map(it => it.type)], [['conflict'], ['subscribed', 'message']])
  })

  // Only the tab that leads was told. The subscription of the others waited for ever.
  test('is refused in every tab if the server takes it because one has closed its own', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const restore = withLocks()
    const tabs = [1, 2].map(() => {
      const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket, mine: false, shared: 'u1' })
      rejoin.subscribe('keep')
      return { rejoin, given }
    })
    await until(() => tabs.every(({ rejoin }) => rejoin.state === 'live'))
    const [socket] = Socket.all, answer = topic => socket.say({ type: 'subscribed', topic, cursor: '1000', ref: 1 })
    const own = tabs[0].rejoin.subscribe('a')
    answer('a')
    own.close()
    socket.say(added('a', 1000))
    await until(() => tabs.every(({ given }) => given.length))
    const told = tabs.map(({ given }) => record(given[0]))
    socket.say({ type: 'unsubscribed', topic: 'a', cursor: '1000', ref: 1 })
    await until(() => told.every(it => has(it, 'refused')))
    assert.deepEqual([Socket.all.length, told.map(it => it.map(({ code }) => code))], [1, [['conflict'], ['conflict']]])
    for (const { rejoin } of tabs) rejoin.close()
    restore()
  })
})

// Each tab was told that it is refused. It stands alone, since the locks are those of the whole program.
test('a topic that only the backend adds waits in every tab until the backend adds it to the next connection', async () => {
  const Socket = scripted({ heartbeat_ms: 25_000 })
  const restore = withLocks()
  const tabs = [1, 2].map(() => {
    const { rejoin, given } = open('http://127.0.0.1:1/', { WebSocket: Socket, mine: false, shared: 'u2' })
    rejoin.subscribe('keep')
    return { rejoin, given }
  })
  await until(() => tabs.every(({ rejoin }) => rejoin.state === 'live'))
  Socket.all[0].say(added('a', 1000))
  await until(() => tabs.every(({ given }) => given.length))
  const told = tabs.map(({ given }) => record(given[0]))
  Socket.all[0].onclose({ code: 1006, reason: '' })
  await until(() => Socket.all.length === 2 && tabs.every(({ rejoin }) => rejoin.state === 'live'))
  Socket.all[1].say(added('a', 1000))
  // A tab that follows hears the next connection a little later.
  let id = 1000
  await until(() => {
    Socket.all[1].say(message('a', ++id))
    return told.every(it => has(it, 'message'))
  })
  assert.deepEqual([tabs.map(({ given }) => given.length), told.map(it => has(it, 'refused'))], [[1, 1], [false, false]])
  for (const { rejoin } of tabs) rejoin.close()
  restore()
})
