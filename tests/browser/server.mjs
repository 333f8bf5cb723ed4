// A Rejoin server, and a connection to it that can be cut, for the tests of the browser client in Node.
import { spawn } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { createServer, connect as dial } from 'node:net'
import { createInterface } from 'node:readline'
import { WebSocket as Socket } from '../../web/node_modules/ws/wrapper.mjs'

export const SECRET = 'a secret of the tests, of 32 bytes or more'

const children = new Set()
process.on('exit', () => children.forEach(child => child.kill('SIGKILL')))

/** This process does not outlive Node, however Node ends. */
export function owned(child) {
  children.add(child)
  child.on('exit', () => children.delete(child))
  return child
}

/** A server in a process of its own. */
export class Server {
  /** @param {string[]} flags */
  static async start(flags = [], port = 0) {
    const server = new Server()
    const all = ['--listen', `127.0.0.1:${port}`, '--drain-grace', '1s', '--log-format', 'json', ...flags]
    server.process = owned(spawn(process.env.REJOIN, all, { stdio: ['ignore', 'ignore', 'pipe'], env: {} }))
    for await (const line of createInterface(server.process.stderr)) {
      const address = /"address":"127\.0\.0\.1:(\d+)"/.exec(line)
      if (address) {
        server.port = Number(address[1])
        break
      }
    }
    server.process.stderr.resume()
    server.url = `http://127.0.0.1:${server.port}`
    return server
  }

  async stop(signal = 'SIGTERM') {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return
    this.process.kill(signal)
    await once(this.process, 'exit')
  }

  /** Sends a request of the backend. */
  async ask(method, path) {
    const answer = await fetch(this.url + path, { method, headers: { Authorization: 'Bearer ' + this.key } })
    if (!answer.ok) throw new Error(await answer.text())
  }

  /** Publishes as a backend does, and returns the id. */
  async publish(topic, data, query = '') {
    const headers = { 'Content-Type': 'application/json' }
    if (this.key) headers.Authorization = 'Bearer ' + this.key
    const answer = await fetch(`${this.url}/topics/${topic}${query}`, { method: 'POST', headers, body: JSON.stringify(data) })
    if (!answer.ok) throw new Error(await answer.text())
    return (await answer.json()).id
  }
}

/** A token for this subject, with these rights. */
export function mint(sub, seconds, rights = { subscribe: ['**'], publish: ['**'] }) {
  const part = value => Buffer.from(JSON.stringify(value)).toString('base64url')
  const signed = part({ alg: 'HS256' }) + '.' + part({ sub, exp: Math.floor(Date.now() / 1000) + seconds, rejoin: rights })
  return signed + '.' + createHmac('sha256', SECRET).update(signed).digest('base64url')
}

/** A proxy before the server. `refuses` decides by the first bytes of a connection if it is closed at once. */
export class Proxy {
  static async before(port) {
    const proxy = new Proxy()
    proxy.sockets = new Set()
    proxy.isCut = false
    proxy.refuses = () => false
    proxy.seen = []
    proxy.listener = createServer(client => {
      proxy.sockets.add(client)
      client.on('error', () => {}).on('close', () => proxy.sockets.delete(client))
      if (proxy.isCut) return client.destroy()
      client.once('data', head => {
        proxy.seen.push(head.toString().split('\r\n')[0])
        if (proxy.refuses(head.toString())) return client.destroy()
        const server = dial(port, '127.0.0.1')
        server.on('error', () => client.destroy()).on('close', () => client.destroy())
        client.on('close', () => server.destroy())
        server.write(head)
        client.pipe(server).pipe(client)
      })
    })
    proxy.listener.listen(0, '127.0.0.1')
    await once(proxy.listener, 'listening')
    proxy.url = `http://127.0.0.1:${proxy.listener.address().port}`
    return proxy
  }

  cut() {
    this.isCut = true
    for (const socket of this.sockets) socket.destroy()
  }

  mend() { this.isCut = false }

  close() {
    this.cut()
    this.listener.close()
  }
}

/** A WebSocket that names an origin, as that of a browser does. */
export function socketFrom(origin) {
  return class extends Socket {
    constructor(url, protocols) { super(url, protocols, { origin }) }
  }
}

/** Resolves once the condition holds. */
export async function until(condition, what = condition.toString()) {
  for (let looks = 0; looks < 1500; looks++) {
    if (await condition()) return
    await new Promise(resume => setTimeout(resume, 10))
  }
  throw new Error('never: ' + what)
}
