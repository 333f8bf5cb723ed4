// One connection for all tabs of an origin. `rejoin.js` loads this module for a client with `shared`.
//
// Each tab has a client of its own, with its own subscriptions and cursors. One tab leads: it has the connection, and
// sends the frames of it to the others, in order. The others follow. The leader is the tab that holds a Web Lock.
//
// The invariant: a follower takes the frames of one connection of one leader, from the cursor in `open` on. After that
// cursor the leader sends every message of every topic in `names`. A follower whose own cursor is another one reads the
// rest by polls of its own, and only then joins. For a topic that only the server has added there is no such poll, so
// the follower tells a gap. A new leader thus connects from its own cursor, and no tab loses a message, whichever leads.

/** @typedef {import('./rejoin.js').Link} Link */
/** @typedef {import('./rejoin.js').Frame} Frame */
/** @typedef {import('./rejoin.js').Subscription} Subscription */
/**
 * The client now: its connection, its cursor, and its subscriptions.
 * @typedef {{link: Link | undefined, cursor: string | undefined, all: import('./rejoin.js').Reading[]}} Now
 */

/** Tabs with another version of this module have a connection of their own. */
const VERSION = 1
/** A leader that is silent for so long loses its lock. A hidden tab leaves the first try to one that is shown. */
const SHOWN_MS = 2000, HIDDEN_MS = 3000

/**
 * Waits for a lock, and holds it until the returned function is called or another tab steals it.
 * A browser that refuses locks refuses them to all tabs. Then each one has its own, and connects by itself.
 * @param {string} name @param {() => void} taken @param {() => void} [lost] @param {boolean} [steal]
 */
function hold(name, taken, lost, steal) {
  const stop = new AbortController(), { signal } = stop
  let isHeld = false
  const held = () => new Promise(release => {
    signal.onabort = release
    if (signal.aborted) return release(0)
    isHeld = true
    taken()
  })
  navigator.locks.request(name, steal ? { steal } : { signal }, held).catch(() => signal.aborted || (isHeld ? lost?.() : taken()))
  return () => stop.abort()
}

/**
 * Shares the connection of a client with other tabs. `again` lets the client connect anew.
 * Only a page with https has locks. Without them each tab connects by itself, as without a name for the login.
 * @param {string} base @param {import('./rejoin.js').Options} options @param {() => void} again @param {any} subscribe
 * @param {() => Now} now
 */
