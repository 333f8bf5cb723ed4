// A proxy before the server that harms connections in the way of real ones, and counts what it has done.
import { createServer, request as ask } from 'node:http'
import { once } from 'node:events'
import { connect as dial } from 'node:net'

export class BadProxy {
  /** What the proxy does: '' is nothing, and the rest is in `FAULTS` of `pages.mjs`. */
  mode = ''
  /** How often it has done it, and how many requests have passed, by method. */
  harmed = 0
  passed = {}
  sockets = new Set()
  /** What the server sends, for each connection. */
  streams = new Set()

  static async before(port) {
    const proxy = new BadProxy()
    proxy.port = port
    proxy.listener = createServer((request, answer) => proxy.#request(request, answer))
    proxy.listener.on('upgrade', (request, socket, head) => proxy.#upgrade(request, socket, head))
    proxy.listener.on('clientError', (_, socket) => socket.destroy())
    proxy.listener.on('connection', socket => {
      proxy.sockets.add(socket)
      socket.on('error', () => {}).on('close', () => proxy.sockets.delete(socket))
      if (proxy.mode === 'away') proxy.#end(socket)
      if (proxy.mode === 'cuts') setTimeout(() => proxy.mode === 'cuts' && proxy.#end(socket), 2000).unref()
    })
    proxy.listener.listen(0, '127.0.0.1')
    await once(proxy.listener, 'listening')
    proxy.url = `http://127.0.0.1:${proxy.listener.address().port}`
    return proxy
  }

  #end(socket, how = 'destroy') {
    if (socket.destroyed) return
    this.harmed++
    socket[how]()
  }

  /** Ends all connections: in order, or by a reset. */
  cut(how) { for (const socket of [...this.sockets]) this.#end(socket, how) }

  /** Holds back everything that the server sends, on new connections too. */
  silence(isSilent) {
    this.isSilent = isSilent
    for (const stream of this.streams) {
      if (isSilent) this.harmed++
      isSilent ? stream.pause() : stream.resume()
    }
  }

  #watch(stream) {
    this.streams.add(stream)
    if (this.isSilent) stream.pause()
    stream.on('close', () => this.streams.delete(stream))
  }

  #request(request, answer) {
    const { method, url, headers } = request
    if (this.mode === 'posts' && !['POST', 'OPTIONS'].includes(method)) return this.#refuse(answer)
    this.passed[method] = (this.passed[method] ?? 0) + 1
    const onward = ask({ port: this.port, host: '127.0.0.1', method, path: url, headers }, given => {
      this.#watch(given)
      const isHeld = this.mode === 'buffers'
      if (!isHeld) answer.writeHead(given.statusCode, given.headers)
      const parts = []
      given.on('data', part => isHeld ? parts.push(part) : answer.write(part))
      given.on('error', () => answer.destroy())
      given.on('end', () => {
        if (isHeld && !answer.destroyed) answer.writeHead(given.statusCode, given.headers).write(Buffer.concat(parts))
        answer.end()
      })
      // The page has given up, and has seen nothing of it.
      answer.on('close', () => { if (isHeld && !answer.writableFinished) this.harmed++ })
    })
    onward.on('error', () => answer.destroy())
    answer.on('close', () => onward.destroy())
    request.pipe(onward)
  }

  #refuse(answer) {
    this.harmed++
    answer.writeHead(405, { 'Content-Length': 0 }).end()
  }

  #upgrade(request, socket, head) {
    const { method, url, headers, rawHeaders } = request
    socket.on('error', () => {})
    if (this.mode === 'posts') {
      this.harmed++
      return socket.end('HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
    }
    if (this.mode === 'strips') {
      const { upgrade: _, connection: __, ...rest } = headers
      this.harmed++
      const onward = ask({ port: this.port, host: '127.0.0.1', method, path: url, headers: rest, agent: false }, given => {
        socket.write(`HTTP/1.1 ${given.statusCode} ${given.statusMessage}\r\nConnection: close\r\n\r\n`)
        given.on('error', () => socket.destroy()).pipe(socket)
      })
      onward.on('error', () => socket.destroy()).end()
      return socket.on('close', () => onward.destroy())
    }
    this.passed.Upgrade = (this.passed.Upgrade ?? 0) + 1
    const peer = dial(this.port, '127.0.0.1')
    const lines = rawHeaders.flatMap((it, at) => at % 2 ? [] : [`${it}: ${rawHeaders[at + 1]}`])
    peer.write([`${method} ${url} HTTP/1.1`, ...lines, '', ''].join('\r\n'))
    if (head.length) peer.write(head)
    peer.on('error', () => socket.destroy()).on('close', () => socket.destroy())
    socket.on('close', () => peer.destroy())
    socket.pipe(peer)
    // A proxy that buffers hands on nothing of a connection that does not end.
    if (this.mode === 'buffers') {
      this.harmed++
      peer.resume()
    } else peer.pipe(socket)
    this.#watch(peer)
  }

  close() {
    this.cut()
    this.listener.close()
  }
}
