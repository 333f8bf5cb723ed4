// Looks for lost and doubled messages while connections break at random. Run it by hand:
//
//     REJOIN=target/debug/rejoin node tests/browser/faults.mjs [SECONDS] [SEED]
import assert from 'node:assert/strict'
import { connect } from '../../web/rejoin.js'
import { Proxy, SECRET, Server, mint, socketFrom, until } from './server.mjs'

const seconds = Number(process.argv[2] ?? 20)
let seed = Number(process.argv[3] ?? Date.now() % 1e6)
console.log(`${seconds} s with the seed ${seed}`)

function random(most) {
  seed = Math.imul(seed, 1664525) + 1013904223 >>> 0
  return Math.floor(seed / 2 ** 32 * most)
}
const pause = ms => new Promise(done => setTimeout(done, ms))
const TOPICS = ['a', 'b.1', 'b.2', 'list', 'put']

const server = await Server.start(['--jwt-secret', SECRET, '--retain-messages', '100000', '--retain-bytes', '64MiB', '--heartbeat', '1s'])
server.key = mint('backend', 86_400, { admin: true, publish: ['**'] })
await server.ask('PUT', '/subjects/u1/topics/list')
/** Everything that was published, in order. */
const published = []
const problems = []
let isOver = false

/** A page on one transport, whose subscriptions come and go. */
async function page(transports) {
  const proxy = await Proxy.before(server.port)
  const rejoin = connect(proxy.url, {
    transports, mine: true, WebSocket: socketFrom(proxy.url), token: () => mint('u1', 4, { subscribe: ['a', 'b.*'] }),
  })
  const readers = []
  const complain = text => problems.push(`${transports} ${text}`)
  const listen = (subscription, isWhole) => {
    const reader = { subscription, isWhole, told: [], topic: subscription.topic }
    subscription.on('message', ({ topic, data }) => reader.told.push(topic + ' ' + data))
    subscription.on('subscribed', () => { reader.isRead = true })
    subscription.on('gap', gap => complain(`${reader.topic}: gap ${JSON.stringify(gap)}`))
    subscription.on('refused', error => complain(`${reader.topic}: refused ${error.code}`))
    readers.push(reader)
  }
  const check = ({ topic, told, isWhole }) => {
    const all = published.filter(it => topic === 'b.*' ? it.startsWith('b.') : it.startsWith(topic + ' '))
    const expected = isWhole ? all : all.slice(all.indexOf(told[0]))
    const wrong = told.findIndex((it, at) => it !== expected[at])
    if (wrong >= 0) complain(`${topic}: ${told[wrong]} is number ${wrong}, and not ${expected[wrong]}`)
    return told.length === expected.length && wrong < 0
  }
  rejoin.on('subscription', subscription => subscription.topic === 'list' && listen(subscription))
  // The backend adds a topic at each connection.
  rejoin.on('open', ({ connection }) => connection && server.ask('PUT', `/connections/${connection}/topics/put?after=0`).catch(() => {}))
  rejoin.on('refused', error => complain(`refused ${error.code}`))
  listen(rejoin.subscribe('a'))
  while (!isOver) {
    await pause(random(400))
    const step = random(10)
    if (step < 3) {
      proxy.cut()
      await pause(random(600))
      proxy.mend()
    } else if (step < 4) {
      // The server is silent for longer than a heartbeat.
      for (const socket of proxy.sockets) socket.pause()
      await pause(random(3000))
      for (const socket of proxy.sockets) socket.resume()
    } else if (step < 8 && readers.length < 12) {
      const isWhole = random(2) === 1
      listen(rejoin.subscribe(['a', 'b.1', 'b.2', 'b.*'][random(4)], isWhole ? { after: '0' } : {}), isWhole)
    } else if (readers.length > 4) {
      const own = readers.filter(it => it.topic !== 'list' && it.topic !== 'a')
      const reader = own[random(own.length)]
      if (!reader) continue
      reader.subscription.close()
      readers.splice(readers.indexOf(reader), 1)
      // What it has got is without a hole.
      check(reader)
    }
  }
  return { transports, rejoin, proxy, readers, check }
}

async function publish() {
  for (let n = 1; !isOver; n++) {
    for (const topic of TOPICS.filter(() => random(3) === 0)) {
      published.push(topic + ' ' + n)
      await server.publish(topic, n)
    }
    await pause(random(20))
  }
}

setTimeout(() => { isOver = true }, seconds * 1000)
const publishing = publish()
const pages = await Promise.all([['ws'], ['ndjson'], ['poll'], ['ws', 'ndjson', 'poll']].map(page))
await publishing
await until(() => pages.every(it => it.readers.every(reader => reader.isRead))).catch(error => problems.push(error.message))
for (const topic of TOPICS) {
  published.push(topic + ' last')
  await server.publish(topic, 'last')
}
for (const { transports, readers, rejoin, check } of pages) {
  const hasLast = () => readers.every(it => it.told.at(-1)?.endsWith(' last'))
  await until(hasLast, `${transports} ${rejoin.state} ${readers.map(it => it.topic + ': ' + it.told.at(-1))}`).catch(error => problems.push(error.message))
  for (const reader of readers) if (!check(reader)) problems.push(`${transports} ${reader.topic}: ${reader.told.length} messages`)
}
for (const { rejoin, proxy } of pages) {
  rejoin.close()
  proxy.close()
}
await server.stop('SIGKILL')
assert.deepEqual(problems, [])
console.log(`${published.length} messages, nothing lost and nothing twice`)
