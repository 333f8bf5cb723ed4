// Tabs that share one connection, and pages that the browser keeps, in Chromium.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { BadProxy } from './bad-proxy.mjs'
import { Browser, serveClient } from './chromium.mjs'
import { Proxy, SECRET, Server, mint, until } from './server.mjs'

const ends = []
let browser, origin, plain
before(async () => {
  // Tokens that end within the first seconds of a stream.
  origin = await serveClient(() => mint('u1', 3, { subscribe: ['a', 'b'] }))
  plain = origin.url.replace('127.0.0.1', 'push.test')
  browser = await Browser.start()
})
after(async () => {
  for (const end of ends) await end()
  await browser.stop()
  origin.close()
})

const numbers = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => from + at)

/** A server, and a function that opens tabs which read from it. */
async function begin(flags = [], Kind = Proxy) {
  const server = await Server.start(['--allowed-origin', origin.url.slice(0, -1), '--allowed-origin', plain.slice(0, -1), '--allowed-host', 'push.test', ...flags])
  ends.push(() => server.stop('SIGKILL'))
  const proxy = await Kind.before(server.port)
  ends.push(() => proxy.close())
  const tab = async (options, topics, place = origin.url, url = proxy.url, before = '0') => {
    const page = await browser.open(place)
    await page.until('window.ready')
    await page.run(before)
    await page.run(`begin(${JSON.stringify(url)}, ${options}, ${JSON.stringify(topics)})`)
    for (const topic of topics) await page.until(`has('subscribed', '${topic}')`)
    return page
  }
  return { server, proxy, tab }
}
const connections = async server =>
  (await (await fetch(server.url + '/connections', { headers: server.key && { Authorization: 'Bearer ' + server.key } })).json())
    .connections.map(it => it.connection)
const opens = page => page.run("told.filter(it => it.type === 'open').map(it => it.connection)")
async function hasAll(page, topic, last) {
  await page.until(`data('${topic}').includes(${last})`)
  assert.deepEqual(await page.run(`data('${topic}')`), numbers(1, last))
  assert.equal(await page.run("has('gap')"), false)
}

