// The console of a server that needs a token, with 10 000 topics and 1 000 connections, in Chromium. Run it by hand:
//
//     REJOIN=target/debug/rejoin node tests/browser/crowd.mjs [FOLDER]
//
// It fails if a table is wrong or a lane misses something, and prints how long each step took. FOLDER gets pictures of it:
// on a screen of 1280×800, light and dark, and on a phone.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { Browser } from './chromium.mjs'
import { SECRET, Server, mint, until } from './server.mjs'

const TOPICS = 10_000, CONNECTIONS = 1000
const [folder] = process.argv.slice(2)
const server = await Server.start(['--jwt-secret', SECRET])
const token = server.key = mint('crowd', 3600, { subscribe: ['**'], publish: ['**'], presence: ['**'], admin: true })
const Authorization = 'Bearer ' + token
let began = Date.now()
const done = what => {
  console.log(`${what}: ${Date.now() - began} ms`)
  began = Date.now()
}

const lines = Array.from({ length: TOPICS }, (_, n) => JSON.stringify({ topic: `crowd.${n % 100}.${n}`, data: { n } }))
const headers = { 'Content-Type': 'application/x-ndjson', Authorization }
const answers = await (await fetch(server.url + '/publish', { method: 'POST', headers, body: lines.join('\n') })).json()
assert.ok(answers.length === TOPICS && answers.every(it => it.id))
done(`${TOPICS} topics`)
const streams = await Promise.all(Array.from({ length: CONNECTIONS }, async (_, n) => {
  const path = `/events?topic=crowd.${n % 100}.*&topic=all`
  const stream = request(server.url + path, { agent: false, headers: { Accept: 'application/x-ndjson', Authorization } }).end()
  const [answer] = await once(stream, 'response')
  assert.equal(answer.statusCode, 200)
  answer.on('error', () => {}).resume()
  return stream
}))
done(`${CONNECTIONS} connections`)

const browser = await Browser.start()
const page = await browser.open(`${server.url}/#topic=all&token=${token}`)
const resize = (width, height) => page.command('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 500 })
await resize(1280, 800)
const isLive = "document.querySelectorAll('.lane[data-state=live]').length === 4"
await page.until(isLive)
done('the lanes are live')
const rows = section => page.run(`[...document.querySelectorAll('#${section} tbody tr')].map(it => it.querySelector('button').textContent)`)
const says = (section, text) => page.until(`document.querySelector('#${section} .say').textContent === '${text}'`)
const press = (section, name) => page.run(`document.querySelector('#${section} [name=${name}]').click()`)

await page.run("document.querySelector('#topics').scrollIntoView()")
await says('topics', 'Page 1, by name.')
assert.equal((await rows('topics')).length, 20)
done('a page of topics')
await press('topics', 'next')
await says('topics', 'Page 2, by name.')
done('the next page')
const search = text => page.run(`(field => { field.value = '${text}', field.dispatchEvent(new Event('input', { bubbles: true })) })(document.querySelector('#topics input'))`)
await search('crowd.*.9999')
await page.until("document.querySelectorAll('#topics tbody tr').length === 1")
assert.deepEqual(await rows('topics'), ['crowd.99.9999'])
done('a search among all topics by pattern')
await search('')
await press('topics', 'newest')
await says('topics', 'The newest of 10K topics.')
assert.equal((await rows('topics'))[0], 'crowd.99.9999')
done('the newest of all topics')

await page.run("document.querySelector('#connections').scrollIntoView()")
await says('connections', 'Page 1.')
done('a page of connections')
const seen = new Set()
for (let number = 2; ; number++) {
  for (const it of await rows('connections')) seen.add(it)
  if (await page.run("document.querySelector('#connections [name=next]').disabled")) break
  await press('connections', 'next')
  await says('connections', `Page ${number}.`)
}
// The three lanes that do not poll are connections too.
assert.equal(seen.size, CONNECTIONS + 3)
done(`all ${seen.size} connections, page by page`)

for (let n = 0; n < 200; n++) await server.publish('all', n)
await until(() => page.run("document.querySelector('#verdict').textContent === 'All lanes are caught up, nothing is missing'"))
const received = await page.run("[...document.querySelectorAll('.lane .received')].map(it => it.textContent)")
assert.deepEqual(received, Array(4).fill('200'))
done('200 messages to all connections and lanes')
if (folder) {
  for (const [name, width, height, value] of [['light', 1280, 800, 'light'], ['dark', 1280, 800, 'dark'], ['phone', 390, 844, 'light']]) {
    await resize(width, height)
    await page.command('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value }] })
    for (const [part, place] of [['top', 'header'], ['tables', '#topics']]) {
      await page.run(`document.querySelector('${place}').scrollIntoView()`)
      await says('topics', 'The newest of 10K topics.')
      const { data } = await page.command('Page.captureScreenshot')
      writeFileSync(join(folder, `crowd-${name}-${part}.png`), Buffer.from(data, 'base64'))
    }
  }
}
for (const stream of streams) stream.destroy()
await browser.stop()
await server.stop()
process.exit()
