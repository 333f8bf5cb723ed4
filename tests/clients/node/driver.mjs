// Listens with the libraries of Node. It reads a job from each line of standard input, and prints what the library
// gave as JSON, one object on each line.
//
// Without `set` a library is used as its README shows. With it the setting of docs/libraries.md is used.

import {createInterface} from 'node:readline'
import {Readable} from 'node:stream'

import {EventSourcePolyfill} from 'event-source-polyfill'
import {EventSource} from 'eventsource'
import {createEventSource} from 'eventsource-client'
import PartySocket from 'partysocket/ws'
import reconnecting from 'reconnecting-websocket'
import * as undici from 'undici'
import WebSocket from 'ws'

// fetch-event-source takes these from a page.
globalThis.window = globalThis
globalThis.document = {hidden: false, addEventListener() {}, removeEventListener() {}}
const {fetchEventSource} = await import('@microsoft/fetch-event-source')

const PAUSE = 100
const FINAL = [400, 401, 403, 404]
const CONTROL = ['rejoin.open', 'rejoin.gap', 'rejoin.cursor', 'rejoin.closing', 'rejoin.binary']
const pause = () => new Promise(resume => setTimeout(resume, PAUSE))

class Job {
  constructor({job, library, url, after, token, set}) {
    Object.assign(this, {job, library, url, cursor: after, set})
    this.headers = token ? {Authorization: 'Bearer ' + token} : {}
  }

  say(what) {
    process.stdout.write(JSON.stringify({job: this.job, ...what}) + '\n')
  }

  error(text) {
    this.say({type: 'error', text: String(text)})
  }

  end() {
    this.say({type: 'end'})
  }

  sse(id, event, data) {
    this.say({type: 'sse', id, event, data})
  }

  frame(data) {
    if (typeof data === 'string') this.say({type: 'frame', frame: data})
    else this.say({type: 'bytes', data: Buffer.from(data).toString('base64')})
    const text = typeof data === 'string' ? data : Buffer.from(data).toString().split('\n')[0]
    const frame = JSON.parse(text)
    this.cursor = (frame.type === 'message' ? frame.id : frame.cursor) ?? this.cursor
  }

  get atCursor() {
    return this.url + '?after=' + this.cursor
  }

  // True if the request must not be repeated.
  refused(status, body) {
    this.error(`${status} ${body}`)
    return FINAL.includes(status)
  }
}

// A library with the interface of the browser's EventSource.
function listenTo(job, events) {
  for (const type of ['message', ...CONTROL]) {
    events.addEventListener(type, event => job.sse(event.lastEventId, event.type, event.data))
  }
  events.onerror = event => {
    job.error(`${event.code ?? event.status ?? ''} ${event.message ?? event.type}`)
    if (events.readyState === 2) job.end()
  }
}

function ownFetch(job) {
  return (url, options) => fetch(url, {...options, headers: {...options.headers, ...job.headers}})
}

// A library with the interface of the browser's WebSocket that connects again by itself.
function listenAgain(job, Socket) {
  // With `Origin` the server tells a refusal by a close code, as it tells a page.
  const origin = new URL(job.url.replace('ws:', 'http:')).origin
  class Client extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols, {headers: job.headers, ...(job.set ? {origin} : {})})
      // The libraries remove their listeners before they close a connection that does not open.
      this.on('error', () => {})
    }
  }
  const waits = {minReconnectionDelay: PAUSE, maxReconnectionDelay: PAUSE, WebSocket: Client}
  const socket = new Socket(() => job.atCursor, [], waits)
  socket.binaryType = 'arraybuffer'
  socket.onmessage = event => job.frame(event.data)
  socket.onerror = event => job.error(event.message)
  socket.onclose = ({code, reason}) => {
    job.error(`closed ${code} ${reason}`)
    if (!job.set || code < 4000 || code >= 4100) return
    socket.close()
    job.end()
  }
}

