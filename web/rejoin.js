// The browser client of Rejoin: topics over WebSocket, an HTTP stream or long-polling, with one cursor for all of them.
// It has no dependency and needs no build step. The server serves this file as it is.

/** A refusal, with the code of the server, and the topic if it is about one.
 * @typedef {Error & {code: string, detail?: string, topic?: string}} RejoinError
 */
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
 * `presence` shows others that the subject of the token is there.
 * @typedef {{last?: number, after?: string, since?: string, state?: () => unknown, presence?: boolean}} Start
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
 *   presence(topic: string): Promise<import('./rejoin-presence.js').Presence>,
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
 * A subscription. `at` is its own cursor, and counts beside that of the connection if it is newer. `caught` is set once
 * one stream can read it with the others, and `live` while one does. `by` is set if the server has added it. `wait` counts
 * the states and loops for which its messages wait.
 * @typedef {{name: string, start: Start, presence?: boolean, load?: () => unknown, at?: string,
 *   caught?: boolean, live?: boolean, told?: boolean, lost?: boolean, ended?: boolean, by?: boolean,
 *   wait: number, error?: RejoinError, gap?: any, held: Frame[], subscription: Subscription, emit: (type: string, event?: any) => void}} Reading
 */
/**
 * One connection, or a chain of polls. It reads the topics in `names` for the client, and those in `added` because the
 * server has added them. `asked` are the commands that have no answer yet.
 * @typedef {{names: Set<string>, added: Set<string>, readings: Reading[], ended?: boolean, timer?: any,
 *   reason?: Frame, abort: AbortController, asked: {answered?: (frame: Frame) => void, name?: string, topic?: string}[],
 *   command?: (command: object, answered?: (frame: Frame) => void, name?: string) => void, frame(frame: Frame): void,
 *   end(why?: Frame): void}} Link
 */

/** How many messages a subscription holds for its state or its loop, and how many a page has. More are read again. */
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
/** One and a half of this is 5 s more than a poll is held. */
const POLL_MS = 20_000

const JSON_TYPE = 'application/json'
/** Refusals that do not change by themselves. */
const FINAL = /^(unau|[bckmn]|di|fo|too_l)/

/** An error with the code of the server, and the topic if it is about one. @param {Frame} problem @returns {RejoinError} */
const failure = problem => Object.assign(/** @type {any} */ (Error(problem.detail ?? problem.code)), problem)

/** @returns {{on: any, emit: (type: string, event?: any) => void}} */
function emitter() {
  /** @type {Set<[string, (event: any) => void]>} */
  const all = new Set()
  return {
    on(/** @type {[string, (event: any) => void]} */ ...one) {
      all.add(one)
      return () => all.delete(one)
    },
    // A mistake in a handler is reported, as of every promise, and stops nothing else.
    emit: (type, event) => [...all].forEach(async ([of, handler]) => of === type && handler(event)),
  }
}

/** @param {string} name A topic or pattern. @param {string} topic */
function matches(name, topic) {
  const parts = name.split('.'), segments = topic.split('.')
  return (parts.length === segments.length || name.endsWith('**')) && parts.every(
    (part, at) => part === segments[at] || part[0] === '*' && segments[at] && (at || topic[0] !== '$'))
}

/** False if there is none to compare. @param {any} a @param {any} b */
const isNewer = (a, b) => a - b > 0
/** The newer of two cursors. @param {string} [a] @param {string} [b] */
const newer = (a, b) => isNewer(a, b) ? a : b
const backOff = (/** @type {number} */ tries) => Math.random() * Math.min(20_000, 500 * 2 ** tries)

/** A binary frame: its envelope, a line feed, and the bytes. @param {ArrayBuffer} buffer @returns {Frame} */
function binary(buffer) {
  const bytes = new Uint8Array(buffer), end = bytes.indexOf(10)
  return { ...JSON.parse(new TextDecoder().decode(bytes.subarray(0, end))), data: bytes.subarray(end + 1) }
}