describe('tabs', { concurrency: 12 }, () => {
  test('three tabs share one connection, and go on when the leader is closed', async () => {
    const { server, tab } = await begin()
    const shared = "{ shared: 'u1' }"
    const tabs = [await tab(shared, ['a', 'x.*']), await tab(shared, ['a']), await tab(shared, ['a', 'b'])]
    assert.equal((await connections(server)).length, 1)
    let n = 0
    for (; n < 5;) await server.publish('a', ++n)
    await server.publish('b', 1)
    for (const page of tabs) await hasAll(page, 'a', n)
    await hasAll(tabs[2], 'b', 1)
    while (tabs.length > 1) {
      const [leader] = await connections(server)
      await tabs.shift().close()
      // These come while nobody leads, or while the next leader connects.
      for (let more = 0; more < 10; more++) await server.publish('a', ++n)
      for (const page of tabs) await hasAll(page, 'a', n)
      await tabs[0].until(`told.some(it => it.type === 'open' && it.connection !== '${leader}')`)
      assert.equal((await connections(server)).length, 1)
    }
    await server.publish('b', 2)
    await hasAll(tabs[0], 'b', 2)
  })

  // The leader gave up the topic with its own subscription, and the other tab waited in vain.
  test('a topic that the leader no longer reads goes on in the tabs that do', async () => {
    for (const transport of ['ws', 'ndjson']) {
      const { server, tab } = await begin()
      const options = `{ shared: '${transport} closes', transports: ['${transport}'] }`
      const leader = await tab(options, ['b'])
      await leader.run("void (window.own = read('a'))")
      await leader.until("has('subscribed', 'a')")
      const follower = await tab(options, ['a', 'b'])
      await server.publish('a', 1)
      for (const page of [leader, follower]) await hasAll(page, 'a', 1)
      await leader.run('own.close()')
      for (let n = 2; n <= 6; n++) await server.publish('a', n)
      await server.publish('b', 1)
      await hasAll(follower, 'a', 6)
      for (const page of [leader, follower]) await hasAll(page, 'b', 1)
      assert.deepEqual(await leader.run("data('a')"), [1])
      // A stream is replaced by another one, and both are open for a moment.
      await until(async () => (await connections(server)).length === 1)
    }
  })

  // The tab waited for the answer to its first request, which never comes. A strict mode of React does this.
  test('a topic that a tab reads, closes and reads again before the leader answers comes', async () => {
    for (const transport of ['ws', 'ndjson']) {
      const { server, tab } = await begin()
      const options = `{ shared: '${transport} again', transports: ['${transport}'] }`
      await tab(options, ['a'])
      const follower = await tab(options, ['a'])
      await follower.run("rejoin.subscribe('x').close(), void read('x')")
      await follower.until("has('subscribed', 'x')")
      await server.publish('x', 1)
      await hasAll(follower, 'x', 1)
    }
  })

  // The end of its own subscription at the leader cut the tab off.
  test('a topic that a tab closes and reads again at once costs no connection', async () => {
    const { server, tab } = await begin()
    const options = "{ shared: 'remount', transports: ['ws'] }"
    await tab(options, ['a'])
    const follower = await tab(options, ['a'])
    await follower.run("void (window.own = read('x'))")
    await follower.until("has('subscribed', 'x')")
    await server.publish('x', 1)
    await hasAll(follower, 'x', 1)
    const before = (await opens(follower)).length
    await follower.run("own.close(), void read('x')")
    await follower.until("told.filter(it => it.type === 'subscribed' && it.of === 'x').length === 2")
    await server.publish('x', 2)
    await server.publish('a', 1)
    for (const [topic, last] of [['x', 2], ['a', 1]]) await hasAll(follower, topic, last)
    assert.equal((await opens(follower)).length, before)
  })

  test('a mistake in a handler of a room stops no other one', async () => {
    const { tab } = await begin()
    const page = await tab('{}', [])
    await page.run(`rejoin.presence('room').then(room => {
      room.on('members', () => { throw new Error('a mistake of the page') })
      room.on('members', () => told.push({ type: 'members' }))
    })`)
    await page.until("has('members')")
  })

  test('a frozen leader loses its place, and steps down when it wakes', async () => {
    const { server, tab } = await begin(['--heartbeat', '1s'])
    const leader = await tab("{ shared: 'u1' }", ['a'])
    const follower = await tab("{ shared: 'u1' }", ['a'])
    const [first] = await connections(server)
    await leader.freeze(true)
    for (let n = 1; n <= 5; n++) await server.publish('a', n)
    await hasAll(follower, 'a', 5)
    assert.notEqual((await opens(follower)).at(-1), first, 'the follower leads')
    await leader.freeze(false)
    await hasAll(leader, 'a', 5)
    await leader.until(`told.filter(it => it.type === 'open').length > 1`)
    await server.publish('a', 6)
    await hasAll(leader, 'a', 6)
    await hasAll(follower, 'a', 6)
    // With so short a heartbeat a busy machine may lose the connection once more.
    await until(async () => (await connections(server)).length === 1)
    await until(async () => (await opens(leader)).at(-1) === (await opens(follower)).at(-1))
  })

  test('a leader that is frozen while it has no connection loses its place too', async () => {
    const { server, proxy, tab } = await begin(['--heartbeat', '1s'])
    const leader = await tab("{ shared: 'u1' }", ['a'])
    const follower = await tab("{ shared: 'u1' }", ['a'])
    proxy.cut()
    await leader.until("rejoin.state === 'waiting'")
    await leader.freeze(true)
    proxy.mend()
    for (let n = 1; n <= 5; n++) await server.publish('a', n)
    await hasAll(follower, 'a', 5)
    await leader.freeze(false)
    await hasAll(leader, 'a', 5)
    await server.publish('a', 6)
    await hasAll(leader, 'a', 6)
    await hasAll(follower, 'a', 6)
    await until(async () => (await connections(server)).length === 1)
  })

  test('two logins in one browser have a connection each', async () => {
    const { server, tab } = await begin()
    await tab("{ shared: 'u1' }", ['a'])
    await tab("{ shared: 'u2' }", ['a'])
    await tab("{ shared: 'u2', mine: false }", ['a'])
    assert.equal((await connections(server)).length, 2)
  })

  test('tabs without a token share a connection without a name, and other servers and versions have their own', async () => {
    const { server, proxy, tab } = await begin()
    for (let count = 0; count < 2; count++) await tab('{ shared: true }', ['a'])
    assert.equal((await connections(server)).length, 1)
    await tab('{ shared: true }', ['a'], origin.url + 'other-version/')
    assert.equal((await connections(server)).length, 2)
    await tab('{ shared: true }', ['a'], origin.url, proxy.url.replace('127.0.0.1', 'localhost'))
    assert.equal((await connections(server)).length, 3)
  })

  // A tab whose request for a lock was refused waited for ever.
  test('tabs whose locks the browser refuses connect by themselves', async () => {
    const { server, tab } = await begin()
    const refuse = "void (LockManager.prototype.request = () => Promise.reject(new DOMException('no', 'SecurityError')))"
    const tabs = []
    for (let count = 0; count < 2; count++) tabs.push(await tab("{ shared: 'refused' }", ['a'], undefined, undefined, refuse))
    assert.equal((await connections(server)).length, 2)
    for (let n = 1; n <= 3; n++) await server.publish('a', n)
    for (const page of tabs) await hasAll(page, 'a', 3)
  })

  test('a page of another host without TLS reads and publishes on each transport, each tab by itself', async () => {
    const { server, proxy, tab } = await begin()
    const url = proxy.url.replace('127.0.0.1', 'push.test')
    for (const transport of ['ws', 'ndjson', 'poll']) {
      const options = `{ shared: 'plain', transports: ['${transport}'] }`
      const tabs = [await tab(options, [transport], plain, url), await tab(options, [transport], plain, url)]
      assert.deepEqual(await tabs[0].run('[isSecureContext, typeof crypto.randomUUID, typeof navigator.locks]'), [false, 'undefined', 'undefined'])
      if (transport !== 'poll') assert.equal((await connections(server)).length, 2)
      assert.ok(await tabs[0].run(`rejoin.publish('${transport}', 1)`))
      for (const page of tabs) await hasAll(page, transport, 1)
      for (const page of tabs) await page.close()
      await until(async () => !(await connections(server)).length)
    }
  })

  for (const transport of ['ws', 'ndjson', 'poll']) {
    test(`${transport}: cuts of the connection lose nothing in any tab`, async () => {
      const { server, proxy, tab } = await begin()
      const options = `{ shared: '${transport}', transports: ['${transport}'] }`
      const tabs = [await tab(options, ['a']), await tab(options, ['a', 'b']), await tab(options, ['*'])]
      for (let n = 1; n <= 30; n++) {
        if (n % 10 === 5) proxy.cut()
        await server.publish('a', n)
        if (n % 10 === 9) proxy.mend()
        if (n === 15) await tabs[1].run("void read('late', { after: '0' })")
      }
      await server.publish('late', 1)
      await hasAll(tabs[0], 'a', 30)
      await hasAll(tabs[1], 'a', 30)
      await hasAll(tabs[1], 'late', 1)
      await tabs[2].until("data('*').length >= 31")
      assert.deepEqual(await tabs[2].run("data('*')"), [...numbers(1, 30), 1])
    })
  }

  for (const options of ['{}', "{ shared: 'kept' }"]) {
    test(`${options}: a page that is left closes its connection, and comes back from its cursor`, async () => {
      const { server, tab } = await begin()
      const page = await tab(options, ['a'])
      await server.publish('a', 1)
      await hasAll(page, 'a', 1)
      await page.go(origin.url + 'other')
      await page.until("document.title === 'other'")
      for (let looks = 0; looks < 100 && (await connections(server)).length; looks++) {
        await new Promise(resume => setTimeout(resume, 50))
      }
      assert.deepEqual(await connections(server), [])
      await server.publish('a', 2)
      await page.back()
      await page.until('window.ready')
      await hasAll(page, 'a', 2)
      assert.deepEqual(await page.run('shown.at(-1)'), true, 'the browser has kept the page')
    })
  }

  test('a leader that is closed while it waits for its token leaves the lead to the next tab', async () => {
    const { server, tab } = await begin(['--jwt-secret', SECRET])
    server.key = mint('backend', 600, { admin: true, publish: ['**'] })
    const token = JSON.stringify(mint('u1', 600, { subscribe: ['a'] }))
    const options = `{ shared: 'u1', token: () => ${token} }`
    // A tab that follows needs a token only once it leads.
    const slow = `{ shared: 'u1', token: () => new Promise(done => { window.give = () => done(${token}) }) }`
    const tabs = [await tab(options, ['a']), await tab(slow, ['a']), await tab(slow, ['a']), await tab(options, ['a'])]
    let n = 0
    for (let closed = 0; closed < 2; closed++) {
      await tabs.shift().close()
      await server.publish('a', ++n)
      await tabs[0].until('window.give')
      await server.publish('a', ++n)
    }
    await tabs[0].run('give()')
    await server.publish('a', ++n)
    for (const page of tabs) await hasAll(page, 'a', n)
    assert.equal((await connections(server)).length, 1)
  })

  test('a tab that cannot read what it has missed tries again', async () => {
    const { server, proxy, tab } = await begin()
    const options = "{ shared: 'u1', transports: ['ndjson'] }"
    const tabs = [await tab(options, ['a']), await tab(options, ['a'])]
    await server.publish('a', 1)
    for (const page of tabs) await hasAll(page, 'a', 1)
    await tabs[1].run("{ const real = fetch; window.polls = 0; window.fetch = (...all) => polls++ ? real(...all) : Promise.reject(new TypeError('away')) }")
    proxy.cut()
    for (let n = 2; n <= 5; n++) await server.publish('a', n)
    proxy.mend()
    await tabs[0].until("data('a').includes(5)")
    await tabs[1].until("polls > 0 && rejoin.state === 'live'")
    await server.publish('a', 6)
    for (const page of tabs) await hasAll(page, 'a', 6)
  })

  test('a tab that follows gets everything through a proxy that brings each stream only at its end', async () => {
    const { server, proxy, tab } = await begin(['--jwt-secret', SECRET, '--heartbeat', '1s'], BadProxy)
    server.key = mint('backend', 600, { publish: ['**'] })
    const options = "{ shared: 'u1', transports: ['ndjson'], token: () => fetch('/token').then(it => it.text()) }"
    const tabs = [await tab(options, ['a']), await tab(options, ['a', 'b'])]
    proxy.mode = 'buffers'
    proxy.cut()
    for (let n = 1; n <= 5; n++) await server.publish('a', n)
    await server.publish('b', 1)
    for (const page of tabs) await hasAll(page, 'a', 5)
    await hasAll(tabs[1], 'b', 1)
  })

  test('a topic that the server adds is read in every tab', async () => {
    const { server, tab } = await begin()
    const tabs = [await tab("{ shared: 'u1' }", ['a']), await tab("{ shared: 'u1' }", ['a'])]
    await server.publish('given', 1)
    const [connection] = await connections(server)
    const answer = await fetch(`${server.url}/connections/${connection}/topics/given?after=0`, { method: 'PUT' })
    assert.equal(answer.status, 204)
    await server.publish('given', 2)
    for (const page of tabs) await hasAll(page, 'given', 2)
    // A tab that comes later reads it too.
    const late = await tab("{ shared: 'u1' }", ['a'])
    await late.until("has('subscribed', 'given')")
    await server.publish('given', 3)
    for (const page of tabs) await hasAll(page, 'given', 3)
    assert.deepEqual(await late.run("data('given')"), [3])
  })

  // The leader gave the topic back for all tabs, and a new tab was told only what the leader still read.
  test('a topic of the server that the leader closes goes on in the other tabs, and in new ones', async () => {
    const { server, tab } = await begin([])
    const options = "{ shared: 'gift' }"
    const leader = await tab(options, ['a'])
    await leader.run("void rejoin.on('subscription', it => { window.gift = it })")
    const follower = await tab(options, ['a'])
    const [connection] = await connections(server)
    const answer = await fetch(`${server.url}/connections/${connection}/topics/given`, { method: 'PUT' })
    assert.equal(answer.status, 204)
    await server.publish('given', 1)
    for (const page of [leader, follower]) await hasAll(page, 'given', 1)
    await leader.run('gift.close()')
    // The server has taken what the leader sent before this is told.
    await leader.run("void read('after')")
    await leader.until("has('subscribed', 'after')")
    await server.publish('given', 2)
    await hasAll(follower, 'given', 2)
    const late = await tab(options, ['a'])
    await late.until("has('subscribed', 'given')")
    await server.publish('given', 3)
    await hasAll(follower, 'given', 3)
    await late.until("has('message', 'given')")
    assert.deepEqual([await leader.run("data('given')"), await late.run("data('given')")], [[1], [3]])
    // The leader may also have read it by itself.
    await leader.run("void (window.own = read('given'))")
    await leader.until("told.filter(it => it.type === 'subscribed' && it.of === 'given').length === 2")
    await leader.run('own.close()')
    await leader.run("void read('later')")
    await leader.until("has('subscribed', 'later')")
    await server.publish('given', 4)
    await hasAll(follower, 'given', 4)
    // What the server takes is gone in all tabs, and a new one is told nothing of it.
    await fetch(`${server.url}/connections/${connection}/topics/given`, { method: 'DELETE' })
    for (const page of [follower, late]) await page.until("has('refused', 'given')")
    const last = await tab(options, ['a'])
    assert.equal(await last.run("has('subscribed', 'given')"), false)
  })

  test('the list of the subject is read in every tab, and so are its changes', async () => {
    const { server, tab } = await begin(['--jwt-secret', SECRET])
    server.key = mint('backend', 600, { admin: true, publish: ['**'] })
    await server.ask('PUT', '/subjects/u1/topics/a')
    const options = `{ shared: 'u1', mine: true, token: () => '${mint('u1', 600)}' }`
    const tabs = [await tab(options, []), await tab(options, [])]
    for (const page of tabs) await page.until("has('subscribed', 'a')")
    assert.equal((await connections(server)).length, 1)
    await server.publish('a', 1)
    await server.ask('PUT', '/subjects/u1/topics/b')
    await server.publish('b', 1)
    for (const page of tabs) await hasAll(page, 'b', 1)
    await server.ask('DELETE', '/subjects/u1/topics/b')
    for (const page of tabs) await page.until("has('refused', 'b')")
    await tabs.shift().close()
    await server.publish('a', 2)
    await hasAll(tabs[0], 'a', 2)
  })

  test('a topic that one tab may not read is told there, and each tab has its token', async () => {
    const { server, tab } = await begin(['--jwt-secret', SECRET])
    server.key = mint('backend', 600)
    const token = mint('u1', 600, { subscribe: ['a'] })
    const options = `{ shared: 'u1', token: () => '${token}' }`
    const tabs = [await tab(options, ['a']), await tab(options, ['a'])]
    await tabs[1].run("void read('forbidden')")
    await tabs[1].until("has('refused', 'forbidden')")
    await server.publish('a', 1)
    for (const page of tabs) await hasAll(page, 'a', 1)
    assert.equal(await tabs[0].run("has('refused')"), false)
    // A token says nothing of who shares it.
    await tab(`{ shared: true, token: () => '${token}' }`, ['a'])
    await tab(`{ shared: true, token: () => '${token}' }`, ['a'])
    server.key = mint('backend', 600, { admin: true })
    assert.equal((await connections(server)).length, 3)
  })
})
