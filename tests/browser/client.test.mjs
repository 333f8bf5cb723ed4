// The browser client in Node, against a real server.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { connect } from '../../web/rejoin.js'
import { data, has, numbers, record, scripted } from './scripted.mjs'
import { Proxy, SECRET, Server, mint, socketFrom, until } from './server.mjs'

const TRANSPORTS = ['ws', 'ndjson', 'poll']
const ends = []
after(() => { for (const end of ends) end() })

async function begin(flags, options) {
  const server = await Server.start(flags)
  const proxy = await Proxy.before(server.port)
  const rejoin = connect(proxy.url, { WebSocket: socketFrom(proxy.url), ...options })
  ends.push(() => rejoin.close(), () => proxy.close(), () => server.stop('SIGKILL'))
  return { server, proxy, rejoin }
}

describe('the browser client', { concurrency: 8 }, () => {
  for (const transport of TRANSPORTS) {
    const only = { transports: [transport] }

    test(`${transport}: topics and patterns come and go, each message once`, async () => {
      const { server, rejoin } = await begin([], only)
      for (let n = 1; n <= 5; n++) await server.publish('old', n)
      const all = record(rejoin.subscribe('orders.*')), one = record(rejoin.subscribe('orders.1'))
      await until(() => has(all, 'subscribed') && has(one, 'subscribed'))
      await server.publish('orders.1', 1)
      await until(() => data(all).length === 1 && data(one).length === 1)
      const old = rejoin.subscribe('old', { last: 3 }), heard = record(old)
      await until(() => data(heard).length === 3 && has(heard, 'subscribed'))
      const again = record(rejoin.subscribe('old', { last: 2 })), whole = record(rejoin.subscribe('old', { after: '0' }))
      await until(() => has(again, 'subscribed') && has(whole, 'subscribed'))
      for (let n = 6; n <= 9; n++) await server.publish('old', n)
      await server.publish('orders.2', 2)
      await until(() => data(all).length === 2 && data(whole).length === 9 && data(again).length === 6)
      assert.deepEqual(data(heard), numbers(3, 9))
      assert.deepEqual(data(again), numbers(4, 9))
      assert.deepEqual(data(whole), numbers(1, 9))
      old.close()
      await server.publish('old', 10)
      await until(() => data(whole).length === 10)
      assert.deepEqual(data(heard), numbers(3, 9))
      assert.deepEqual(data(one), [1])
      assert.deepEqual(data(all), [1, 2])
    })

    test(`${transport}: subscriptions that come while messages do get each of them once`, async () => {
      const { server, rejoin } = await begin([], only)
      const told = [record(rejoin.subscribe('t'))]
      await until(() => has(told[0], 'subscribed'))
      const lines = from => numbers(from, from + 9).map(n => JSON.stringify({ topic: 't', data: n })).join('\n')
      const headers = { 'Content-Type': 'application/x-ndjson' }
      for (let n = 1; n <= 291; n += 10) {
        // Neither the requests nor the subscriptions wait for each other, so their order differs each time.
        const sent = fetch(server.url + '/publish', { method: 'POST', headers, body: lines(n) })
        if (n % 50 === 1) told.push(record(rejoin.subscribe(n % 100 === 1 ? 't' : '*', { after: '0' })))
        await sent
      }
      await until(() => told.every(it => data(it).length >= 300))
      await server.publish('t', 301)
      await until(() => told.every(it => data(it).includes(301)))
      for (const all of told) assert.deepEqual(data(all), numbers(1, 301))
    })

    test(`${transport}: a cut loses nothing and doubles nothing`, async () => {
      const { server, proxy, rejoin } = await begin([], only)
      const told = record(rejoin.subscribe('t'))
      await until(() => has(told, 'subscribed'))
      for (let n = 1; n <= 30; n++) {
        if (n % 10 === 5) proxy.cut()
        await server.publish('t', n)
        if (n % 10 === 9) proxy.mend()
        if (n % 10 === 0) await until(() => data(told).length === n)
      }
      assert.deepEqual(data(told), numbers(1, 30))
      assert.ok(!has(told, 'gap'))
    })
  }

  test('the client resumes after a restart with a state file, and is told a gap without one', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'rejoin-'))
    const flags = ['--state', join(folder, 'state')]
    const first = await Server.start(flags)
    const rejoin = connect(first.url, { WebSocket: socketFrom(first.url) })
    ends.push(() => rejoin.close(), () => rmSync(folder, { recursive: true }))
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    await first.publish('t', 1)
    await until(() => data(told).length === 1)
    await first.stop()
    const second = await Server.start(flags, first.port)
    await second.publish('t', 2)
    await until(() => data(told).length === 2)
    assert.ok(!has(told, 'gap'))
    await second.stop('SIGKILL')
    const third = await Server.start([], first.port)
    ends.push(() => third.stop('SIGKILL'))
    await third.publish('t', 3)
    await until(() => data(told).length === 3)
    assert.deepEqual(told.slice(1).map(it => it.data ?? it.reason), [1, 2, 'restarted', 3])
  })

  for (const transport of TRANSPORTS) {
    test(`${transport}: a restart without a state file is told in each topic, even if nothing comes after it`, async () => {
      const first = await Server.start()
      const rejoin = connect(first.url, { WebSocket: socketFrom(first.url), transports: [transport] })
      ends.push(() => rejoin.close())
      const all = ['a', 'b', 'c.*'].map(topic => record(rejoin.subscribe(topic)))
      await until(() => all.every(told => has(told, 'subscribed')))
      for (const topic of ['a', 'b', 'c.1']) await first.publish(topic, 1)
      await until(() => all.every(told => data(told).length === 1))
      await first.stop('SIGKILL')
      const second = await Server.start([], first.port)
      ends.push(() => second.stop('SIGKILL'))
      await until(() => all.every(told => has(told, 'gap')), 'a gap in each topic')
      await second.publish('a', 2)
      await until(() => data(all[0]).length === 2)
      assert.deepEqual(all.map(told => told.filter(it => it.type === 'gap').map(it => it.reason)), [['restarted'], ['restarted'], ['restarted']])
    })
  }

  for (const transport of TRANSPORTS) {
    test(`${transport}: a gap is told before the messages after it, and loads the state again`, async () => {
      const { server, proxy, rejoin } = await begin(['--retain-messages', '2'], { transports: [transport] })
      let loads = 0
      const told = record(rejoin.subscribe('t', {
        state: async () => {
          if (++loads === 1) throw new Error('the backend is away')
          await new Promise(resume => setTimeout(resume, 50))
          told.push({ type: 'message', data: 'state' })
        },
      }))
      await until(() => has(told, 'subscribed'))
      await server.publish('t', 1)
      await until(() => data(told).length === 2)
      assert.deepEqual(data(told), ['state', 1])
      proxy.cut()
      for (let n = 2; n <= 6; n++) await server.publish('t', n)
      proxy.mend()
      await until(() => data(told).length === 5)
      assert.deepEqual(told.slice(3).map(it => it.data ?? it.reason), ['retention', 'state', 5, 6])
      assert.equal(loads, 3)
      assert.throws(() => rejoin.subscribe('t', { state() {}, last: 1 }), TypeError)
    })
  }

  test('messages beyond a thousand that wait for the state are read again', async () => {
    const { server, rejoin } = await begin(['--retain-messages', '5000'])
    let loaded
    const told = record(rejoin.subscribe('t', { state: () => new Promise(done => { loaded = done }) }))
    await until(() => loaded)
    await server.publish('t', 0)
    const lines = numbers(1, 1500).map(n => JSON.stringify({ topic: 't', data: n })).join('\n')
    const headers = { 'Content-Type': 'application/x-ndjson' }
    await fetch(server.url + '/publish', { method: 'POST', headers, body: lines })
    const last = await server.publish('t', 1501)
    await until(() => rejoin.cursor === last)
    assert.deepEqual(data(told), [])
    loaded()
    await until(() => data(told).length >= 1502)
    await server.publish('t', 1502)
    await until(() => data(told).includes(1502))
    assert.deepEqual(data(told), numbers(0, 1502))
  })

  for (const transport of TRANSPORTS) {
    test(`${transport}: a token is renewed before its end, and no message is lost`, async () => {
      // A poll has no connection that a token could keep. So its backend may also be away for a moment.
      const isPoll = transport === 'poll', life = isPoll ? 5 : 20
      const tokens = []
      const { server, rejoin } = await begin(['--jwt-secret', SECRET], {
        transports: [transport],
        token: async () => {
          tokens.push(Date.now())
          if (isPoll && tokens.length === 2) throw new Error('the backend is away')
          return mint('u1', life)
        },
      })
      server.key = mint('backend', 600)
      const states = []
      rejoin.on('state', state => states.push(state))
      const told = record(rejoin.subscribe('t'))
      await until(() => has(told, 'subscribed'))
      let n = 0
      while (tokens.length < (isPoll ? 3 : 2)) {
        await server.publish('t', ++n)
        await new Promise(resume => setTimeout(resume, 50))
      }
      // The first token has ended by now.
      while (Date.now() < tokens[0] + life * 1000 + 500) {
        await server.publish('t', ++n)
        await new Promise(resume => setTimeout(resume, 50))
      }
      await server.publish('t', ++n)
      await until(() => data(told).includes(n))
      assert.deepEqual(data(told), numbers(1, n))
      if (!isPoll) assert.deepEqual(states, ['live'], 'no connection was lost')
    })

    test(`${transport}: a topic that is refused is told, and the others go on`, async () => {
      const { server, rejoin } = await begin(['--jwt-secret', SECRET], {
        transports: [transport],
        token: () => mint('u1', 60, { subscribe: ['mine', 'late'] }),
      })
      server.key = mint('backend', 600)
      const mine = record(rejoin.subscribe('mine')), other = record(rejoin.subscribe('other'))
      await until(() => has(mine, 'subscribed') && has(other, 'refused'))
      const late = record(rejoin.subscribe('late')), later = record(rejoin.subscribe('never'))
      await until(() => has(late, 'subscribed') && has(later, 'refused'))
      await server.publish('mine', 1)
      await server.publish('late', 2)
      await until(() => data(mine).length && data(late).length)
      assert.deepEqual(other.map(it => [it.type, it.code]), [['refused', 'forbidden']])
      assert.equal(rejoin.state, 'live')
    })

    // The first ended the whole client, and the second was asked for again and again.
    test(`${transport}: a start or a name that cannot be is refused for its subscription alone`, async () => {
      const { server, rejoin } = await begin([], { transports: [transport] })
      const told = record(rejoin.subscribe('t')), early = record(rejoin.subscribe('early', { since: 'soon' }))
      await until(() => has(told, 'subscribed') && has(early, 'refused'))
      const late = [record(rejoin.subscribe('t', { since: 'soon' })), record(rejoin.subscribe('long'.repeat(200)))]
      await until(() => late.every(it => has(it, 'refused')))
      const other = record(rejoin.subscribe('other'))
      await until(() => has(other, 'subscribed'))
      await server.publish('other', 1)
      await server.publish('t', 1)
      await until(() => data(other).length && data(told).length)
      assert.equal(has(told, 'refused'), false)
      assert.deepEqual([...early, ...late.flat()].filter(it => it.type === 'refused').map(it => it.code), Array(3).fill('bad_request'))
      assert.notEqual(rejoin.state, 'refused')
    })

    test(`${transport}: a token that is refused twice is final, and told once`, async () => {
      let asked = 0
      const { rejoin } = await begin(['--jwt-secret', SECRET], { transports: [transport], token: () => 'no.good.' + ++asked })
      const told = []
      rejoin.on('refused', error => told.push(error.code))
      const loop = (async () => { for await (const _ of rejoin.subscribe('t')); })()
      await assert.rejects(loop, { code: 'unauthorized' })
      assert.deepEqual([told, rejoin.state], [['unauthorized'], 'refused'])
      // An attempt that a busy machine cuts off may ask once more.
      assert.ok(asked >= 2 && asked <= 4, `asked ${asked} times`)
    })
  }

  test('a token that ended while the server was away is asked for again', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    let asked = 0
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'], token: () => 'token' + ++asked })
    ends.push(() => rejoin.close())
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    Socket.isAway = true
    Socket.all[0].onclose({ code: 4201, reason: 'token_expired' })
    await until(() => Socket.all.length === 2)
    Socket.isAway = false
    Socket.all[1].onclose({ code: 4201, reason: 'token_expired' })
    await until(() => rejoin.state === 'live')
    assert.deepEqual([asked, has(told, 'refused')], [3, false])
  })

  test('a transport that does not work gives way to the next, and is remembered', async () => {
    const { server, proxy, rejoin } = await begin()
    proxy.refuses = head => head.startsWith('GET') || head.includes('x-ndjson')
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    await server.publish('t', 1)
    await until(() => data(told).length === 1)
    proxy.seen.length = 0
    proxy.cut()
    await until(() => rejoin.state === 'waiting')
    proxy.mend()
    await server.publish('t', 2)
    await until(() => data(told).length === 2)
    assert.ok(proxy.seen.length && proxy.seen.every(head => head.startsWith('POST')), String(proxy.seen))
  })

  test('an overloaded server is asked again', async () => {
    const { server, rejoin } = await begin(['--max-connections', '1'], { transports: ['poll'] })
    const other = connect(server.url, { transports: ['ndjson'] })
    ends.push(() => other.close())
    const held = record(other.subscribe('t'))
    await until(() => has(held, 'subscribed'))
    const told = record(rejoin.subscribe('t')), refused = []
    rejoin.on('refused', error => refused.push(error))
    await until(() => rejoin.state === 'waiting')
    other.close()
    await until(() => has(told, 'subscribed'))
    await server.publish('t', 1)
    await until(() => data(told).length)
    assert.ok(!has(told, 'refused') && !refused.length)
  })

  test('a publish is repeated with its key until it is answered, one after the other', async () => {
    const { server, proxy, rejoin } = await begin([], { echo: false })
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    assert.ok(await rejoin.publish('t', 1))
    await server.publish('t', 'from another')
    proxy.cut()
    const all = [2, 3, 4].map(n => rejoin.publish('t', n))
    await until(() => rejoin.state === 'waiting')
    proxy.mend()
    const ids = (await Promise.all(all)).map(Number)
    assert.deepEqual(ids, [...ids].sort())
    await until(() => rejoin.state === 'live')
    assert.equal(await rejoin.publish('t', 'gone', { ephemeral: true }), undefined)
    await server.publish('t', 'last')
    await until(() => data(told).includes('last'))
    assert.deepEqual(data(told), ['from another', 'gone', 'last'])
    const page = await (await fetch(server.url + '/topics/t?after=0&wait=0')).json()
    assert.deepEqual(page.messages.map(it => it.data), [1, 'from another', 2, 3, 4, 'last'])
    await assert.rejects(rejoin.publish('not.*.a topic', 1), { code: 'bad_request' })
  })

  test('a loop gets every message however slow it is, and closes its subscription', async () => {
    const { server, rejoin } = await begin(['--retain-messages', '5000'])
    const orders = rejoin.subscribe('t', { after: '0' }), got = []
    let isDone = false
    orders.on('subscribed', async () => {
      const lines = numbers(1, 2500).map(n => JSON.stringify({ topic: 't', data: n })).join('\n')
      const headers = { 'Content-Type': 'application/x-ndjson' }
      await fetch(server.url + '/publish', { method: 'POST', headers, body: lines })
      isDone = true
    })
    for await (const message of orders) {
      if (!got.length) await until(() => isDone)
      got.push(message.data)
      if (got.length === 2500) break
    }
    assert.deepEqual(got, numbers(1, 2500))
    const stats = await (await fetch(server.url + '/topics')).json()
    await until(() => stats.topics.length)
    rejoin.close()
    assert.equal(rejoin.state, 'closed')
  })

  test('many topics are subscribed by command, not in the URL', async () => {
    const { server, rejoin, proxy } = await begin()
    const name = n => 'topic-with-a-long-name-to-fill-the-url.' + n
    const told = numbers(1, 1000).map(n => record(rejoin.subscribe(name(n))))
    await until(() => told.every(it => has(it, 'subscribed')))
    await server.publish(name(1), 1)
    await server.publish(name(1000), 1000)
    await until(() => data(told[0]).length && data(told[999]).length)
    assert.ok(proxy.seen.every(head => head.length < 8300), proxy.seen[0].slice(0, 100))
  })

  test('topics that the server adds are subscriptions, with what was replayed before, and the life of a token counts', async () => {
    const Socket = scripted({ mine: ['mine.a'], expires_in_ms: 1000, heartbeat_ms: 25_000 })
    let asked = 0
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, mine: true, token: () => 'token ' + ++asked })
    ends.push(() => rejoin.close())
    const added = [], got = []
    rejoin.on('subscription', subscription => {
      added.push(subscription.topic)
      subscription.on('message', ({ data }) => got.push(data))
    })
    await until(() => added.length === 1)
    const [socket] = Socket.all
    assert.equal(new URL(socket.url).searchParams.get('mine'), '')
    socket.say({ type: 'message', topic: 'mine.a', id: '1001', data: 1 })
    socket.say({ type: 'message', topic: 'added', id: '900', data: 2, replay: true })
    socket.say({ type: 'subscribed', topic: 'added', cursor: '1001', by: 'server' })
    socket.say({ type: 'message', topic: 'added', id: '1002', data: 3 })
    socket.say({ type: 'unsubscribed', topic: 'added', cursor: '1002', by: 'server' })
    socket.say({ type: 'message', topic: 'added', id: '1003', data: 4 })
    assert.deepEqual([added, got, rejoin.cursor], [['mine.a', 'added'], [1, 2, 3], '1003'])
    await until(() => socket.sent.some(it => it.type === 'auth' && it.token === 'token 2'))
    assert.equal(Socket.all.length, 1)
  })

  test('what is replayed for a topic that the server adds is told', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    const added = {}
    rejoin.on('subscription', subscription => { added[subscription.topic] = record(subscription) })
    rejoin.on('open', () => {})
    await until(() => rejoin.state === 'live')
    const [socket] = Socket.all
    const replay = (topic, id, pattern) => socket.say({ type: 'message', topic, id: String(id), data: id, replay: true, pattern })
    const adds = topic => socket.say({ type: 'subscribed', topic, cursor: '2000', by: 'server' })
    const answers = topic => socket.say({ type: 'subscribed', topic, cursor: '2000', ref: 1 })
    const ids = told => told.map(it => it.data ?? it.reason).filter(it => it)

    const b = record(rejoin.subscribe('b', { last: 10 }))
    replay('a', 900)
    adds('a')
    assert.deepEqual([ids(added.a), ids(b)], [[900], []], 'a command about another topic waits')
    replay('b', 800)
    answers('b')
    assert.deepEqual([ids(added.a), ids(b)], [[900], [800]])

    const c = record(rejoin.subscribe('c.1', { last: 10 }))
    replay('c.1', 900, 'c.*')
    adds('c.*')
    replay('c.1', 800)
    answers('c.1')
    assert.deepEqual([ids(added['c.*']), ids(c)], [[900], [800]])

    const d = record(rejoin.subscribe('d.*', { last: 10 }))
    assert.deepEqual(socket.sent.at(-1), { type: 'subscribe', topic: 'd.*', last: 10, ref: 1 })
    replay('d.1', 900)
    adds('d.1')
    replay('d.2', 800, 'd.*')
    assert.deepEqual([ids(added['d.1']), ids(d)], [[900], []])
    answers('d.*')
    assert.deepEqual(ids(d), [800])

    for (let id = 1; id <= 1500; id++) replay('e', id)
    adds('e')
    assert.deepEqual(ids(added.e), numbers(1, 1500))
  })

  test('frames about other topics in the middle of a replay take nothing from it', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    const added = {}
    rejoin.on('subscription', subscription => { added[subscription.topic] = record(subscription) })
    const all = record(rejoin.subscribe('a.*')), closed = rejoin.subscribe('closed'), taken = record(rejoin.subscribe('taken'))
    await until(() => has(all, 'subscribed') && has(taken, 'subscribed'))
    const [socket] = Socket.all
    const replay = (topic, id, pattern) => socket.say({ type: 'message', topic, id: String(id), data: id, replay: true, pattern })
    const server = (type, topic) => socket.say({ type, topic, cursor: '1000', by: 'server' })

    replay('a.1', 1)
    closed.close()
    socket.say({ type: 'unsubscribed', topic: 'closed', cursor: '1000', ref: 1 })
    replay('a.1', 2)
    const refused = record(rejoin.subscribe('**'))
    socket.say({ type: 'error', code: 'forbidden', detail: 'no', topic: '**', ref: 1 })
    assert.ok(has(refused, 'refused'))
    replay('a.1', 3)
    server('subscribed', 'a.*')
    replay('a.1', 4)
    server('unsubscribed', 'taken')
    assert.ok(has(taken, 'refused'))
    replay('a.1', 5)
    server('subscribed', 'a.1')
    assert.deepEqual([data(added['a.1']), data(added['a.*']), data(all)], [numbers(1, 5), [], []])

    // A topic that is removed before it was added.
    replay('b', 1)
    server('unsubscribed', 'b')
    replay('b', 8)
    server('subscribed', 'b')
    assert.deepEqual(data(added.b), [8])
  })

  test('polls read the list of the subject without a topic of the page, and follow its changes', async () => {
    const page = (cursor, mine, ...messages) => ({ cursor, mine, messages })
    const message = (topic, id) => ({ type: 'message', topic, id, data: Number(id) })
    const changed = page('1003', ['a', 'b'], message('a', '1002'), message('b', '1003'))
    const pages = [page('1000', ['a']), page('1001', ['a'], message('a', '1001')), changed, changed]
    const stub = createServer((request, answer) => {
      const next = pages.shift()
      if (next) answer.end(JSON.stringify(next))
    })
    stub.listen(0, '127.0.0.1')
    await once(stub, 'listening')
    const rejoin = connect(`http://127.0.0.1:${stub.address().port}/`, { transports: ['poll'], mine: true })
    ends.push(() => rejoin.close(), () => stub.close(), () => stub.closeAllConnections())
    const given = {}
    rejoin.on('subscription', subscription => { given[subscription.topic] = record(subscription) })
    await until(() => given.b && data(given.b).length)
    assert.deepEqual([data(given.a), data(given.b)], [[1001, 1002], [1003]])
  })

  test('the backend takes a topic, and the page gives one back', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    const told = record(rejoin.subscribe('t')), given = []
    rejoin.on('subscription', subscription => given.push(subscription))
    await until(() => has(told, 'subscribed'))
    const [socket] = Socket.all
    const says = (type, topic) => socket.say({ type, topic, cursor: '1000', by: 'server' })
    says('unsubscribed', 't')
    assert.deepEqual(told.slice(1).map(it => [it.type, it.code, it.topic]), [['refused', 'conflict', 't']])
    says('subscribed', 'a')
    const heard = record(given[0])
    says('unsubscribed', 'a')
    assert.deepEqual(heard.map(it => [it.type, it.code, it.topic]), [['refused', 'conflict', 'a']])
    assert.deepEqual(socket.sent, [])
    says('subscribed', 'b')
    given[1].close()
    assert.deepEqual(socket.sent, [{ type: 'unsubscribe', topic: 'b', ref: 1 }])
    rejoin.subscribe('t')
    assert.deepEqual(socket.sent[1], { type: 'subscribe', topic: 't', ref: 1 })
  })

  test('a stream without topics waits for those that the backend adds', async () => {
    const { server, rejoin } = await begin([], { transports: ['ndjson'] })
    const opens = [], given = []
    rejoin.on('subscription', subscription => given.push(record(subscription)))
    rejoin.on('open', open => opens.push(open))
    await until(() => opens.length === 1)
    assert.equal(rejoin.state, 'live')
    const path = `${server.url}/connections/${opens[0].connection}/topics/added`
    assert.equal((await fetch(path, { method: 'PUT' })).status, 204)
    await until(() => given.length)
    await server.publish('added', 1)
    await until(() => data(given[0]).length)
    const one = rejoin.subscribe('t'), told = record(one)
    await until(() => has(told, 'subscribed') && opens.length === 2)
    one.close()
    await until(() => opens.length === 3)
    assert.equal(rejoin.state, 'live')
  })

  test('a topic that the server has added is read from the start that the page asks for', async () => {
    const { server, rejoin } = await begin([], { transports: ['ws'] })
    const opens = [], given = []
    rejoin.on('subscription', subscription => given.push(record(subscription)))
    rejoin.on('open', open => opens.push(open))
    await until(() => opens.length)
    for (let n = 1; n <= 5; n++) await server.publish('added', n)
    await fetch(`${server.url}/connections/${opens[0].connection}/topics/added`, { method: 'PUT' })
    await until(() => given.length)
    const told = record(rejoin.subscribe('added', { last: 3 }))
    await until(() => has(told, 'subscribed'))
    await server.publish('added', 6)
    await until(() => data(told).includes(6))
    assert.deepEqual([data(told), data(given[0])], [numbers(3, 6), [6]])
  })

  test('a start that the client may not read is refused, and what the server has added goes on', async () => {
    const { server, rejoin } = await begin(['--jwt-secret', SECRET], {
      transports: ['ws'], token: () => mint('u1', 60, { subscribe: ['own'] }),
    })
    server.key = mint('backend', 600, { admin: true, publish: ['**'] })
    const opens = [], given = []
    rejoin.on('subscription', subscription => given.push(record(subscription)))
    rejoin.on('open', open => opens.push(open))
    await until(() => opens.length)
    await server.ask('PUT', `/connections/${opens[0].connection}/topics/added`)
    await until(() => given.length)
    const told = record(rejoin.subscribe('added', { last: 3 }))
    await until(() => has(told, 'refused'))
    await server.publish('added', 1)
    await until(() => data(given[0]).length)
    assert.deepEqual([has(given[0], 'refused'), opens.length, rejoin.state], [false, 1, 'live'])
  })

  test('a second subscription is told only when its topic is read', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    rejoin.on('open', () => {})
    await until(() => rejoin.state === 'live')
    const both = [record(rejoin.subscribe('t')), record(rejoin.subscribe('t'))]
    await new Promise(resume => setTimeout(resume, 50))
    assert.deepEqual(both, [[], []], 'the answer has not come')
    Socket.all[0].say({ type: 'subscribed', topic: 't', cursor: '1000', ref: 1 })
    await until(() => both.every(told => has(told, 'subscribed')))
    assert.equal(Socket.all[0].sent.length, 1)
  })

  test('a subscription to a topic that is read already is told after the page has it', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    const first = record(rejoin.subscribe('t'))
    await until(() => has(first, 'subscribed'))
    const second = record(rejoin.subscribe('t'))
    await until(() => has(second, 'subscribed'))
    Socket.all[0].say({ type: 'message', topic: 't', id: '1001', data: 1 })
    assert.deepEqual([data(first), data(second)], [[1], [1]])
  })

  test('a gap that says no end is told to a subscription that stands further', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    const told = record(rejoin.subscribe('t'))
    await until(() => has(told, 'subscribed'))
    Socket.all[0].say({ type: 'gap', topic: 't', after: '990', next: null, cursor: '990', reason: 'restarted' })
    assert.deepEqual(told.map(it => it.type), ['subscribed', 'gap'])
  })

  test('a subscription that is closed while its connection opens is not read', async () => {
    const { server, rejoin, proxy } = await begin([], { transports: ['ndjson'] })
    rejoin.on('open', () => {})
    const other = record(rejoin.subscribe('other')), one = rejoin.subscribe('t')
    await until(() => proxy.seen.length)
    one.close()
    await until(() => has(other, 'subscribed'))
    for (let looks = 0; ; looks++) {
      const { connections } = await (await fetch(server.url + '/connections')).json()
      if (connections.length === 1 && '' + connections[0].topics === 'other') break
      assert.ok(looks < 300, JSON.stringify(connections))
      await new Promise(resume => setTimeout(resume, 20))
    }
  })

  test('a silence of one and a half heartbeats ends a connection, and what it still brings is dropped', async () => {
    const Socket = scripted({ heartbeat_ms: 200 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    const told = record(rejoin.subscribe('t'))
    await until(() => Socket.all.length === 2)
    const [first, second] = Socket.all
    first.say({ type: 'message', topic: 't', id: '1001', data: 'late' })
    await until(() => rejoin.state === 'live')
    second.say({ type: 'message', topic: 't', id: '1001', data: 'once' })
    assert.deepEqual(data(told), ['once'])
    assert.equal(new URL(second.url).searchParams.get('after'), '1000')
  })
})

