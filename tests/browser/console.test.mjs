// The parts of the console that need no page, in Node.
import assert from 'node:assert/strict'
import { get } from 'node:http'
import { describe, test } from 'node:test'
import { gunzipSync } from 'node:zlib'
import { Server, mint } from './server.mjs'

globalThis.location = new URL('http://127.0.0.1:1/')
globalThis.addEventListener = () => {}
const subscribe = ['news.{sub}', 'a.*', 'of.{claim.team}']
const signed = sub => ({ rejoin: JSON.stringify({ token: mint(sub, 60, { subscribe }) }) })
globalThis.sessionStorage = signed('u1')
const { granted, keep } = await import('../../web/console/api.js')
const { whileSeen } = await import('../../web/console/dom.js')
const { EventStream } = await import('../../web/console/sse.js')
const { Presence } = await import('../../web/console/presence.js')

describe('the console', () => {
  // The first silence counted from before the heartbeat was known, so a quiet topic lost its stream once.
  test('a stream of a quiet topic is kept for one and a half heartbeats from its first frame on', async ({ mock }) => {
    mock.timers.enable({ apis: ['setTimeout'] })
    const opened = 'retry: 1000\n\nid: 1000\nevent: rejoin.open\ndata: {"type":"open","cursor":"1000","heartbeat_ms":25000}\n\n'
    let body
    mock.method(globalThis, 'fetch', async (_, { signal }) => {
      body = new ReadableStream({ start(controller) {
        controller.enqueue(new TextEncoder().encode(opened))
        signal.onabort = () => controller.error(signal.reason)
      } })
      return new Response(body)
    })
    const stream = new EventStream({ url: 'http://127.0.0.1:1/lane-1' }, 'quiet', '1000'), states = []
    const settled = () => new Promise(setImmediate)
    stream.on('state', state => states.push(state))
    while (!states.includes('live')) await settled()
    for (const [ms, state] of [[37_000, 'live'], [1000, 'waiting']]) {
      mock.timers.tick(ms)
      for (let turns = 0; turns < 20; turns++) await settled()
      assert.equal(stream.state, state)
    }
    stream.close()
  })

  // The stream went on without a topic, and the lane said that messages were missing.
  test('a stream whose topic the backend has taken is refused', async ({ mock }) => {
    const event = (type, data) => `event: rejoin.${type}\ndata: ${JSON.stringify({ type, ...data })}\n\n`
    let say
    mock.method(globalThis, 'fetch', async () => new Response(new ReadableStream({ start(controller) {
      say = text => controller.enqueue(new TextEncoder().encode(text))
    } })))
    const stream = new EventStream({ url: 'http://127.0.0.1:1/lane-1' }, 'a', '1000'), refused = []
    stream.on('refused', problem => refused.push(problem.code))
    const settled = async () => { for (let turns = 0; turns < 20; turns++) await new Promise(setImmediate) }
    await settled()
    say(event('open', { cursor: '1000', heartbeat_ms: 25_000 }) + event('unsubscribed', { topic: 'b', cursor: '1000', by: 'server' }))
    await settled()
    assert.deepEqual([stream.state, refused], ['live', []])
    say(event('unsubscribed', { topic: 'a', cursor: '1000', by: 'server' }))
    await settled()
    assert.deepEqual([stream.state, refused], ['refused', ['conflict']])
    stream.close()
  })

  // The refusal of the topic of before stood below the name of the next one.
  test('a table of members shows no refusal of another topic', async ({ mock }) => {
    mock.timers.enable({ apis: ['setInterval'] })
    globalThis.document = { hidden: false }
    globalThis.IntersectionObserver = class { observe() {} }
    const parts = {}
    const part = name => parts[name] ??= { addEventListener() {}, replaceChildren() {}, contains: () => false, textContent: '' }
    const answers = []
    mock.method(globalThis, 'fetch', () => new Promise(done => answers.push(done)))
    const presence = new Presence({ querySelector: part })
    const settled = async () => { for (let turns = 0; turns < 20; turns++) await new Promise(setImmediate) }
    presence.listens('a')
    presence.listens('b')
    answers[0](Response.json({ code: 'forbidden', detail: 'no' }, { status: 403 }))
    await settled()
    assert.deepEqual([answers.length, parts.h2.textContent, parts['.say']?.textContent], [2, 'Presence in b', undefined])
    answers[1](Response.json({ members: [], count: 0 }))
    await settled()
    assert.equal(parts['.say'].textContent, 'No subject is present.')
  })

  test('a browser downloads at most 60 kB for the whole page', async () => {
    const server = await Server.start(), sizes = {}
    const load = path => new Promise((done, failed) => {
      get(server.url + path, { headers: { 'Accept-Encoding': 'gzip' } }, async answer => {
        const parts = []
        for await (const part of answer) parts.push(part)
        assert.deepEqual([answer.statusCode, answer.headers['content-encoding']], [200, 'gzip'], path)
        const bytes = Buffer.concat(parts)
        sizes[path] = bytes.length
        done(gunzipSync(bytes).toString())
      }).on('error', failed)
    })
    /** With everything that it names, as a browser follows it. */
    async function follow(path) {
      const text = await load(path)
      const names = path.endsWith('.js') ? / from '(.+?\.js)'/g : /(?:src|rel="stylesheet" href)="(.+?)"/g
      for (const [, name] of path.endsWith('.css') ? [] : text.matchAll(names)) {
        const { pathname } = new URL(name, 'http://page' + path)
        if (!(pathname in sizes)) await follow(pathname)
      }
    }
    await follow('/')
    await server.stop()
    assert.equal(Object.keys(sizes).length, 17, Object.keys(sizes))
    const all = Object.values(sizes).reduce((a, b) => a + b)
    assert.ok(all <= 60_000, `${all} bytes: ${JSON.stringify(sizes)}`)
  })

  // A search that was typed while the table was loading showed what did not fit it for three seconds more.
  test('a table that is asked for while it loads is loaded again right after', async ({ mock }) => {
    mock.timers.enable({ apis: ['setInterval'] })
    globalThis.document = { hidden: false }
    globalThis.IntersectionObserver = class { observe() {} }
    const loads = []
    const refresh = whileSeen({}, 3000, () => new Promise(done => loads.push(done)))
    const settled = () => new Promise(setImmediate)
    refresh()
    refresh()
    refresh()
    for (const count of [1, 2, 2]) {
      assert.equal(loads.length, count)
      loads.at(-1)()
      await settled()
    }
  })

  test('a topic with the subject is offered only if the subject is one plain segment', () => {
    assert.deepEqual(granted(), ['news.u1', 'a.*'])
    for (const sub of ['auth0|1', 'u1@shop', 'ü']) {
      keep(JSON.parse(signed(sub).rejoin))
      assert.deepEqual(granted(), ['news.' + sub, 'a.*'])
    }
    for (const sub of [undefined, 'u1@shop.example', '$mine', '*', 'a b', 'a,b', '{b', '']) {
      keep(JSON.parse(signed(sub).rejoin))
      assert.deepEqual(granted(), ['a.*'], sub)
    }
  })
})
