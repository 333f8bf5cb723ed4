// The parts of the console that need no page, in Node.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { mint } from './server.mjs'

globalThis.location = new URL('http://127.0.0.1:1/')
globalThis.addEventListener = () => {}
const subscribe = ['news.{sub}', 'a.*', 'of.{claim.team}']
const signed = sub => ({ rejoin: JSON.stringify({ token: mint(sub, 60, { subscribe }) }) })
globalThis.sessionStorage = signed('u1')
const { granted, keep } = await import('../../web/console/api.js')
const { whileSeen } = await import('../../web/console/dom.js')
const { EventStream } = await import('../../web/console/sse.js')

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
    for (const sub of ['u1@shop.example', '$mine', '*', 'a b', 'a,b', '{b', '']) {
      keep(JSON.parse(signed(sub).rejoin))
      assert.deepEqual(granted(), ['a.*'], sub)
    }
  })
})