describe('the list of the subject', { concurrency: true }, () => {
  for (const transport of TRANSPORTS) {
    async function start(flags = []) {
      const found = await begin(['--jwt-secret', SECRET, ...flags], { transports: [transport], mine: true, token: () => mint('u1', 60) })
      const { server, rejoin } = found, given = {}, opens = []
      server.key = mint('backend', 600, { admin: true, publish: ['**'] })
      rejoin.on('subscription', subscription => { given[subscription.topic] = record(subscription) })
      rejoin.on('open', open => opens.push(open))
      return { ...found, given, opens, list: (method, topic) => server.ask(method, `/subjects/u1/topics/${topic}`) }
    }

    test(`${transport}: its topics are told at the beginning, and when it changes`, async () => {
      const { server, rejoin, given, opens, list } = await start()
      await until(() => opens.length)
      assert.deepEqual(opens[0].mine, [])
      await list('PUT', 'a')
      await server.publish('a', 1)
      await until(() => given.a && data(given.a).length)
      await list('PUT', 'b.*')
      await server.publish('b.1', 1)
      await server.publish('a', 2)
      await until(() => given['b.*'] && data(given['b.*']).length && data(given.a).length === 2)
      // A topic of the page begins with its own messages alone.
      await server.publish('own', 1)
      const own = record(rejoin.subscribe('own', { after: '0' }))
      await until(() => has(own, 'subscribed'))
      await server.publish('own', 2)
      await until(() => data(own).length === 2)
      assert.deepEqual(own.filter(it => it.type === 'message').map(it => it.topic), ['own', 'own'])
      await list('DELETE', 'a')
      await server.publish('a', 3)
      await server.publish('b.1', 2)
      await until(() => has(given.a, 'refused'))
      assert.equal(given.a.at(-1).code, 'conflict')
      await until(() => data(given['b.*']).length === 2)
      assert.deepEqual([data(given.a), data(given['b.*']), rejoin.state], [[1, 2], [1, 2], 'live'])
    })

    test(`${transport}: a cut loses nothing of it, and what has left it meanwhile is told`, async () => {
      const { server, proxy, rejoin, given, list } = await start()
      await list('PUT', 'a')
      await list('PUT', 'b')
      // A poll may begin after the second change: then its message tells it.
      await server.publish('b', 1)
      await until(() => given.a && given.b)
      await server.publish('a', 1)
      await until(() => data(given.a).length)
      proxy.cut()
      await until(() => rejoin.state === 'waiting')
      await server.publish('a', 2)
      await list('DELETE', 'b')
      proxy.mend()
      await until(() => data(given.a).length === 2 && has(given.b, 'refused'))
      await server.publish('a', 3)
      await until(() => data(given.a).length === 3)
      assert.deepEqual(data(given.a), [1, 2, 3])
    })

    test(`${transport}: a topic that the page reads too keeps coming when it leaves the list`, async () => {
      const { server, rejoin, given, list } = await start()
      await list('PUT', 'a')
      const own = record(rejoin.subscribe('a'))
      await until(() => given.a && has(own, 'subscribed'))
      await server.publish('a', 1)
      await list('DELETE', 'a')
      await server.publish('a', 2)
      await until(() => has(given.a, 'refused'))
      await server.publish('a', 3)
      await until(() => data(own).length === 3)
      assert.deepEqual([data(own), has(own, 'refused')], [[1, 2, 3], false])
    })
  }

  test('a list that the store may have lost is a gap in each of its topics', async () => {
    const Socket = scripted({ heartbeat_ms: 25_000, mine: ['a'] })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'], mine: true })
    ends.push(() => rejoin.close())
    let told
    rejoin.on('subscription', subscription => { told = record(subscription) })
    const own = record(rejoin.subscribe('own'))
    await until(() => told && has(own, 'subscribed'))
    Socket.all[0].say({ type: 'gap', topic: '$mine', after: '1000', next: null, cursor: '1010', reason: 'restarted' })
    assert.deepEqual([told.at(-1).reason, has(own, 'gap')], ['restarted', false])
  })
})