export function share(base, { shared, mine, token }, again, subscribe, now) {
  if (!globalThis.navigator?.locks || shared === true && token) return
  const name = 'rejoin ' + [VERSION, base, !!mine, shared], id = name + Math.random()
  /** @type {BroadcastChannel | undefined} */
  let channel
  /** The locks: of the leader, and the one that tells the leader that this tab is there. */
  let yieldLead = () => {}, leave = () => {}
  /** @type {Promise<void>} */
  let here
  let leads = false

  const post = (/** @type {object} */ message) => channel?.postMessage(message)

  /** Joins the other tabs. A tab that does not lead gets a function, which opens the connection of the leader. */
  function rise() {
    if (!channel) {
      channel = new BroadcastChannel(name)
      channel.onmessage = hear
      here = new Promise(taken => { leave = hold(id, taken) })
      ask()
    }
    return leads ? undefined : follow
  }

  /** Leaves the other tabs, until `rise`. A page with a lock cannot go into the back/forward cache. */
  function rest() {
    if (!channel) return
    stepDown()
    yieldLead()
    leave()
    channel.close()
    channel = undefined
  }

  /** Asks to lead. @param {boolean} [steal] */
  function ask(steal) {
    yieldLead()
    yieldLead = hold(name, () => {
      clearTimeout(patience)
      leads = true
      again()
    }, () => {
      // This tab was frozen, or too busy to answer.
      stepDown()
      ask()
      again()
    }, steal)
  }

  function stepDown() {
    leads = false
    term = undefined
    followers.forEach(forget)
    followers.clear()
  }

  /** @param {MessageEvent} event */
  function hear({ data: { from, to, ...it } }) {
    if (!leads) follows(to, it)
    else if (it.topic) command(from, it)
    else if (from) greet(from)
  }

  // The leader.

  /** The subscriptions of each follower. @type {Map<string, Map<string, Subscription>>} */
  const followers = new Map()
  /** The connection, by a number that no other has. @type {number | undefined} */
  let term
  /** The same connection. It may have ended. @type {Link | undefined} */
  let newest
  /** @type {Frame} */
  let opened
  /** The time at which the connection has last brought something. */
  let heard = 0

  /** The connection is open. Followers ask from where they can go on. @param {Frame} frame */
  function opens(frame) {
    term = Math.random()
    newest = now().link
    opened = { ...frame, expires_in_ms: 0 }
    post({ isNew: true })
  }

  /** Sends what the connection has brought. @param {Frame} frame */
  function tell({ ref, ...frame }) {
    if (!leads) return
    if (frame.type === 'open') opens(frame)
    heard = Date.now()
    // Messages, gaps, cursors, and news of topics. Other frames are for the leader alone.
    if (!/^([gsu]|me|cu)/.test(frame.type)) return
    post({ term, frame })
  }

  /** @param {string} to */
  function greet(to) {
    const { link, cursor } = now()
    if (!followers.has(to)) {
      followers.set(to, new Map())
      // The lock is free when the tab has gone.
      const done = hold(to, () => {
        forget(followers.get(to))
        followers.delete(to)
        done()
      })
    }
    const isSilent = term && Date.now() - heard > opened.heartbeat_ms * 1.5
    // A browser may stop the connection of a page that still answers.
    if (link && isSilent) return
    // A proxy that buffers brings a stream together with its end. So a connection that has ended counts too, until the
    // next one: after `cursor` it sends nothing, as if it were quiet.
    const answer = term && newest && !isSilent
      ? { to, term, open: { ...opened, cursor, mine: [...newest.added] }, names: [...newest.names].filter(isRead) }
      : { to }
    // A frozen page still hears, but its timers stand, so it would never connect. Then it does not answer.
    if (link && term) post(answer)
    else setTimeout(post, 0, answer)
  }

  /** @param {string} topic */
  const isRead = topic => newest?.names.has(topic) && !newest.asked.some(it => it.name === topic)

  /** @param {string} to @param {Frame} command */
  function command(to, { topic, presence, isDone }) {
    const all = followers.get(to), before = all?.get(topic)
    const answer = (/** @type {object} */ frame) => post({ to, term, answer: { topic, ...frame } })
    // A connection that opens tells its subscriptions before it has its number.
    const done = async () => answer({ type: 'subscribed', cursor: (await now()).cursor })
    if (isDone) all?.delete(topic)
    else if (before && !presence && isRead(topic)) return done()
    else if (all) {
      const subscription = subscribe(topic, { presence })
      all.set(topic, subscription)
      subscription.on('subscribed', done)
      subscription.on('refused', (/** @type {Frame} */ error) => answer({ ...error, type: 'error' }))
    }
    before?.close()
  }

  const forget = (/** @type {Map<string, Subscription> | undefined} */ all) => all?.forEach(it => it.close())

  // A follower.

  /** @type {any} */
  let patience
  /** The connection as this tab sees it, and its number once it is open. @type {Link | undefined} */
  let link
  /** @type {number | undefined} */
  let following
  /** The cursor of this tab, before that. @type {string | undefined} */
  let place

  /** Opens the connection of the leader. @param {Link} one @param {string} [after] */
  async function follow(one, after) {
    await here
    if (one.ended) return
    link = one
    place = after
    following = undefined
    one.command = (/** @type {Frame} */ { type, topic, presence }, answered, name) => {
      if (!topic) return
      const isDone = type === 'unsubscribe'
      // The leader answers nothing that is done before.
      if (isDone) one.asked = one.asked.filter(it => it.topic !== topic)
      else if (answered) one.asked.push({ topic, answered, name })
      post({ from: id, topic, presence, isDone })
    }
    clearTimeout(patience)
    patience = setTimeout(() => one.ended || ask(true), globalThis.document?.hidden ? HIDDEN_MS : SHOWN_MS)
    post({ from: id })
  }

  /** @param {string | undefined} to @param {Frame} message */
  function follows(to, { isNew, term, frame, open, names, answer }) {
    if (isNew) return again()
    if (to === id) clearTimeout(patience)
    else if (to) return
    if (!link || link.ended) return
    if (open && !following) {
      following = term
      link.names = new Set(names)
      const isLost = open.cursor !== place, given = now().all.filter(it => it.by && isLost)
      if (isLost) link.readings = []
      link.frame(open)
      for (const { name: topic, at } of given) {
        link.frame({ type: 'gap', topic, after: at, next: null, cursor: open.cursor, reason: 'unknown_cursor' })
      }
    }
    if (term !== following) return
    if (frame) {
      // The leader gives a topic back only while it knows of none that the server adds. So the server has taken this one.
      const isTaken = frame.type === 'unsubscribed' && !mine && link.added.has(frame.topic)
      link.frame(isTaken ? { ...frame, by: 'server' } : frame)
      // The last subscription of the leader has ended. A tab that relies on it asks for one, and reads the rest by polls.
      const { type, topic } = frame
      // One that has asked already gets its answer.
      if (type === 'unsubscribed' && !link.asked.some(it => it.topic === topic) && link.names.delete(topic) && now().all.some(it => it.name === topic)) link.end()
    }
    if (answer) {
      link.frame(answer)
      const at = link.asked.findIndex(it => it.topic === answer.topic)
      if (at >= 0) link.asked.splice(at, 1)[0].answered?.(answer)
    }
  }

  return { rise, rest, tell, get leads() { return leads } }
}
