// The browser client of Rejoin: topics over WebSocket, an HTTP stream or long-polling, with one cursor for all of them.
// It has no dependency and needs no build step. The server serves this file as it is.

/**
 * A message. `data` is JSON, text, or bytes. An ephemeral message has no id.
 * @template [T=any]
 * @typedef {{topic: string, id?: string, event?: string, data: T, by?: string, content_type?: string, encoding?: string,
 *   ephemeral?: boolean}} Message
 */
/**
 * The notice that messages are gone, or may be: load your state again.
 * @typedef {{topic: string, after: string, next: string | null, cursor: string, reason: string}} Gap
 */
/**
 * @typedef {'connecting' | 'live' | 'waiting' | 'refused' | 'closed'} State
 * @typedef {'ws' | 'ndjson' | 'poll'} Transport
 * @typedef {{connection?: string, cursor: string, mine?: string[], sub?: string, expires_in_ms?: number,
 *   heartbeat_ms?: number}} Open
 */
/**
 * - `token` gives the token of the user. It is asked again before the token ends. `null` or `''` means that there is none.
 * - `transports` are tried in this order.
 * - `shared` is a name for the login: all tabs with this name share one connection.
 * - `mine` also reads the topics that the backend keeps for the subject of the token.
 * - `after` is the cursor from which subscriptions begin that say nothing else.
 * - `echo: false` leaves out the messages that this client has published itself.
 * - `WebSocket` is a class for programs without one of their own.
 * @typedef {{token?: () => string | null | undefined | Promise<string | null | undefined>, transports?: Transport[],
 *   shared?: string | true, mine?: boolean, after?: string, echo?: boolean, WebSocket?: any}} Options
 */
/**
 * Where a subscription begins. Without any of these it begins with the next message.
 * `state` loads your own state: messages wait until it is done, and it is loaded again after a gap.
 * @typedef {{last?: number, after?: string, since?: string, state?: () => unknown}} Start
 */
/**
 * @template [T=any]
 * @typedef {{message: Message<T>, gap: Gap, subscribed: {topic: string, cursor: string}, refused: RejoinError}}
 *   SubscriptionEvents
 */
/** @typedef {{open: Open, state: State, refused: RejoinError, subscription: Subscription}} ClientEvents */
/**
 * A topic or pattern that is read. `on` returns a function that stops the handler. A loop over the subscription gets its
 * messages, and closes it at its end.
 * @template [T=any]
 * @typedef {{topic: string, on<K extends keyof SubscriptionEvents<T>>(type: K,
 *   handler: (event: SubscriptionEvents<T>[K]) => void): () => void, close(): void,
 *   [Symbol.asyncIterator](): AsyncGenerator<Message<T>, void, void>}} Subscription
 */
/**
 * @typedef {{event?: string, ephemeral?: boolean, key?: string}} PublishOptions
 * @typedef {{
 *   readonly state: State,
 *   readonly cursor: string | undefined,
 *   subscribe<T = any>(topic: string, start?: Start): Subscription<T>,
 *   publish(topic: string, data: unknown, options?: PublishOptions): Promise<string | undefined>,
 *   on<K extends keyof ClientEvents>(type: K, handler: (event: ClientEvents[K]) => void): () => void,
 *   close(): void,
 * }} Rejoin
 */

// The records inside of the client.
/**
 * A frame of the server, a problem, or the reason for which a connection has ended.
 * @typedef {{[name: string]: any}} Frame
 */
/**
 * A subscription. `at` is its own cursor, and counts beside that of the connection if it is newer. `isCaught` is set once
 * one stream can read it with the others, and `isLive` while one does.
 * @typedef {{name: string, start: {[name: string]: any}, load?: () => unknown, at?: string, from?: string,
 *   isCaught?: boolean, isLive?: boolean, isTold?: boolean, isLost?: boolean, isEnded?: boolean, isOfServer?: boolean, catching?: Promise<void>,
 *   pauses: number, held: Frame[], facade: Subscription, emit: (type: string, event?: any) => void}} Reading
 */
/**
 * One connection, or a chain of polls. `asked` are the subscriptions whose commands have no answer yet.
 * @typedef {{kind: string, names: Set<string>, readings: Reading[], isOpen?: boolean, isEnded?: boolean, heard: number, silence?: number, timer?: any,
 *   since: number, problem?: Frame, abort: AbortController, asked: Reading[],
 *   command?: (command: object, answered?: (frame: Frame) => void) => void, frame(frame: Frame): void,
 *   end(why?: Frame): void}} Link
 */