describe('presence', { concurrency: true }, () => {
  for (const transport of TRANSPORTS) {
    test(`${transport}: a subject that is present is a member, and leaves`, async () => {
      const { server, proxy, rejoin } = await begin(['--jwt-secret', SECRET, '--presence-grace', '1s'], {
        transports: [transport], token: () => mint('u1', 60, { subscribe: ['**'], presence: ['**'] }),
      })
      const guest = connect(proxy.url, {
        WebSocket: socketFrom(proxy.url), transports: [transport], token: () => mint('u2', 60, { subscribe: ['room.*'] }),
      })
      ends.push(() => guest.close())
      const room = await rejoin.presence('room.1'), told = []
      for (const type of ['members', 'join', 'leave']) room.on(type, event => told.push([type, event.sub ?? event.map(it => it.sub)]))
      await until(() => told.length === 1)
      const present = guest.subscribe('room.1', { presence: true })
      await until(() => told.length === 3)
      assert.deepEqual(room.members.get('u2').info, null)
      present.close()
      await until(() => told.length === 5)
      assert.deepEqual(told, [['members', []], ['join', 'u2'], ['members', ['u2']], ['leave', 'u2'], ['members', []]])
      const refused = await guest.presence('room.1'), codes = []
      refused.on('refused', error => codes.push(error.code))
      await until(() => codes.length)
      assert.deepEqual(codes, ['forbidden'])
      assert.equal(server.process.exitCode, null)
    })
  }

  /** A server with these pages of members, and a socket that the test speaks for. */
  async function room(pages) {
    const asked = []
    const stub = createServer((request, answer) => {
      asked.push([request.method, request.url, request.headers.authorization])
      answer.setHeader('Content-Type', 'application/json')
      answer.end(JSON.stringify(pages.shift()))
    })
    stub.listen(0, '127.0.0.1')
    await once(stub, 'listening')
    const Socket = scripted({ heartbeat_ms: 25_000 })
    const url = `http://127.0.0.1:${stub.address().port}/`
    const rejoin = connect(url, { WebSocket: Socket, transports: ['ws'], token: () => 'token' })
    ends.push(() => rejoin.close(), () => stub.close(), () => stub.closeAllConnections())
    const presence = await rejoin.presence('room.1'), told = []
    for (const type of ['members', 'join', 'leave']) presence.on(type, event => told.push([type, event.sub ?? event.map(it => it.sub)]))
    return { presence, told, asked, Socket, url, rejoin }
  }
  const changes = (socket, id, event, sub) =>
    socket.say({ type: 'message', topic: '$presence.room.1', id, event, data: { sub, info: null } })

  test('members come from all pages, then the changes after the cursor of the first', async () => {
    const { presence, told, asked, Socket } = await room([
      { cursor: '1005', count: 2, members: [{ sub: 'u1' }], next: 'u1' },
      { cursor: '1009', count: 2, members: [{ sub: 'u2' }] },
    ])
    await until(() => told.length === 1)
    assert.deepEqual(asked, [
      ['GET', '/topics/room.1/presence?limit=1000', 'Bearer token'],
      ['GET', '/topics/room.1/presence?limit=1000&after=u1', 'Bearer token'],
    ])
    const [socket] = Socket.all
    assert.deepEqual(new URL(socket.url).searchParams.getAll('topic'), ['$presence.room.1'])
    changes(socket, '1004', 'leave', 'u1')
    changes(socket, '1006', 'join', 'u3')
    changes(socket, '1007', 'leave', 'u2')
    assert.deepEqual(told, [
      ['members', ['u1', 'u2']], ['join', 'u3'], ['members', ['u1', 'u2', 'u3']], ['leave', 'u2'], ['members', ['u1', 'u3']],
    ])
    presence.close()
    assert.deepEqual(socket.sent, [{ type: 'unsubscribe', topic: '$presence.room.1', ref: 1 }])
  })

  test('a gap loads the members again', async () => {
    const { told, Socket } = await room([
      { cursor: '1005', count: 1, members: [{ sub: 'u1' }] },
      { cursor: '1020', count: 1, members: [{ sub: 'u9' }] },
    ])
    await until(() => told.length === 1)
    Socket.all[0].say({ type: 'gap', topic: '$presence.room.1', after: '1005', next: null, cursor: '1015', reason: 'retention' })
    await until(() => told.length === 2)
    assert.deepEqual(told, [['members', ['u1']], ['members', ['u9']]])
  })

  test('a subscription with presence says so on each connection', async () => {
    const Socket = scripted({ heartbeat_ms: 200 })
    const rejoin = connect('http://127.0.0.1:1/', { WebSocket: Socket, transports: ['ws'] })
    ends.push(() => rejoin.close())
    rejoin.subscribe('room.1', { presence: true })
    rejoin.subscribe('other')
    await until(() => Socket.all.length === 2)
    await until(() => Socket.all[1].sent.length)
    for (const { sent } of Socket.all) assert.deepEqual(sent, [{ type: 'subscribe', topic: 'room.1', presence: true, ref: 1 }])
  })

  test('the flag is on a stream and on held polls, since a poll that is not held makes nobody present', async () => {
    for (const transport of ['ndjson', 'poll']) {
      const bodies = []
      const stub = createServer(async (request, answer) => {
        let text = ''
        for await (const part of request) text += part
        bodies.push(JSON.parse(text))
        if (transport === 'ndjson') return answer.write('{"type":"open","connection":"c","cursor":"1000","heartbeat_ms":25000}\n')
        if (bodies.length === 1) answer.end('{"cursor":"1000","messages":[]}')
      })
      stub.listen(0, '127.0.0.1')
      await once(stub, 'listening')
      const rejoin = connect(`http://127.0.0.1:${stub.address().port}/`, { transports: [transport] })
      ends.push(() => rejoin.close(), () => stub.close(), () => stub.closeAllConnections())
      rejoin.subscribe('room.1', { presence: true })
      await until(() => bodies.length === (transport === 'poll' ? 2 : 1))
      assert.deepEqual(bodies.map(it => [it.wait, it.presence]), transport === 'poll' ? [[0, false], [25, true]] : [[undefined, true]])
    }
  })
})