const LIBRARIES = {
  eventsource: job => listenTo(job, new EventSource(job.url, {fetch: ownFetch(job)})),

  'undici EventSource': job => listenTo(job, new undici.EventSource(job.url, {
    // Its EventSource takes no headers, so a dispatcher adds them.
    dispatcher: new undici.Agent().compose(dispatch => (options, handler) =>
      dispatch({...options, headers: addTo(options.headers, job.headers)}, handler)),
  })),

  'event-source-polyfill': job => listenTo(job, new EventSourcePolyfill(job.url, {headers: job.headers})),

  async 'fetch-event-source'(job) {
    const options = {headers: job.headers, onmessage: event => job.sse(event.id, event.event, event.data)}
    if (job.set) {
      options.onclose = () => { throw new Error('the stream ended') }
      options.onopen = async answer => {
        if (answer.ok) return
        const isFinal = job.refused(answer.status, await answer.text())
        throw Object.assign(new Error(answer.status), {isFinal})
      }
      options.onerror = problem => { if (problem.isFinal) throw problem }
    } else {
      options.onerror = problem => { job.error(problem) }
    }
    await fetchEventSource(job.url, options).catch(problem => job.error(problem))
    job.end()
  },

  'eventsource-client'(job) {
    const events = createEventSource({
      url: job.url,
      async fetch(url, options) {
        const answer = await ownFetch(job)(url, options)
        if (job.set && FINAL.includes(answer.status)) {
          job.refused(answer.status, await answer.text())
          events.close()
          job.end()
        }
        return answer
      },
      onMessage: ({id, event, data}) => job.sse(id, event ?? 'message', data),
      onDisconnect: () => job.error('disconnected'),
    })
  },

  ws(job) {
    const socket = new WebSocket(job.atCursor, {headers: job.headers})
    let isFinal = false
    socket.on('message', (data, isBinary) => job.frame(isBinary ? data : data.toString()))
    socket.on('error', problem => job.error(problem))
    if (job.set) {
      socket.on('unexpected-response', async (request, answer) => {
        isFinal = job.refused(answer.statusCode, Buffer.concat(await answer.toArray()))
        socket.terminate()
      })
    }
    socket.on('close', async (code, reason) => {
      job.error(`closed ${code} ${reason}`)
      if (isFinal || !job.set || (code >= 4000 && code < 4100)) return job.end()
      await pause()
      LIBRARIES.ws(job)
    })
  },

  'reconnecting-websocket': job => listenAgain(job, reconnecting.default ?? reconnecting),

  partysocket: job => listenAgain(job, PartySocket),

  // The loop of docs/clients.md, with the wait shortened.
  'undici WebSocket'(job) {
    let wasOpen = false
    const socket = new undici.WebSocket(job.atCursor, {headers: job.headers})
    socket.binaryType = 'arraybuffer'
    socket.onmessage = event => {
      wasOpen = true
      job.frame(event.data)
    }
    socket.onclose = async ({code, reason}) => {
      job.error(`closed ${code} ${reason}`)
      if (!job.set || (code >= 4000 && code < 4100)) return job.end()
      await pause()
      const url = job.url.replace('ws:', 'http:')
      const answer = wasOpen ? null : await fetch(url, {headers: job.headers}).catch(() => null)
      if (answer && job.refused(answer.status, await answer.text())) return job.end()
      LIBRARIES['undici WebSocket'](job)
    }
  },

  async 'fetch, line by line'(job) {
    do {
      try {
        const answer = await fetch(job.atCursor, {headers: {...job.headers, Accept: 'application/x-ndjson'}})
        if (!answer.ok && job.refused(answer.status, await answer.text())) break
        if (answer.ok) for await (const line of createInterface({input: Readable.fromWeb(answer.body)})) job.frame(line)
      } catch (problem) {
        job.error(problem)
      }
      await pause()
    } while (job.set)
    job.end()
  },
}

function addTo(headers, more) {
  return Array.isArray(headers) ? [...headers, ...Object.entries(more).flat()] : {...headers, ...more}
}

for await (const line of createInterface({input: process.stdin})) {
  const job = new Job(JSON.parse(line))
  try {
    LIBRARIES[job.library](job)
  } catch (problem) {
    job.error(problem)
    job.end()
  }
}
process.exit()
