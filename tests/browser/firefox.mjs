// Firefox, driven by WebDriver BiDi. It offers the same as `chromium.mjs`, without what BiDi has no command for.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { WebSocket } from '../../web/node_modules/ws/wrapper.mjs'
import { owned } from './server.mjs'

/** A browser with a profile of its own. */
export class Browser {
  /** With `trustsAll` it takes every certificate. */
  static async start({ trustsAll = false } = {}) {
    const browser = new Browser()
    browser.folder = mkdtempSync(join(tmpdir(), 'rejoin-'))
    // Its own services may be asked for nothing.
    writeFileSync(join(browser.folder, 'user.js'), 'user_pref("network.captive-portal-service.enabled", false);'
      + 'user_pref("network.connectivity-service.enabled", false);user_pref("app.update.enabled", false);'
      + 'user_pref("services.settings.server", "data:,");user_pref("toolkit.telemetry.enabled", false);')
    const flags = ['--headless', '--no-remote', '--profile', browser.folder, '--remote-debugging-port', '0', 'about:blank']
    browser.process = owned(spawn('firefox-esr', flags, { stdio: ['ignore', 'ignore', 'pipe'] }))
    for await (const line of createInterface(browser.process.stderr)) {
      const address = /BiDi listening on (ws:\S+)/.exec(line)
      if (address) {
        browser.socket = new WebSocket(address[1] + '/session')
        break
      }
    }
    browser.process.stderr.resume()
    browser.waiting = new Map()
    browser.socket.on('message', text => {
      const { id, result, error, message } = JSON.parse(text)
      browser.waiting.get(id)?.(result, error && error + ': ' + message)
    })
    await once(browser.socket, 'open')
    await browser.command('session.new', { capabilities: { alwaysMatch: { acceptInsecureCerts: trustsAll } } })
    return browser
  }

  /** Sends a command, and resolves with its result. */
  command(method, params = {}) {
    const id = this.waiting.size + 1
    this.socket.send(JSON.stringify({ id, method, params }))
    return new Promise((resolve, reject) => {
      this.waiting.set(id, (result, error) => error ? reject(new Error(method + ': ' + error)) : resolve(result))
    })
  }

  async open(url) {
    const page = new Page()
    page.browser = this
    page.context = (await this.command('browsingContext.create', { type: 'tab', background: true })).context
    await page.go(url)
    return page
  }

  async stop() {
    const ended = once(this.process, 'exit')
    this.command('browser.close').catch(() => {})
    await ended
    this.socket.terminate()
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 })
  }
}

export class Page {
  command(method, params) { return this.browser.command(method, { context: this.context, ...params }) }

  /** Runs an expression, and awaits its promise. */
  async run(expression) {
    const { result, exceptionDetails: error } = await this.browser.command('script.evaluate', {
      expression: `(async () => JSON.stringify(await (${expression})))()`, target: { context: this.context }, awaitPromise: true,
    })
    if (error) throw new Error(expression + ': ' + error.text)
    return result.value && JSON.parse(result.value)
  }

  async until(condition, ms = 20_000) {
    for (let waited = 0; waited < ms; waited += 50) {
      if (await this.run(condition).catch(() => false)) return
      await new Promise(resume => setTimeout(resume, 50))
    }
    throw new Error('never: ' + condition)
  }

  offline(isOffline) {
    const networkConditions = isOffline ? { type: 'offline' } : null
    return this.browser.command('emulation.setNetworkConditions', { networkConditions, contexts: [this.context] })
  }
  show() { return this.command('browsingContext.activate') }
  go(url) { return this.command('browsingContext.navigate', { url, wait: 'complete' }) }
  back() { return this.command('browsingContext.traverseHistory', { delta: -1 }) }
  close() { return this.command('browsingContext.close') }
}
