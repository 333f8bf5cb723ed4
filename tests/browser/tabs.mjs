// Eight tabs of a real browser over TLS, and compressed streams in it. Run it by hand:
//
//     REJOIN=target/debug/rejoin node tests/browser/tabs.mjs [--firefox]
//
// A browser opens six connections to one server in clear text, so the eighth tab reads only because all share one
// connection of HTTP/2. Of a compressed stream each message must be there before the next one is published.
import assert from 'node:assert/strict'
import { fileURLToPath } from 'node:url'
import { Server } from './server.mjs'

const { Browser } = await import(process.argv.includes('--firefox') ? './firefox.mjs' : './chromium.mjs')
const TABS = 8
const MESSAGES = 5
const pair = name => fileURLToPath(new URL(`../support/tls/${name}.pem`, import.meta.url))
const flags = ['--tls-cert', pair('certificate'), '--tls-key', pair('key')]

const LISTENS = {
  EventSource: `(() => {
    window.heard = []
    const events = new EventSource('/topics/demo')
    events.onmessage = event => heard.push(event.data)
    events.addEventListener('rejoin.open', () => { window.isOpen = true })
  })()`,
  fetch: `(async () => {
    window.heard = []
    const answer = await fetch('/topics/demo', { headers: { Accept: 'application/x-ndjson' } })
    const read = async () => {
      const decoder = new TextDecoder()
      let text = ''
      for (const reader = answer.body.getReader();;) {
        const { value, done } = await reader.read()
        if (done) return
        const lines = (text + decoder.decode(value, { stream: true })).split('\\n')
        text = lines.pop()
        for (const frame of lines.map(JSON.parse)) {
          if (frame.type === 'open') window.isOpen = true
          if (frame.type === 'message') heard.push(frame.data)
        }
      }
    }
    read()
  })()`,
}

async function publish(page, text) {
  const status = await page.run(`fetch('/topics/demo', { method: 'POST', body: ${JSON.stringify(text)},
    headers: { 'Content-Type': 'text/plain' } }).then(answer => answer.status)`)
  assert.equal(status, 201)
}

/** A page of the server. This one loads nothing more. */
async function open(browser, server, how) {
  const page = await browser.open(`https://127.0.0.1:${server.port}/rejoin.js`)
  await page.run(LISTENS[how])
  await page.until('window.isOpen')
  return page
}

async function deliveredBytes(page, transport) {
  const metrics = await page.run("fetch('/metrics').then(answer => answer.text())")
  return Number(new RegExp(`rejoin_delivered_bytes_total{transport="${transport}"} (\\d+)`).exec(metrics)[1])
}

const browser = await Browser.start({ trustsAll: true })
try {
  const server = await Server.start(flags)
  const tabs = []
  for (let number = 0; number < TABS; number++) tabs.push(await open(browser, server, 'EventSource'))
  const { agent, protocol } = await tabs[0].run(`({ agent: navigator.userAgent,
    protocol: performance.getEntriesByType('navigation')[0].nextHopProtocol })`)
  assert.equal(protocol, 'h2')
  for (const text of ['first', 'second']) await publish(tabs.at(-1), text)
  for (const tab of tabs) {
    await tab.until('heard.length === 2')
    assert.deepEqual(await tab.run('heard'), ['first', 'second'])
    await tab.close()
  }
  await server.stop()
  console.log(agent)
  console.log(`${TABS} tabs over TLS: each has read both messages, by HTTP/2`)

  const packing = await Server.start([...flags, '--compress', 'all'])
  for (const [how, transport] of [['EventSource', 'sse'], ['fetch', 'ndjson']]) {
    const reader = await open(browser, packing, how)
    const other = await browser.open(`https://127.0.0.1:${packing.port}/rejoin.js`)
    const text = 'as long as many words '.repeat(30)
    for (let number = 1; number <= MESSAGES; number++) {
      await publish(other, number + text)
      await reader.until(`heard.length === ${number}`)
    }
    assert.deepEqual(await reader.run('heard'), Array.from({ length: MESSAGES }, (_, at) => at + 1 + text))
    const bytes = await deliveredBytes(other, transport)
    assert.ok(bytes < MESSAGES * text.length / 2, `${bytes} bytes: the stream was not compressed`)
    console.log(`${how}: ${MESSAGES} messages of ${text.length} bytes, one by one, in ${bytes} bytes`)
    await reader.close()
    await other.close()
  }
  await packing.stop()
} finally {
  await browser.stop()
}
process.exit()