/** How many messages a subscription holds for its state or its loop. More are dropped, and read again. */
const MOST_HELD = 1000
/** How long a transport may take to its first frame. */
const FIRST_FRAME_MS = 4000
/** After this time a better transport is tried again. */
const BETTER_MS = 600_000
/** A longer URL is refused by some proxies. The other topics are subscribed by command. */
const URL_LENGTH = 8192
/** How long a message is sent again. The server knows its key for 5 minutes. */
const PUBLISH_MS = 240_000
/** A connection that lived for this long resets the back-off. */
const STABLE_MS = 10_000
/** How many seconds a poll is held. */
const WAIT = 25

const JSON_TYPE = 'application/json'
/** Events of the page that try again at once, or end the connection. */
const WAKING = ['online', 'pageshow', 'pagehide']
/** Refusals that do not change by themselves. */
const FINAL = /^(forbidden|bad_request|not_found|method_not|too_large|unsupported|upgrade_|disconnected|conflict|precondition|key_)/
const OF_TOKEN = /^(unauthorized|token_expired)$/

/** A refusal, with the code of the server, and the topic if it is about one. */
export class RejoinError extends Error {
  /** @param {Frame} problem */
  constructor({ code = 'unavailable', detail = code, topic }) {
    super(detail)
    this.name = 'RejoinError'
    /** @type {string} */
    this.code = code
    /** @type {string} */
    this.detail = detail
    /** @type {string | undefined} */
    this.topic = topic
  }
}

/** @returns {{on: any, emit: (type: string, event?: any) => void, has: (type: string) => boolean}} */
function emitter() {
  /** @type {Map<string, Set<(event: any) => void>>} */
  const all = new Map()
  return {
    on(/** @type {string} */ type, /** @type {(event: any) => void} */ handler) {
      const one = (/** @type {any} */ event) => handler(event)
      const handlers = all.get(type) ?? new Set()
      all.set(type, handlers.add(one))
      return () => { handlers.delete(one) }
    },
    emit(type, event) {
      for (const handler of [...all.get(type) ?? []]) {
        // A mistake in a handler is reported, and stops nothing else.
        try { handler(event) } catch (error) { queueMicrotask(() => { throw error }) }
      }
    },
    has: type => !!all.get(type)?.size,
  }
}

/** @param {string} pattern @param {string} topic */
function matches(pattern, topic) {
  if (pattern === topic) return true
  const segments = topic.split('.'), parts = pattern.split('.')
  if (topic[0] === '$' && pattern[0] === '*') return false
  return parts.every((part, at) => at < segments.length && (part[0] === '*' || part === segments[at]))
    && (pattern.endsWith('**') || parts.length === segments.length)
}

/** The newer of two cursors. @param {string} [a] @param {string} [b] */
const newer = (a, b) => !a || Number(b) > Number(a) ? b : a
const backOff = (/** @type {number} */ tries) => Math.random() * Math.min(20_000, 500 * 2 ** tries)
const hex = () => [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, '0')).join('')

/** A binary frame: its envelope, a line feed, and the bytes. @param {ArrayBuffer} buffer @returns {Frame} */
function binary(buffer) {
  const bytes = new Uint8Array(buffer), end = bytes.indexOf(10)
  return { ...JSON.parse(new TextDecoder().decode(bytes.subarray(0, end))), data: bytes.subarray(end + 1) }
}