/** The gaps and messages of a page: each gap before anything newer than its `after`. @param {Frame} page @returns {Frame[]} */
const inOrder = ({ gaps = [], messages }) => [...messages, ...gaps].sort((a, b) => placeOf(a) - placeOf(b))
const placeOf = (/** @type {Frame} */ { id, reason, after }) => id ?? (reason === 'unknown_cursor' ? 0 : after ?? 9e15)

/** True if a subscription begins with the next message. @param {{start: Start}} reading */
const isPlain = ({ start }) => JSON.stringify(start) === '{}'

/**
 * Connects to the Rejoin server at this address.
 * @param {string | URL} url
 * @param {Options} [options]
 * @returns {Rejoin}
 */
export function connect(url, options = {}) {
  /** The address of the server, which is also the name under which the transport is remembered. */
  const base = new URL(url, globalThis.location?.href).href.replace(/\/$/, '')
  const Socket = options.WebSocket ?? globalThis.WebSocket
  const kinds = (options.transports ?? ['ws', 'ndjson', 'poll']).filter(it => Socket || it !== 'ws')
  const events = options.mine ? '/events?mine=' : '/events?'
  const { on, emit } = emitter()
  /** All subscriptions. Each change makes another list. @type {Reading[]} */
  let readings = []
  /** The ids of messages that this client has published. @type {Set<string>} */
  const own = new Set()
  /** What was replayed for subscriptions that are not told yet. @type {Frame[]} */
  let strays = []

  /** @type {State} */
  let state = 'connecting'
  let cursor = options.after
  /** @type {Link | undefined} */
  let link
  /** The connection that is not open yet. @type {Link | undefined} */
  let next
  /** @type {string | null | undefined} */
  let token
  let tokenEnds = Infinity
  /** @type {Promise<string> | undefined} */
  let asking
  /** Counts the attempts to connect. An older attempt ends when it sees a newer one. */
  let turns = 0
  let tries = 0
  /** How often a refused token is asked for again. The end of a token on a connection counts too. */
  let chances = 1
  let at = 0
  let keptUntil = 0
  /** True if the page wants a connection without topics. */
  let isWanted = options.mine
  /** The other tabs, if they share this connection. @type {ReturnType<typeof import('./rejoin-shared.js').share> | undefined} */
  let tabs
  /** @type {string | undefined} */
  let echoing
  /** @type {Promise<any>} */
  let publishing = Promise.resolve()
  /** Ends the wait of a message that is to be sent again: the way to the server is back. @type {(_?: any) => void} */
  let resend = () => {}
  const listening = new AbortController()
  /** @type {{[name: string]: any}} */
  const timers = {}

  const isFresh = () => cursor === options.after
  const isOver = () => listening.signal.aborted
  const named = (/** @type {string} */ name) => readings.filter(it => it.name === name)
  /** Those of the client, and not of the server. */
  const known = (some = readings) => some.filter(it => !it.by)
  const isAsked = (/** @type {string} */ name) => link?.asked.some(it => it.name === name)
  const later = (/** @type {string} */ name, /** @type {() => void} */ run, /** @type {number} */ ms) => {
    clearTimeout(timers[name])
    timers[name] = setTimeout(run, Math.min(2e9, ms))
  }
  const say = (/** @type {State} */ now) => state === now || emit('state', state = now)

  // The token.

  /** Asks for a token, once for all who wait. */
  const ask = () => asking ??= (async () => {
    token = await options.token?.()
    if (!token) throw refuse({ code: 'unauthorized', answered: true })
    tokenEnds = Infinity
    return token
  })().finally(() => { asking = undefined })

  /** The token, if it has not ended. */
  const credential = async () => options.token && (Date.now() < tokenEnds && token || ask())

  /** The server has told how long the token lives. @param {Frame} frame */
  function expects({ expires_in_ms: life }) {
    if (life && options.token) {
      tokenEnds = Date.now() + life
      later('token', renew, Math.max(life * .8, life - 60_000))
    }
  }

  function renew() {
    if (link) ask().then(() => {
      if (link?.command) {
        link.command({ type: 'auth', token }, frame => {
          // Another user, or fewer rights: a new connection says what is refused.
          if (frame.code) again()
          else expects(frame)
        })
      } else again()
    }, () => later('token', renew, backOff(2)))
  }

  /**
   * Sends JSON, or asks for it. A refused token is asked for once more.
   * @param {string} path @param {object} [body] @param {AbortSignal} [signal] @param {string} [type] @returns {Promise<any>}
   */
  async function request(path, body, signal = AbortSignal.timeout(30_000), type = JSON_TYPE) {
    for (let times = 0; ; times++) {
      const bearer = await credential()
      const answer = await fetch(base + path, {
        method: body && 'POST',
        credentials: 'include',
        body: JSON.stringify(body),
        signal,
        headers: { 'Content-Type': JSON_TYPE, Accept: type, ...bearer && { Authorization: 'Bearer ' + bearer } },
      })
      if (answer.ok) return type === JSON_TYPE ? answer.json() : answer
      /** @type {Frame} */
      const problem = await answer.json().catch(() => ({}))
      if (answer.status !== 401 || !bearer || times) throw { ...problem, answered: problem.code, retry_ms: 1000 }
      if (token === bearer) token = undefined
    }
  }

  // One connection.

  /** The subscriptions that the next stream can read together, and the cursor from which it does. */
  function together() {
    // A topic of the list of the subject is read from the same cursor.
    const some = (options.mine ? readings : known()).filter(it => it.caught || isFresh() && isPlain(it))
    return { some, after: some.map(position).sort((/** @type {any} */ a, /** @type {any} */ b) => a - b)[0] ?? cursor }
  }

  /** Up to here a subscription has been given everything. @param {Reading} reading */
  const position = reading => reading.live ? newer(reading.at, cursor) : reading.at

  /**
   * Opens a connection, and resolves with its first frame.
   * @param {(one: Link, after?: string) => Promise<void>} run @returns {Promise<void>}
   */
  const open = run => new Promise((opened, failed) => {
    const { some, after } = together()
    const since = Date.now()
    let silence = FIRST_FRAME_MS
    /** @type {Link} */
    const one = next = {
      names: new Set(known(some).map(it => it.name)),
      added: new Set(),
      readings: some,
      abort: new AbortController(),
      asked: [],
      frame(frame) {
        if (one.ended) return
        // The error of a command carries its `ref`.
        if (frame.code && !frame.ref) one.reason = frame
        if (frame.type === 'open') {
          silence = frame.heartbeat_ms * 1.5
          adopt(one, frame)
          opened()
        }
        listen()
        if (link === one) take(frame)
        // Answers come in the order of the commands.
        if (frame.ref) one.asked.shift()?.answered?.(frame)
      },
      end(why = {}) {
        if (one.ended) return
        one.ended = true
        clearTimeout(one.timer)
        one.abort.abort()
        if (next === one) next = undefined
        failed(why)
        if (link !== one) return
        if (Date.now() - since > STABLE_MS) tries = 0
        leave()
        judge(why)
      },
    }
    const listen = () => {
      clearTimeout(one.timer)
      one.timer = one.ended || setTimeout(one.end, silence)
    }
    listen()
    run(one, after).catch((/** @type {Frame} */ why) => one.end(why.answered ? why : {}))
  })

  /** @param {Link} one @param {string} [after] */
  async function webSocket(one, after) {
    const bearer = await credential()
    let address = base.replace('http', 'ws') + events + (after ? '&after=' + after : '')
    for (const name of one.names) {
      const more = '&topic=' + encodeURIComponent(name)
      if ((address + more)[URL_LENGTH]) one.names.delete(name)
      else address += more
    }
    if (one.ended) return
    const socket = new Socket(address, bearer ? ['rejoin.v1', 'bearer.' + bearer] : 'rejoin.v1')
    socket.binaryType = 'arraybuffer'
    // A dead path keeps the socket open for a minute, and may bring more. `frame` drops that.
    one.abort.signal.onabort = () => socket.close()
    one.command = (command, answered, name) => {
      one.asked.push({ answered, name })
      socket.send(JSON.stringify({ ...command, ref: 1 }))
    }
    // Only a text has the method `at`.
    socket.onmessage = (/** @type {MessageEvent} */ { data }) => one.frame(data.at ? JSON.parse(data) : binary(data))
    // A WebSocket of Node throws an error that no handler takes.
    socket.onerror = () => {}
    socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => {
      // These four say that the client has broken the protocol or a limit.
      one.end(one.reason ?? { code: /^100[2379]/.test(/** @type {any} */ (code)) ? 'bad_request' : reason })
    }
  }

  /** Over HTTP the flag is for all topics of a connection. @param {Link} one */
  const isPresent = one => one.readings.some(it => it.presence)
  /** @param {Link} one @param {number} [wait] */
  const of = (one, wait = 1) => ({ topics: [...one.names], presence: wait > 0 && isPresent(one) })

  /** @param {Link} one @param {string} [after] */
  async function lines(one, after) {
    const answer = await request(events, { ...of(one), after }, one.abort.signal, 'application/x-ndjson')
    const body = /** @type {ReadableStream} */ (answer.body).pipeThrough(new TextDecoderStream()).getReader()
    for (let rest = ''; ;) {
      const { value, done } = await body.read()
      if (done) return one.end(one.reason)
      const parts = (rest + value).split('\n')
      rest = /** @type {string} */ (parts.pop())
      for (const part of parts) one.frame(JSON.parse(part))
    }
  }

  /** @param {Link} one @param {string} [after] */
  async function polls(one, after) {
    // The first is not held, since its answer shows that polls work. So it makes nobody present.
    for (let wait = 0, mine; !one.ended; wait = WAIT) {
      const page = await request(events, { ...of(one, wait), after, wait }, one.abort.signal)
      // The list of the subject has changed. The next `open` says how.
      if (wait && mine !== '' + page.mine) return again()
      mine = '' + page.mine
      if (!wait) one.frame({ type: 'open', cursor: after ?? page.cursor, mine: page.mine, heartbeat_ms: POLL_MS })
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
    chances = 2
    for (const reading of one.readings) if (one.names.has(reading.name)) joined(reading, frame.cursor)
    // These topics have left the list meanwhile.
    drop(readings.filter(it => it.by && options.mine && !frame.mine?.includes(it.name)))
    for (const topic of frame.mine ?? []) if (link) byServer({ topic, cursor })
    if (!link) return
    expects(frame)
    say('live')
    emit('open', frame)
    joinAll()
    resend()
  }

  /** Leaves the connection. Each subscription keeps its place. */
  function leave() {
    for (const reading of readings) {
      reading.at = position(reading)
      reading.live = false
    }
    const one = link
    link = undefined
    strays = []
    one?.end()
  }

  /** Takes what the connection brings. @param {Frame} frame */
  function take(frame) {
    const { type, topic, id } = frame
    if (frame.replay) {
      // They belong to the `subscribed` that comes after them.
      strays.push(frame)
    } else {
      if (/^[gm]/.test(type)) {
        if (id && !isNewer(id, cursor)) return
        for (const reading of readings) if (reading.live && (matches(reading.name, topic) || reading.by && topic === '$mine')) give(reading, frame)
      } else if (frame.by) byServer(frame)
      cursor = id ?? frame.cursor ?? cursor
    }
    tabs?.tell(frame)
  }

  /**
   * Gives it what was replayed of it. Frames about other topics come in the middle of a replay.
   * @param {Reading | {name: string, lost: true}} reading
   */
  function giveReplay(reading) {
    strays = strays.filter(it => (it.pattern ?? it.topic) !== reading.name || give(reading, it))
  }

  /** Gives a message or a gap to one subscription, unless it has had it. @param {any} reading @param {Frame} frame */
  function give(reading, frame) {
    const isUnknown = frame.reason === 'unknown_cursor'
    // A gap without an end that does not move the cursor is one of several.
    // And a state that is yet to be loaded has all that comes before it.
    if (reading.lost || reading.load && !reading.told || !(isUnknown || !frame.next && frame.after >= frame.cursor) && (frame.id ?? frame.next ?? frame.cursor) <= +reading.at) return
    const before = position(reading)
    // The ids of a store that does not know the cursor may be smaller.
    if (isUnknown) reading.at = frame.cursor
    else if (!reading.live) reading.at = frame.id ?? reading.at
    const held = reading.held
    if (!held[0] && !reading.wait && frame.topic !== echoing) tell(reading, frame)
    else if (held.length < MOST_HELD) held.push(frame)
    else if (reading.by) {
      // A page cannot read again what only the server has added.
      if (held.at(-1) !== reading.gap) held.push(reading.gap = { type: 'gap', topic: reading.name, after: before, reason: 'too_slow', next: null })
      reading.gap.cursor = frame.id ?? frame.cursor ?? cursor
    } else {
      reading.at = before
      reading.lost = true
      reading.live = reading.caught = false
    }
  }

  /** @param {Reading} reading @param {Frame} frame */
  function tell(reading, frame) {
    if (reading.ended || own.has(frame.id)) return
    reading.emit(frame.type, frame)
    if (frame.type === 'gap') load(reading)
  }

  /** Tells what was held, as far as it may be told. @param {Reading} reading */
  function flush(reading) {
    while (reading.held[0] && !reading.wait && reading.held[0].topic !== echoing) {
      tell(reading, /** @type {Frame} */ (reading.held.shift()))
    }
    if (reading.lost && !reading.held[0]) {
      reading.lost = false
      wake()
      join(reading)
    }
  }

  /** @param {Reading} reading @param {1 | -1} more */
  function hold(reading, more) {
    reading.wait += more
    flush(reading)
  }

  /** Loads the state of the page. Its messages wait. @param {Reading} reading */
  async function load(reading) {
    if (!reading.load) return
    hold(reading, 1)
    for (let fails = 0; !reading.ended; fails++) {
      try {
        await reading.load()
        break
      } catch {
        await new Promise(done => setTimeout(done, backOff(fails)))
      }
    }
    hold(reading, -1)
  }

  // Subscriptions.

  /** The connection reads this subscription with the others from now on. @param {Reading} reading @param {string} place */
  function joined(reading, place) {
    if (reading.ended || reading.lost) return
    // The rest of a replay may still come, although the list has the topic.
    if (!reading.by) reading.at ??= place
    reading.live = reading.caught = true
    if (!reading.told) {
      reading.told = true
      reading.emit('subscribed', { topic: reading.name, cursor: reading.at ?? place })
      load(reading)
    }
  }

  /** Reads a subscription over the connection that is open. @param {Reading} reading @returns {Promise<void>} */
  async function join(reading) {
    const { name, at: place, presence } = reading, one = link
    if (!one || reading.lost || reading.ended || reading.by || isAsked(name)) return
    const isRead = one.names.has(name)
    if (reading.live) {
      // The address of a WebSocket cannot say it for one topic.
      if (presence) one.command?.({ type: 'subscribe', topic: name, presence }, frame => fails(reading, frame))
    } else if (!one.command && (presence && !isPresent(one) || !isRead)) {
      again()
    } else if (isRead) {
      const isNow = !place && isPlain(reading)
      // The page has its subscription before it is told anything of it.
      await (isNow || catchUp(reading).catch(judge))
      if (link === one && one.names.has(name) && (reading.caught || isNow)) {
        joined(reading, /** @type {string} */ (cursor))
        join(reading)
      }
    } else {
      one.names.add(name)
      // The leader of the tabs replays nothing for a follower.
      const start = !tabs && (place ? { after: place } : reading.start)
      one.command?.({ type: 'subscribe', topic: name, ...start }, frame => {
        if (frame.code) {
          one.names.delete(name)
          return fails(reading, frame)
        }
        // The server replays nothing of a topic that it has added before.
        if (!tabs && !one.added.has(name)) {
          giveReplay(reading)
          joined(reading, frame.cursor)
        }
        named(name).forEach(join)
      }, name)
    }
  }

  /** Ends what was refused by its nature, and tries the rest again. @param {Reading} reading @param {Frame} frame */
  function fails(reading, frame) {
    if (frame.code) later('join', joinAll, 2000)
    if (FINAL.test(frame.code)) drop([reading], frame)
  }

  const joinAll = () => readings.forEach(join)

  /** Reads a subscription by polls of its own, up to the place of the connection. @param {Reading} reading */
  async function catchUp(reading) {
    const { name } = reading
    // Until this is done: if it fails, the reading is behind.
    reading.caught = false
    for (let isFull = true; isFull || link && isNewer(cursor, reading.at);) {
      const { at } = reading
      /** @type {Frame} */
      const page = await request('/events', { topics: [name], ...at ? { after: at } : reading.start, wait: +!isFull, limit: MOST_HELD })
        .catch(why => {
          if (!FINAL.test(why.topic && why.code)) throw why
          // Others of this name go on, since it may be the start that is refused.
          drop([reading], why)
        })
      if (reading.live || reading.ended) return
      // Another one of these has read it meanwhile.
      if (at !== reading.at) continue
      for (const frame of inOrder(page)) give(reading, frame)
      if (reading.lost) return
      reading.at = newer(reading.at, page.cursor)
      isFull = page.messages.length === MOST_HELD
    }
    reading.caught = true
  }

  /** @param {string} topic @param {Start} [start] @returns {Subscription} */
  function subscribe(topic, { state: load, presence, ...start } = {}) {
    const isNow = isPlain({ start })
    if (load && !isNow) throw TypeError('state')
    return begin(topic, { load, start, presence, at: isNow && isFresh() ? cursor : start.after }).subscription
  }

  /** @param {string} name @param {Partial<Reading>} given */
  function begin(name, given) {
    const { on, emit } = emitter()
    /** @type {Reading} */
    const reading = {
      name,
      start: {},
      wait: 0,
      held: [],
      emit,
      ended: isOver(),
      subscription: { topic: name, on, close: () => end(reading), [Symbol.asyncIterator]: () => loop(reading, on) },
      ...given,
    }
    if (reading.ended) return reading
    readings = [...readings, reading]
    wake()
    join(reading)
    return reading
  }

  /** The messages of a subscription. The next one waits until the loop takes it. @param {Reading} reading @param {any} on */
  async function* loop(reading, on) {
    /** @type {Message | undefined} */
    let message
    /** @type {any} */
    let resume
    on('message', (/** @type {Message} */ it) => {
      message = it
      hold(reading, 1)
      resume?.()
    })
    on('end', () => resume?.())
    try {
      while (message || !reading.ended) {
        if (message) {
          yield message
          message = undefined
          hold(reading, -1)
        } else await new Promise(done => { resume = done })
      }
      if (reading.error) throw reading.error
    } finally {
      end(reading)
    }
  }

  /** @param {Reading} reading @param {RejoinError} [error] */
  function end(reading, error) {
    if (reading.ended) return
    const { name } = reading
    readings = readings.filter(it => it !== reading)
    reading.ended = true
    reading.error = error
    if (error?.topic) reading.emit('refused', error)
    reading.emit('end')
    if (named(name)[0]) return
    const one = link, isOwn = one?.names.delete(name)
    if (one?.command) {
      // Other tabs may go on with what the server has added.
      if (one.added.has(name) ? !tabs?.leads : isOwn) one.command({ type: 'unsubscribe', topic: name }, options.mine ? undefined : () => {
        // That takes what the server has added, also in this moment.
        one.added.delete(name)
        drop(named(name).filter(it => it.by))
      })
    } else if (isOwn || next?.names.has(name)) again()
  }

  /** These are refused, or the server has taken their topic. The others go on. @param {Reading[]} some @param {Frame} [why] */
  function drop(some, why) {
    some.forEach(it => end(it, failure({ code: 'conflict', ...why, topic: it.name })))
  }

  /** The server has added a topic, or taken it. @param {Frame} frame */
  function byServer({ type, topic, cursor: place }) {
    let [reading] = named(topic).filter(it => it.by)
    const isOwn = link?.names.has(topic) && !isAsked(topic)
    if (type === 'unsubscribed') {
      if (!reading?.live && !isOwn) giveReplay({ name: topic, lost: true })
      // The client may still read for itself what is gone from the list. A new connection says so, from this place.
      if (link?.added.delete(topic) && isOwn && options.mine) {
        cursor = place
        leave()
        return again(backOff(0))
      }
      if (isOwn) link?.names.delete(topic)
      return drop(named(topic).filter(it => isOwn || it.by))
    }
    link?.added.add(topic)
    if (!reading) emit('subscription', (reading = begin(topic, { by: true })).subscription)
    // A replay may be of the page's own command, or of the server's. A new connection reads each from its place.
    if (options.mine && isAsked(topic)) again()
    // The server replays nothing of a topic that the page reads already.
    else if (!isOwn) giveReplay(reading)
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
  async function send(topic, data, { event, ephemeral, key = '' + Math.random() }) {
    const until = Date.now() + PUBLISH_MS
    const body = [{ topic, data, event, ephemeral, idempotency_key: ephemeral ? undefined : key }]
    let code
    // This throws for a value that cannot be JSON. Otherwise it would stop all later messages.
    JSON.stringify(data)
    if (options.echo === false && !ephemeral) echoing = topic
    try {
      for (let fails = 0; ; fails++) {
        try {
          const [answer] = await request('/publish', body)
          if (answer.code) throw { ...answer, answered: true }
          if (own.size > MOST_HELD) own.delete([...own][0])
          if (echoing) own.add(answer.id)
          return answer.id
        } catch (/** @type {any} */ why) {
          // Without an answer of the server the message may be stored.
          if (!why.answered || why.code === 'unknown_outcome') code = 'unknown_outcome'
          // The page may be frozen in the pause, so the clock is read after it.
          if (ephemeral || FINAL.test(why.code) || await new Promise(done => setTimeout(resend = done, backOff(fails)))
            || isOver() || Date.now() > until) {
            throw failure({ ...why, code: code || why.code })
          }
        }
      }
    } finally {
      echoing = undefined
      readings.forEach(flush)
    }
  }

  // Coming back.

  /** Ends the attempt to connect. */
  function stop() {
    timers.go = clearTimeout(timers.go)
    next?.end()
    return ++turns
  }

  /** Ends the connection, until something wakes it. */
  function rest() {
    stop()
    leave()
    tabs?.rest()
    if (!isOver()) say('waiting')
  }

  /** Connects, unless that is done or about to be. */
  const wake = () => link || next || timers.go || again()

  /** Opens another connection, and only then closes this one. */
  const again = (ms = 0) => later('go', go, ms)

  /** @returns {Promise<void>} */
  async function go() {
    const turn = stop()
    if (isOver()) return
    if (!isWanted && !known()[0]) return rest()
    if (!link) say('connecting')
    try {
      await sharing
      if (turn !== turns) return
      const follow = tabs?.rise()
      if (follow) return await open(follow)
      await credential()
      for (let kind = Date.now() < keptUntil ? at % kinds.length : 0; kinds[kind]; kind++) {
        try {
          return await reach(kind, turn)
        } catch (/** @type {any} */ why) {
          if (turn !== turns) return
          if (why.code) return judge(why)
        }
      }
    } catch { /* as if no transport had worked */ }
    if (turn === turns) judge({})
  }

  /** Opens a connection of this kind. @param {number} kind @param {number} turn */
  async function reach(kind, turn) {
    const name = kinds[kind], isHttp = name !== 'ws', { some } = together()
    // An HTTP stream has one start for all. So other starts are read before.
    if (isHttp) await Promise.all(known().filter(it => !it.lost && !some.includes(it)).map(catchUp))
    // A poll needs a topic, or a list of the subject. A stream may wait for those that the server adds.
    if (turn !== turns || isHttp && !(name === 'poll' ? options.mine : isWanted) && !together().some[0]) throw {}
    await open({ ws: webSocket, ndjson: lines, poll: polls }[name])
    if (!(Date.now() < keptUntil)) keptUntil = Date.now() + BETTER_MS
    at = kind
    if (kind) later('better', () => at && go(), BETTER_MS)
    try { sessionStorage[base] = [at, keptUntil] } catch { /* as below */ }
  }

  /** Does what the reason for an end asks for. @param {Frame} why @returns {any} */
  function judge(why) {
    const { topic, code } = why, isOfToken = /^(unau|tok|fo)/.test(code)
    if (isOver()) return
    if (isOfToken && !topic && !why.answered && chances-- > 0) token = undefined
    else if (isOfToken || FINAL.test(code)) {
      if (!topic) return refuse(why)
      const some = known(named(topic))
      if (some[0]) {
        drop(some, why)
        return go()
      }
    }
    if (!link) say('waiting')
    again(Math.max(backOff(tries++), why.retry_ms ?? 0))
  }

  /** @param {Frame} problem */
  const refuse = problem => finish('refused', failure(problem))

  /** Ends the client, once. @param {State} now @param {RejoinError} [error] */
  function finish(now, error) {
    if (!isOver()) {
      listening.abort()
      say(now)
      rest()
      Object.values(timers).forEach(clearTimeout)
      readings.forEach(it => end(it, error))
      if (error) emit('refused', error)
    }
    return error
  }

  /** The page comes or goes, or the network is back. @param {Event} event */
  function hurry({ type }) {
    if (type === 'pagehide') return rest()
    // A page that is left is hidden only after its end.
    if (type === 'visibilitychange' && document.hidden) return
    resend()
    if (type === 'online') keptUntil = 0
    else if (link || next) return
    if (turns) go()
  }
  // Without the module each tab connects by itself.
  const sharing = options.shared && import('./rejoin-shared.js').then(it => {
    tabs = it.share(base, options, again, subscribe, () => ({ link, cursor, all: readings }))
  }).catch(() => {})
  for (const type of ['online', 'pageshow', 'pagehide', 'visibilitychange']) globalThis.addEventListener?.(type, hurry, listening)
  // The transport that has worked shortly before.
  try { [at, keptUntil] = sessionStorage[base].split(',').map(Number) } catch { /* the browser forbids storage, or has none */ }
  if (options.mine) wake()

  return {
    get state() { return state },
    get cursor() { return cursor },
    subscribe,
    publish,
    presence: topic => import('./rejoin-presence.js').then(it => it.presence(topic, subscribe, request, emitter)),
    on(type, handler) {
      if (type === 'open') {
        isWanted = true
        wake()
      }
      return on(type, handler)
    },
    close: () => finish('closed'),
  }
}
