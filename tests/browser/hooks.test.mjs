// The hooks for React and Vue, in the real libraries, against a real server.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { after, describe, test } from 'node:test'
import { connect } from '../../web/rejoin.js'
import * as react from '../../web/react.js'
import * as vue from '../../web/vue.js'
import { SECRET, Server, mint, until } from './server.mjs'

const require = createRequire(new URL('../../web/package.json', import.meta.url))
const { createElement, StrictMode } = require('react')
const { act, create } = require('react-test-renderer')
const { createRenderer, effectScope, nextTick, onMounted, ref } = await import(new URL('../../web/node_modules/vue/index.mjs', import.meta.url))
globalThis.IS_REACT_ACT_ENVIRONMENT = false

const ends = []
after(() => { for (const end of ends) end() })

async function begin(flags, options) {
  const server = await Server.start(flags)
  const rejoin = connect(server.url, { transports: ['ndjson'], ...options })
  ends.push(() => rejoin.close(), () => server.stop('SIGKILL'))
  return { server, rejoin }
}
const subscribers = async server => {
  const { topics } = await (await fetch(server.url + '/topics')).json()
  return Object.fromEntries(topics.map(it => [it.topic, it.subscribers]))
}
async function untilRead(server, expected) {
  for (let looks = 0; looks < 500; looks++) {
    if (JSON.stringify(await subscribers(server)) === JSON.stringify(expected)) return
    await new Promise(resume => setTimeout(resume, 20))
  }
  assert.deepEqual(await subscribers(server), expected)
}