/** How long a token lives, by its own claims. @param {string} token */
function lifeOf(token) {
  try {
    const claims = JSON.parse(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')))
    // The time of signing, if there is one: the clock of this machine may be wrong.
    return (claims.exp - (claims.iat ?? Date.now() / 1000)) * 1000
  } catch {
    return NaN
  }
}

/** The gaps and messages of a page: each gap before anything newer than its `after`. @param {Frame} page */
function* inOrder({ gaps = [], messages }) {
  const isDue = (/** @type {Frame} */ gap, /** @type {Frame} */ { id }) =>
    gap.reason === 'unknown_cursor' || Number(gap.after) < Number(id)
  for (const message of messages) {
    while (gaps.length && isDue(gaps[0], message)) yield gaps.shift()
    yield message
  }
  yield* gaps
}

/** True if a subscription begins with the next message. @param {Reading} reading */
const isPlain = reading => !Object.keys(reading.start).length

/**
 * Connects to the Rejoin server at this address.
 * @param {string | URL} url
 * @param {Options} [options]
 * @returns {Rejoin}
 */
export function connect(url, options = {}) {
  const base = new URL(url, globalThis.location?.href).href.replace(/^ws/, 'http').replace(/\/$/, '')
  const Socket = options.WebSocket ?? globalThis.WebSocket
  const kinds = (options.transports ?? ['ws', 'ndjson', 'poll']).filter(kind => kind !== 'ws' || Socket)
  const remembered = 'rejoin ' + base
  const { on, emit, has } = emitter()
  /** All subscriptions by name, and the names that are patterns. @type {Map<string, Set<Reading>>} */
  const readings = new Map()
  /** @type {Set<string>} */
  const patterns = new Set()
  /** The ids of messages that this client has published. @type {Set<string>} */
  const own = new Set()
  /** Replayed messages of a topic that the server is about to add. @type {Frame[]} */
  const strays = []
  /** Ends the pauses of publishing. @type {Set<() => void>} */
  const pauses = new Set()

  /** @type {State} */
  let state = 'connecting'
  let cursor = options.after
  /** @type {Link | undefined} */
  let link
  /** The connection that is not open yet. @type {Link | undefined} */
  let next
  /** @type {string | undefined} */
  let token
  let tokenEnds = Infinity
  /** @type {Promise<string> | undefined} */
  let asking
  /** Counts the attempts to connect. An older attempt ends when it sees a newer one. */
  let turns = 0
  let tries = 0
  let refusals = 0
  let at = 0
  let chosen = 0
  let hasOpened = false
  /** True if there was nothing to read, or the page is hidden for good. */
  let isIdle = true
  let isReplacing = false
  let mustReplace = false
  /** @type {string | undefined} */
  let echoing
  /** @type {Promise<any>} */
  let publishing = Promise.resolve()
  /** @type {{[name: string]: any}} */
  const timers = {}

  const isOver = () => state === 'refused' || state === 'closed'
  const all = () => [...readings.values()].flatMap(some => [...some])
  const later = (/** @type {string} */ name, /** @type {() => void} */ run, /** @type {number} */ ms) => {
    clearTimeout(timers[name])
    timers[name] = setTimeout(run, Math.min(ms, 2 ** 31 - 1))
  }
  const pause = (/** @type {number} */ ms) => new Promise((/** @type {(value?: any) => void} */ done) => {
    const resume = () => {
      clearTimeout(timer)
      pauses.delete(resume)
      done()
    }
    const timer = setTimeout(resume, ms)
    pauses.add(resume)
  })
  const say = (/** @type {State} */ now) => {
    if (state !== now) emit('state', state = now)
  }

  // The token.

  /** Asks for a token, once for all who wait. */
  function ask() {
    return asking ??= (async () => {
      try {
        const given = await options.token?.()
        if (!given) {
          const error = new RejoinError({ code: 'unauthorized', detail: 'token() gave none' })
          refuse(error)
          throw error
        }
        if (given !== token) expects(lifeOf(token = given))
        return token
      } finally {
        asking = undefined
      }
    })()
  }

  /** The token, if it has not ended. */
  const credential = async () => !options.token || token && Date.now() < tokenEnds ? token : ask()

  /** The token lives for so long. @param {number} life */
  function expects(life) {
    const isKnown = life > 0
    tokenEnds = isKnown ? Date.now() + life : Infinity
    if (isKnown) later('token', renew, Math.max(life * .8, life - 60_000))
  }

  async function renew(fails = 0) {
    if (isOver() || !link) return
    const old = token
    try {
      await ask()
    } catch {
      return later('token', () => renew(fails + 1), 100 + backOff(fails))
    }
    if (isOver() || old === token) return
    const auth = link?.command
    if (auth) {
      auth({ type: 'auth', token }, frame => {
        // Another user, or fewer rights: a new connection says what is refused.
        if (frame.type === 'error') replace(at)
        else if (frame.expires_in_ms) expects(frame.expires_in_ms)
      })
    } else if (link?.kind === 'ndjson') replace(at)
  }

  /**
   * A request. A refused token is asked for once more.
   * @param {string} path @param {RequestInit & {headers: {[name: string]: string}}} init
   */
  async function request(path, init) {
    for (let hasAsked = false; ; hasAsked = true) {
      const bearer = await credential()
      if (bearer) init.headers.Authorization = 'Bearer ' + bearer
      const answer = await fetch(base + path, { method: 'POST', credentials: 'include', cache: 'no-store', ...init })
      if (answer.ok) return answer
      /** @type {Frame} */
      const problem = await answer.json().catch(() => ({}))
      if (answer.status === 401 && bearer && !hasAsked) {
        if (token === bearer) token = undefined
        continue
      }
      throw { ...problem, isAsked: true, retry_ms: Number(answer.headers.get('retry-after')) * 1000 }
    }
  }

  /** Reads topics. @param {object} body @param {string} type @param {AbortSignal} signal */
  const read = (body, type, signal) => request('/events' + (options.mine ? '?mine' : ''), {
    headers: { 'Content-Type': 'application/json', Accept: type },
    body: JSON.stringify(body),
    signal,
  })

  // One connection.

  /** The subscriptions that the next stream can read together, and the cursor from which it does. */
  function together() {
    const known = all().filter(it => !it.isOfServer)
    const caught = known.filter(it => it.isCaught)
    const some = caught.length ? caught : hasOpened ? [] : known.filter(isPlain)
    const places = caught.map(position).filter(place => place)
    const after = places.reduce((a, b) => Number(b) < Number(a) ? b : a, places[0]) ?? (hasOpened ? cursor : undefined)
    return { some, after }
  }

  /** Up to here a subscription has been given everything. @param {Reading} reading */
  const position = reading => reading.isLive ? newer(reading.at, cursor) : reading.at

  /** Opens a connection, and resolves with its first frame. @param {string} kind @returns {Promise<void>} */
  const open = kind => new Promise((opened, failed) => {
    const { some, after } = together()
    let hasFailed = false
    /** @type {Link} */
    const one = next = {
      kind,
      names: new Set(),
      readings: some,
      heard: 0,
      since: Date.now(),
      abort: new AbortController(),
      asked: [],
      frame(frame) {
        if (one.isEnded) return
        one.heard = Date.now()
        if (frame.type === 'closing' || frame.type === 'error' && !one.isOpen) one.problem = frame
        if (frame.type === 'open') {
          one.isOpen = true
          clearTimeout(one.timer)
          if (frame.heartbeat_ms) watch(one, one.silence = frame.heartbeat_ms * 1.5)
          adopt(one, frame)
          opened()
        }
        if (link === one) take(one, frame)
      },
      end(why = {}) {
        if (one.isEnded) return
        one.isEnded = true
        clearTimeout(one.timer)
        one.abort.abort()
        if (next === one) next = undefined
        if (!one.isOpen && !hasFailed) failed(why)
        hasFailed = true
        if (link === one) lost(why)
      },
    }
    one.timer = setTimeout(() => one.end(), FIRST_FRAME_MS)
    const run = { ws: webSocket, ndjson: lines, poll: polls }[kind]
    run?.(one, after).catch((/** @type {Frame} */ why) => one.end(why.isAsked ? why : {}))
  })

  /** Ends a connection that is silent. @param {Link} one @param {number} ms */
  function watch(one, ms) {
    const left = one.heard + ms - Date.now()
    if (one.isEnded) return
    if (left <= 0) one.end()
    else one.timer = setTimeout(() => watch(one, ms), left)
  }

  /** @param {Link} one @param {string} [after] */
  async function webSocket(one, after) {
    const bearer = await credential()
    const query = new URLSearchParams()
    if (options.mine) query.set('mine', '')
    if (after) query.set('after', after)
    const address = base.replace('http', 'ws') + '/events?'
    let length = address.length + query.toString().length
    one.readings = one.readings.filter(({ name }) => {
      if (one.names.has(name)) return true
      length += 7 + encodeURIComponent(name).length
      if (length > URL_LENGTH) return false
      one.names.add(name)
      query.append('topic', name)
      return true
    })
    if (one.isEnded) return
    const socket = new Socket(address + query, ['rejoin.v1', ...bearer ? ['bearer.' + bearer] : []])
    socket.binaryType = 'arraybuffer'
    one.abort.signal.onabort = () => {
      // First the handlers: a dead path brings more, and keeps the socket open for a minute.
      socket.onmessage = socket.onclose = null
      socket.close()
    }
    /** @type {Map<number, ((frame: Frame) => void) | undefined>} */
    const waiting = new Map()
    let refs = 0
    one.command = (command, answered) => {
      waiting.set(++refs, answered)
      socket.send(JSON.stringify({ ...command, ref: refs }))
    }
    socket.onerror = () => {}
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => {
      const frame = typeof data === 'string' ? JSON.parse(data) : binary(data)
      one.frame(frame)
      waiting.get(frame.ref)?.(frame)
      waiting.delete(frame.ref)
    }
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => {
      const isFault = code === 1002 || code === 1003 || code === 1007 || code === 1009
      one.end(one.problem ?? (code >= 4000 ? { code: reason }
        : isFault ? { code: 'bad_request', detail: `the server closed the connection: ${code} ${reason}` } : {}))
    }
  }

  /** @param {Link} one @param {string} [after] */
  async function lines(one, after) {
    const topics = [...one.names = new Set(one.readings.map(it => it.name))]
    const answer = await read({ topics, after }, 'application/x-ndjson', one.abort.signal)
    const body = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader(), text = new TextDecoder()
    for (let rest = ''; ;) {
      const { value, done } = await body.read()
      if (done) return one.end(one.problem)
      const parts = (rest + text.decode(value, { stream: true })).split('\n')
      rest = /** @type {string} */ (parts.pop())
      for (const part of parts) one.frame(JSON.parse(part))
    }
  }

  /** @param {Link} one @param {string} [after] */
  async function polls(one, after) {
    const topics = [...one.names = new Set(one.readings.map(it => it.name))]
    // The first is not held, since its answer shows that polls work.
    for (let wait = 0; !one.isEnded; wait = WAIT) {
      if (one.isOpen) one.timer = setTimeout(() => one.end(), (wait + 5) * 1000)
      const page = await (await read({ topics, after, wait }, JSON_TYPE, one.abort.signal)).json()
      clearTimeout(one.timer)
      if (!one.isOpen) one.frame({ type: 'open', cursor: after ?? page.cursor, mine: page.mine })
      for (const frame of inOrder(page)) one.frame(frame)
      after = page.cursor
      one.frame({ type: 'cursor', cursor: after })
    }
  }

  /** A connection is open, and takes the place of the one before. @param {Link} one @param {Frame} frame */
  function adopt(one, frame) {
    leave()
    link = one
    next = undefined
    cursor = frame.cursor
    hasOpened = true
    refusals = 0
    for (const reading of one.readings) joined(reading, frame.cursor)
    for (const topic of frame.mine ?? []) byServer({ topic, cursor })
    if (frame.expires_in_ms) expects(frame.expires_in_ms)
    say('live')
    emit('open', frame)
    for (const reading of all()) join(reading)
    if (at) later('better', () => replace(0), BETTER_MS)
  }

  /** Leaves the connection. Each subscription keeps its place. */
  function leave() {
    for (const reading of all()) {
      reading.at = position(reading)
      reading.isLive = false
    }
    const one = link
    link = undefined
    one?.end()
  }

  /** Takes what the connection brings. @param {Link} one @param {Frame} frame */
  function take(one, frame) {
    const { type, topic, id, replay } = frame
    if (type === 'message' || type === 'gap') {
      if (!replay && Number(id) <= Number(cursor)) return
      for (const reading of readers(topic)) {
        if (replay ? reading === one.asked[0] : reading.isLive) give(reading, frame)
      }
      // The server tells the topic that it adds only after its older messages.
      if (replay && !one.asked.length && strays.push(frame) > MOST_HELD) strays.shift()
    } else if (frame.by === 'server') byServer(frame)
    else if (type === 'state') say(frame.state)
    const place = type === 'message' ? id : frame.cursor
    if (place && !replay) cursor = place
  }

  /** The subscriptions that match this topic. @param {string} topic @returns {Reading[]} */
  const readers = topic => [topic, ...[...patterns].filter(name => name !== topic && matches(name, topic))]
    .flatMap(name => [...readings.get(name) ?? []])

  /** Gives a message or a gap to one subscription, unless it has had it. @param {Reading} reading @param {Frame} frame */
  function give(reading, frame) {
    const isUnknown = frame.reason === 'unknown_cursor'
    const place = frame.type === 'gap' ? frame.next ?? frame.cursor : frame.id
    if (Number(place) <= Number(reading.at) && !isUnknown) return
    const before = position(reading)
    // The ids of a store that does not know the cursor may be smaller.
    if (isUnknown) reading.at = frame.cursor
    else if (!reading.isLive) reading.at = frame.id ?? reading.at
    if (!reading.pauses && !reading.held.length && frame.topic !== echoing) return tell(reading, frame)
    if (!reading.held.length) reading.from = before
    if (reading.held.push(frame) <= MOST_HELD) return
    reading.held = []
    reading.at = reading.from
    reading.isLost = true
    reading.isLive = reading.isCaught = false
  }

  /** @param {Reading} reading @param {Frame} frame */
  function tell(reading, { type, ...event }) {
    if (reading.isEnded || own.has(event.id)) return
    reading.emit(type, event)
    if (type === 'gap') load(reading)
  }

  /** Tells what was held, as far as it may be told. @param {Reading} reading */
  function flush(reading) {
    while (reading.held.length && !reading.pauses && reading.held[0].topic !== echoing) {
      tell(reading, /** @type {Frame} */ (reading.held.shift()))
    }
    if (!reading.isLost || reading.pauses) return
    reading.isLost = false
    join(reading)
  }

  /** @param {Reading} reading @param {1 | -1} more */
  function hold(reading, more) {
    reading.pauses += more
    flush(reading)
  }

  /** Loads the state of the page. Its messages wait. @param {Reading} reading */
  async function load(reading) {
    if (!reading.load) return
    hold(reading, 1)
    for (let fails = 0; !reading.isEnded; fails++) {
      try {
        await reading.load()
        break
      } catch {
        await pause(200 + backOff(fails))
      }
    }
    hold(reading, -1)
  }

  // Subscriptions.

  /** The connection reads this subscription with the others from now on. @param {Reading} reading @param {string} place */
  function joined(reading, place) {
    if (reading.isEnded) return
    reading.at ??= place
    reading.isLive = reading.isCaught = true
    if (reading.isTold) return
    reading.isTold = true
    reading.emit('subscribed', { topic: reading.name, cursor: reading.at })
    load(reading)
  }

  /** Reads a subscription over the connection that is open. @param {Reading} reading @returns {Promise<void>} */
  async function join(reading) {
    const { name, at: place } = reading, one = link
    if (!one || reading.isLive || reading.isLost || reading.isEnded || reading.isOfServer || one.asked.includes(reading)) return
    const isRead = one.names.has(name)
    if (isRead && !place && isPlain(reading)) return joined(reading, /** @type {string} */ (cursor))
    if (isRead || !one.command) return catchUp(reading).then(() => follow(reading), () => soon(reading))
    one.names.add(name)
    one.asked.push(reading)
    one.command({ type: 'subscribe', topic: name, ...place ? { after: place } : reading.start }, frame => {
      one.asked.shift()
      if (frame.type !== 'error') return joined(reading, frame.cursor)
      one.names.delete(name)
      if (FINAL.test(frame.code) || frame.code === 'unauthorized') refuseTopic(name, frame)
      else soon(reading)
    })
  }

  /** @param {Reading} reading @returns {Promise<void>} */
  const soon = reading => pause(1000 + backOff(3)).then(() => join(reading))

  /** A subscription has caught up by polls. The connection can read it. @param {Reading} reading */
  function follow(reading) {
    if (!link || !reading.isCaught || reading.isLive) return
    if (!link.names.has(reading.name)) replace(at)
    else joined(reading, /** @type {string} */ (reading.at))
  }

  /** Reads a subscription by polls of its own, up to the place of the connection. @param {Reading} reading */
  const catchUp = reading => reading.catching ??= pages(reading).finally(() => { reading.catching = undefined })

  /** @param {Reading} reading */
  async function pages(reading) {
    const { name } = reading
    const isBehind = () => !!link && Number(reading.at) < Number(cursor)
    for (let isFull = true; isFull || isBehind();) {
      const from = reading.at ? { after: reading.at } : reading.start
      const stop = new AbortController(), late = setTimeout(() => stop.abort(), 15_000)
      let page
      try {
        page = await (await read({ topics: [name], ...from, wait: 0, limit: 1000 }, JSON_TYPE, stop.signal)).json()
      } catch (/** @type {any} */ why) {
        if (FINAL.test(why.code)) return refuseTopic(name, why)
        throw why
      } finally {
        clearTimeout(late)
      }
      if (reading.isLive || reading.isEnded) return
      for (const frame of inOrder(page)) if (!reading.isLost) give(reading, frame)
      if (reading.isLost) return
      reading.at = page.cursor
      isFull = page.messages.length === 1000
    }
    reading.isCaught = true
  }

  /** @param {string} topic @param {Start} [start] @returns {Subscription} */
  function subscribe(topic, { state: load, last, after, since } = {}) {
    const start = JSON.parse(JSON.stringify({ last, after, since }))
    const isGiven = Object.keys(start).length
    if (load && isGiven) throw new TypeError('state takes no other start')
    const isFirst = !isGiven && !hasOpened && options.after
    return begin(topic, { load, start, at: after ?? (isFirst || undefined), isCaught: !!isFirst })
  }

  /** @param {string} name @param {Partial<Reading>} given */
  function begin(name, given) {
    const { on, emit } = emitter()
    const facade = { topic: name, on, close: () => end(reading), [Symbol.asyncIterator]: () => loop(reading, on) }
    /** @type {Reading} */
    const reading = { name, start: {}, pauses: 0, held: [], emit, facade, isEnded: isOver(), ...given }
    if (reading.isEnded) return facade
    readings.set(name, (readings.get(name) ?? new Set()).add(reading))
    if (name.includes('*')) patterns.add(name)
    wake()
    join(reading)
    return facade
  }

  /** The messages of a subscription. If the loop is slow, they wait on the server. @param {Reading} reading @param {any} on */
  async function* loop(reading, on) {
    /** @type {Message[]} */
    const queue = []
    let isFull = false, resume = () => {}
    /** @type {Error | undefined} */
    let error
    on('message', (/** @type {Message} */ message) => {
      queue.push(message)
      if (queue.length >= MOST_HELD && !isFull) {
        isFull = true
        hold(reading, 1)
      }
      resume()
    })
    on('end', (/** @type {Error | undefined} */ why) => {
      error = why
      resume()
    })
    try {
      for (;;) {
        while (queue.length) yield /** @type {Message} */ (queue.shift())
        if (error) throw error
        if (reading.isEnded) return
        if (isFull) {
          isFull = false
          hold(reading, -1)
        } else await new Promise(done => { resume = /** @type {() => void} */ (done) })
      }
    } finally {
      end(reading)
    }
  }

  /** @param {Reading} reading @param {Error} [error] */
  function end(reading, error) {
    const { name } = reading, some = readings.get(name)
    if (reading.isEnded) return
    reading.isEnded = true
    reading.held = []
    some?.delete(reading)
    reading.emit('end', error)
    if (some?.size) return
    readings.delete(name)
    patterns.delete(name)
    if (!link?.names.delete(name)) return
    if (link.command) link.command({ type: 'unsubscribe', topic: name })
    else if (link.names.size) replace(at)
    else rest()
  }

  /** A topic is refused. The others go on. @param {string} name @param {Frame} problem */
  function refuseTopic(name, problem) {
    const error = new RejoinError({ ...problem, topic: name })
    for (const reading of readings.get(name) ?? []) {
      reading.emit('refused', error)
      end(reading, error)
    }
  }

  /** The server has added a topic, or taken it. @param {Frame} frame */
  function byServer({ type, topic, cursor: place }) {
    const find = () => [...readings.get(topic) ?? []].find(it => it.isOfServer)
    let reading = find()
    if (type === 'unsubscribed') return reading && end(reading)
    if (!reading) {
      emit('subscription', begin(topic, { isOfServer: true }))
      reading = find()
    }
    if (!reading) return
    for (const frame of strays.splice(0)) if (matches(topic, frame.topic)) give(reading, frame)
    reading.at = newer(reading.at, place)
    joined(reading, place)
  }

  // Publishing.

  /** @param {string} topic @param {unknown} data @param {PublishOptions} [given] @returns {Promise<string | undefined>} */
  function publish(topic, data, given = {}) {
    const sent = publishing.then(() => send(topic, data, given))
    publishing = sent.catch(() => {})
    return sent
  }

  /** @param {string} topic @param {unknown} data @param {PublishOptions} given */
  async function send(topic, data, { event, ephemeral, key = hex() }) {
    const until = Date.now() + PUBLISH_MS
    const query = new URLSearchParams({ ...event && { event }, ...ephemeral && { ephemeral: '' } })
    const headers = { 'Content-Type': JSON_TYPE, ...!ephemeral && { 'Idempotency-Key': key } }
    let isUnsure = false
    if (options.echo === false && !ephemeral) echoing = topic
    try {
      for (let fails = 0; ; fails++) {
        const stop = new AbortController(), late = setTimeout(() => stop.abort(), 30_000)
        try {
          const path = `/topics/${encodeURIComponent(topic)}?${query}`
          const { id } = await (await request(path, { headers, body: JSON.stringify(data), signal: stop.signal })).json()
          if (echoing && own.add(id).size > MOST_HELD) own.delete(/** @type {string} */ (own.values().next().value))
          return id
        } catch (/** @type {any} */ why) {
          isUnsure ||= !why.code || why.code === 'unknown_outcome'
          const isFinal = FINAL.test(why.code) || OF_TOKEN.test(why.code) || ephemeral || isOver()
          if (!isFinal && Date.now() < until) await pause(backOff(fails))
          if (isFinal || Date.now() >= until) throw isUnsure ? new RejoinError({ code: 'unknown_outcome' }) : new RejoinError(why)
        } finally {
          clearTimeout(late)
        }
      }
    } finally {
      echoing = undefined
      for (const reading of all()) flush(reading)
    }
  }

  // Coming back.

  /** Ends the connection, until something wakes it. */
  function rest() {
    turns++
    clearTimeout(timers.go)
    isIdle = true
    next?.end()
    leave()
    if (!isOver()) say('waiting')
  }

  function wake() {
    if (!isIdle) return
    isIdle = false
    timers.go = setTimeout(go)
  }

  /** @returns {Promise<void>} */
  async function go() {
    const turn = ++turns
    clearTimeout(timers.go)
    if (isOver()) return
    next?.end()
    if (!options.mine && !has('open') && !all().some(it => !it.isOfServer)) return rest()
    isIdle = false
    say('connecting')
    for (let kind = first(); kind < kinds.length; kind++) {
      try {
        return await reach(kind, () => turn === turns)
      } catch (/** @type {any} */ why) {
        if (turn !== turns) return
        if (why.code) return judge(why)
      }
    }
    retry()
  }

  /** Opens a connection of this kind. @param {number} kind @param {() => boolean} isWanted */
  async function reach(kind, isWanted) {
    await credential()
    const isSocket = kinds[kind] === 'ws'
    // An HTTP stream has one start for all. So other starts are read before.
    const some = all().filter(it => !it.isOfServer), fresh = some.filter(it => !it.isCaught)
    const isAlike = fresh.length === some.length && fresh.every(isPlain) && !hasOpened
    if (!isSocket && !isAlike) await Promise.all(fresh.map(catchUp))
    if (!isWanted() || !isSocket && !together().some.length) throw {}
    await open(kinds[kind])
    if (kind !== at || !kind) chosen = Date.now()
    at = kind
    try { sessionStorage.setItem(remembered, kinds[kind] + ' ' + chosen) } catch { /* as in first() */ }
  }

  /** The transport to begin with: the best, or the one that has worked shortly before. */
  function first() {
    try {
      const [kind, since] = sessionStorage.getItem(remembered)?.split(' ') ?? []
      const found = kinds.findIndex(it => it === kind)
      if (found > 0 && !hasOpened) [at, chosen] = [found, Number(since)]
    } catch { /* the browser forbids storage, or has none */ }
    return Date.now() - chosen < BETTER_MS ? at : 0
  }

  /** Opens another connection, and only then closes this one. @param {number} from */
  async function replace(from) {
    mustReplace = true
    if (isReplacing) return
    isReplacing = true
    // Subscriptions that come together are read together.
    await undefined
    while (mustReplace && link) {
      mustReplace = false
      const old = link, last = at
      for (let kind = from; kind <= last && link === old; kind++) {
        try {
          await reach(kind, () => link === old)
        } catch (/** @type {any} */ why) {
          if (link !== old) break
          if (FINAL.test(why.code) || OF_TOKEN.test(why.code)) judge(why)
          else if (kind === last) later('better', () => replace(at), 1000 + backOff(3))
        }
      }
    }
    isReplacing = false
  }

  /** The connection has ended. @param {Frame} why */
  function lost(why) {
    if (link && Date.now() - link.since > STABLE_MS) tries = 0
    leave()
    if (why.code) judge(why)
    else retry()
  }

  /** Does what the reason for an end asks for. @param {Frame} why @returns {void | Promise<void>} */
  function judge(why) {
    const { code, topic, detail } = why
    if (OF_TOKEN.test(code) && options.token && !why.isAsked && !refusals++) {
      token = undefined
      return hasOpened ? retry(why.retry_ms) : go()
    }
    if (!FINAL.test(code) && !OF_TOKEN.test(code)) return retry(why.retry_ms)
    const names = [...readings.keys()]
    const name = topic ?? names.find(it => /^(bad_r|forbidden$|unauth)/.test(code) && detail?.includes(it))
    if (!readings.has(name) || options.token && OF_TOKEN.test(code)) return refuse(new RejoinError(why))
    refuseTopic(name, why)
    go()
  }

  /** @param {number} [least] */
  function retry(least = 0) {
    say('waiting')
    later('go', go, Math.max(least, backOff(tries++)))
  }

  /** @param {RejoinError} error */
  function refuse(error) {
    finish('refused', error)
    emit('refused', error)
  }

  /** @param {State} now @param {Error} [error] */
  function finish(now, error) {
    if (isOver()) return
    say(now)
    rest()
    for (const name in timers) clearTimeout(timers[name])
    for (const reading of all()) end(reading, error)
    for (const type of WAKING) globalThis.removeEventListener?.(type, hurry)
    globalThis.document?.removeEventListener('visibilitychange', hurry)
  }

  /** The page comes or goes, or the network is back. @param {Event} event */
  function hurry({ type }) {
    if (type === 'pagehide') return rest()
    if (globalThis.document?.visibilityState === 'hidden') return
    for (const resume of pauses) resume()
    if (type === 'online') chosen = 0
    if (link?.silence && Date.now() - link.heard > link.silence) link.end()
    if (!link && !next && turns) go()
    else if (link && type === 'online') replace(0)
  }
  for (const type of WAKING) globalThis.addEventListener?.(type, hurry)
  globalThis.document?.addEventListener('visibilitychange', hurry)
  if (options.mine) wake()

  return {
    get state() { return state },
    get cursor() { return cursor },
    subscribe,
    publish,
    on(type, handler) {
      if (type === 'open') wake()
      return on(type, handler)
    },
    close: () => finish('closed'),
  }
}
