// Chromium, driven by the DevTools protocol, with pages that share an origin.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { createInterface } from 'node:readline'
import { WebSocket } from '../../web/node_modules/ws/wrapper.mjs'
import { owned, until } from './server.mjs'

const web = new URL('../../web/', import.meta.url)
const names = ['chromium', 'chromium-browser', 'google-chrome']
const program = process.env.PATH.split(delimiter).flatMap(folder => names.map(name => join(folder, name))).find(existsSync)
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--process-per-site', '--remote-debugging-port=0',
  // Another host, which is no safe origin without TLS.
  '--host-resolver-rules=MAP push.test 127.0.0.1']

/** A browser with a profile of its own. */
export class Browser {
  /** With `trustsAll` it takes every certificate. */
  static async start({ trustsAll = false } = {}) {
    const browser = new Browser()
    browser.folder = mkdtempSync(join(tmpdir(), 'rejoin-'))
    const flags = [...FLAGS, ...trustsAll ? ['--ignore-certificate-errors'] : [], '--user-data-dir=' + browser.folder, 'about:blank']
    browser.process = owned(spawn(program, flags, { stdio: ['ignore', 'ignore', 'pipe'] }))
    for await (const line of createInterface(browser.process.stderr)) {
      const address = /listening on (ws:\S+)/.exec(line)
      if (address) {
        browser.socket = new WebSocket(address[1])
        break
      }
    }
    browser.process.stderr.resume()
    browser.waiting = new Map()
    browser.socket.on('message', text => {
      const { id, result, error } = JSON.parse(text)
      browser.waiting.get(id)?.(result, error)
    })
    await once(browser.socket, 'open')
    return browser
  }

  /** Sends a command, and resolves with its result. */
  command(method, params = {}, sessionId) {
    const id = this.waiting.size + 1
    this.socket.send(JSON.stringify({ id, method, params, sessionId }))
    return new Promise((resolve, reject) => {
      this.waiting.set(id, (result, error) => error ? reject(new Error(method + ': ' + error.message)) : resolve(result))
    })
  }

  async open(url) {
    const page = new Page()
    page.browser = this
    page.target = (await this.command('Target.createTarget', { url })).targetId
    const attached = await this.command('Target.attachToTarget', { targetId: page.target, flatten: true })
    page.session = attached.sessionId
    await page.command('Page.enable')
    await page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
    return page
  }

  async stop() {
    const ended = once(this.process, 'exit')
    this.command('Browser.close').catch(() => {})
    await ended
    this.socket.terminate()
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 })
  }
}

export class Page {
  command(method, params) { return this.browser.command(method, params, this.session) }

  /** Runs an expression, and awaits its promise. */
  async run(expression) {
    const { result, exceptionDetails: error } = await this.command('Runtime.evaluate', {
      expression, awaitPromise: true, returnByValue: true,
    })
    if (error) throw new Error(expression + ': ' + (error.exception?.description ?? error.text))
    return result.value
  }

  async until(condition, ms = 20_000) {
    for (let waited = 0; waited < ms; waited += 50) {
      if (await this.run(condition).catch(() => false)) return
      await new Promise(resume => setTimeout(resume, 50))
    }
    throw new Error(`never: ${condition}; ${await this.run('JSON.stringify([window.told, window.rejoin?.state])').catch(String)}`)
  }

  async offline(isOffline) {
    await this.command('Network.enable')
    return this.command('Network.emulateNetworkConditions', { offline: isOffline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 })
  }
  show() { return this.command('Page.bringToFront') }
  freeze(isFrozen) { return this.command('Page.setWebLifecycleState', { state: isFrozen ? 'frozen' : 'active' }) }
  go(url) { return this.command('Page.navigate', { url }) }
  async back() {
    // A page that is on its way has no history.
    let history
    await until(async () => history = await this.command('Page.getNavigationHistory').catch(() => undefined), 'a history')
    const { currentIndex, entries } = history
    await this.command('Page.navigateToHistoryEntry', { entryId: entries[currentIndex - 1].id })
  }
  close() { return this.browser.command('Target.closeTarget', { targetId: this.target }) }
}

/** Serves the client and a page that imports it. The origin is a safe one, since it is on this machine.
 * `/token?NAME` gives what `token` returns for this name. */
export async function serveClient(token = () => '') {
  const page = `<!doctype html><title>page</title><link rel="icon" href="data:,"><script type="module">
    // A folder other than that of the server has the client of another version.
    const { connect } = await import(new URL('rejoin.js', location))
    window.told = []
    window.shown = []
    addEventListener('pageshow', event => shown.push(event.persisted))
    window.begin = (url, options, topics) => {
      window.rejoin = connect(url, options)
      rejoin.on('open', open => told.push({ type: 'open', connection: open.connection }))
      rejoin.on('refused', error => told.push({ type: 'client refused', code: error.code }))
      rejoin.on('subscription', subscription => listen(subscription))
      topics.forEach(topic => read(topic))
    }
    window.listen = subscription => {
      for (const type of ['message', 'gap', 'subscribed', 'refused']) {
        subscription.on(type, event => told.push({ ...event, code: event.code, type, of: subscription.topic }))
      }
      return subscription
    }
    window.read = (topic, start) => listen(rejoin.subscribe(topic, start))
    window.data = of => told.filter(it => it.type === 'message' && it.of === of).map(it => it.data)
    window.has = (type, of) => told.some(it => it.type === type && (!of || it.of === of))
    window.ready = true
  </script>`
  const server = createServer((request, answer) => {
    const { pathname, search } = new URL(request.url, 'http://page')
    if (pathname === '/token') return answer.end(token(search.slice(1)))
    const [, folder, module] = /^\/(other-version\/)?([a-z-]+\.js)$/.exec(pathname) ?? []
    answer.setHeader('Content-Type', module ? 'text/javascript' : 'text/html')
    const text = module && readFileSync(new URL(module, web), 'utf8')
    answer.end(module ? folder ? text.replace('const VERSION = 1', 'const VERSION = 0') : text : pathname === '/other' ? '<title>other</title>' : page)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    close() {
      server.close()
      server.closeAllConnections()
    },
  }
}
