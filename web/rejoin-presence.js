// The members of a topic: the subjects that are present in it. `rejoin.js` loads this module for `presence(topic)`.

/**
 * A subject that is present. `info` is what its token says of it.
 * @typedef {{sub: string, info?: any}} Member
 */
/** @typedef {{members: Member[], join: Member, leave: Member, refused: import('./rejoin.js').RejoinError}} PresenceEvents */
/**
 * The members by their subject. `members` is told when they are known, and after each change.
 * @typedef {{topic: string, members: Map<string, Member>,
 *   on<K extends keyof PresenceEvents>(type: K, handler: (event: PresenceEvents[K]) => void): () => void,
 *   close(): void}} Presence
 */

/**
 * Reads the members, and then the changes after their cursor.
 * @param {string} topic
 * @param {import('./rejoin.js').Rejoin['subscribe']} subscribe
 * @param {(path: string) => Promise<any>} request
 * @returns {Presence}
 */
export function presence(topic, subscribe, request) {
  const members = new Map()
  /** @type {Set<{type: string, handler: (event: any) => void}>} */
  const handlers = new Set()
  let cursor = '0'
  const tell = (/** @type {string | undefined} */ type, /** @type {any} */ event) => {
    for (const one of [...handlers]) if (one.type === type) one.handler(event)
  }
  const all = () => tell('members', [...members.values()])

  /** All pages. The cursor of the first one counts. */
  async function state() {
    const found = []
    let page
    /** @type {string | undefined} */
    let first
    do {
      const after = page ? '&after=' + encodeURIComponent(page.next) : ''
      page = await request(`/topics/${encodeURIComponent(topic)}/presence?limit=1000${after}`)
      first ??= page.cursor
      found.push(...page.members)
    } while (page.next)
    members.clear()
    for (const member of found) members.set(member.sub, member)
    cursor = first ?? cursor
    all()
  }

  const changes = subscribe('$presence.' + topic, { state })
  changes.on('message', ({ id, event, data }) => {
    // The members have this change already.
    if (Number(id) <= Number(cursor)) return
    if (event === 'leave') members.delete(data.sub)
    else members.set(data.sub, data)
    tell(event, data)
    all()
  })
  changes.on('refused', error => tell('refused', error))
  return {
    topic,
    members,
    on(type, handler) {
      const one = { type, handler }
      handlers.add(one)
      return () => handlers.delete(one)
    },
    close: changes.close,
  }
}