describe('hooks', { concurrency: true }, () => {
  test('React reads a topic while the component is there, and the newest data of another', async () => {
    const { server, rejoin } = await begin()
    await server.publish('a', 'old')
    await server.publish('price', 1)
    const got = []
    let price
    function Prices({ topic }) {
      react.useTopic(rejoin, topic, ({ data }) => got.push(data))
      price = react.useLatest(rejoin, 'price', 0)
      return null
    }
    const element = topic => createElement(StrictMode, null, createElement(Prices, { topic }))
    const root = create(element('a'))
    await until(() => price === 1)
    await untilRead(server, { a: 1, price: 1 })
    await server.publish('a', 'one')
    await server.publish('price', 2)
    await until(() => got.length && price === 2)
    root.update(element(null))
    await untilRead(server, { a: 0, price: 1 })
    root.unmount()
    await untilRead(server, { a: 0, price: 0 })
    assert.deepEqual(got, ['one'])
  })

  test('React shows nothing that the client of another user has got', () => {
    const client = data => ({
      subscribe: () => ({ on: (type, handler) => type === 'message' && data && handler({ data }), close() {} }),
    })
    let shown, root
    const Latest = ({ rejoin }) => {
      shown = react.useLatest(rejoin, 'a', 'nothing')
      return null
    }
    globalThis.IS_REACT_ACT_ENVIRONMENT = true
    act(() => { root = create(createElement(Latest, { rejoin: client('of ann') })) })
    assert.equal(shown, 'of ann')
    act(() => root.update(createElement(Latest, { rejoin: client() })))
    globalThis.IS_REACT_ACT_ENVIRONMENT = false
    assert.equal(shown, 'nothing')
  })

  test('the members of a topic are there as long as the component is', async () => {
    for (const library of ['react', 'vue']) {
      let handler, closed = 0
      const asked = []
      const rejoin = {
        presence: async topic => {
          asked.push(topic)
          return { on(type, given) { handler = given }, close() { closed++ } }
        },
      }
      let members, leave
      if (library === 'react') {
        const Room = () => {
          members = react.usePresence(rejoin, 'room.1')
          return null
        }
        const root = create(createElement(Room))
        leave = () => root.unmount()
      } else {
        const scope = effectScope()
        let all
        scope.run(() => { all = vue.usePresence(rejoin, 'room.1') })
        Object.defineProperty(rejoin, 'seen', { get: () => all.value })
        leave = () => scope.stop()
      }
      const seen = () => library === 'react' ? members : rejoin.seen
      await until(() => handler)
      handler([{ sub: 'u1' }])
      await until(() => seen().length === 1)
      leave()
      await until(() => closed === 1)
      assert.deepEqual([asked, seen()], [['room.1'], [{ sub: 'u1' }]])
    }
  })

  test('a component hears who comes and goes', async () => {
    const token = () => mint('u1', 60, { subscribe: ['**'], presence: ['**'] })
    const { server, rejoin } = await begin(['--jwt-secret', SECRET, '--presence-grace', '1s'], { token })
    const other = connect(server.url, { transports: ['ndjson'], token: () => mint('u2', 60) })
    ends.push(() => other.close())
    const rendered = []
    const Room = () => {
      rendered.push('' + react.usePresence(rejoin, 'room.1').map(it => it.sub))
      return null
    }
    const root = create(createElement(Room))
    const scope = effectScope()
    let all
    scope.run(() => { all = vue.usePresence(rejoin, 'room.1') })
    const present = other.subscribe('room.1', { presence: true })
    await until(() => rendered.at(-1) === 'u2' && all.value.length === 1)
    present.close()
    await until(() => rendered.at(-1) === '' && !all.value.length)
    root.unmount()
    scope.stop()
  })

  test('a server that renders a Vue component opens no connection', async () => {
    const asked = []
    const rejoin = {
      subscribe(topic) {
        asked.push(topic)
        return { on() {}, close() {} }
      },
      async presence(topic) { return this.subscribe(topic) },
    }
    const { createSSRApp, h } = require('vue'), { renderToString } = require('vue/server-renderer')
    const component = {
      setup() {
        vue.useTopic(rejoin, 'a', () => {})
        vue.usePresence(rejoin, 'room')
        const price = vue.useLatest(rejoin, 'price', 7)
        return () => h('p', price.value)
      },
    }
    assert.equal(await renderToString(createSSRApp(component)), '<p>7</p>')
    assert.deepEqual(asked, [])
  })

  test('Vue reads the topic of a ref until its scope ends', async () => {
    const { server, rejoin } = await begin()
    await server.publish('a', 1)
    await server.publish('b', 2)
    const topic = ref('a'), scope = effectScope(), got = []
    let latest
    scope.run(() => {
      vue.useTopic(rejoin, topic, ({ data }) => got.push(data))
      latest = vue.useLatest(rejoin, topic, 0)
    })
    await until(() => latest.value === 1)
    topic.value = 'b'
    assert.equal(latest.value, 0)
    await nextTick()
    await until(() => latest.value === 2)
    await untilRead(server, { a: 0, b: 1 })
    await server.publish('b', 3)
    await until(() => latest.value === 3 && got.length === 1)
    scope.stop()
    await untilRead(server, { a: 0, b: 0 })
    assert.deepEqual(got, [3])
  })

  test('a Vue component reads from its setup, and from what runs once it is mounted, until it leaves', () => {
    const open = new Set()
    const rejoin = { subscribe: topic => (open.add(topic), { on() {}, close() { open.delete(topic) } }) }
    const nothing = () => ({})
    const { createApp } = createRenderer({ insert: nothing, remove: nothing, createComment: nothing, parentNode: nothing,
      nextSibling: () => null })
    const stopped = effectScope(true)
    const app = createApp({
      setup() {
        vue.useTopic(rejoin, 'setup', () => {})
        onMounted(() => vue.useTopic(rejoin, 'mounted', () => {}))
        stopped.run(() => vue.useTopic(rejoin, 'stopped', () => {}))
        stopped.stop()
        assert.deepEqual([...open], [])
        return () => null
      },
    })
    app.mount({})
    assert.deepEqual([...open].sort(), ['mounted', 'setup'])
    app.unmount()
    assert.deepEqual([...open], [])
  })
})
