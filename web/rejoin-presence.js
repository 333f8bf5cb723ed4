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
 * @param {() => {on: any, emit: (type: any, event: any) => void}} emitter
 * @returns {Presence}
 */
export function presence(topic, subscribe, request, emitter) {
  const members = new Map()
  const { on, emit } = emitter()
  let cursor = '0', isClosed = false
  const all = () => emit('members', [...members.values()])

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
    if (isClosed) return
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
    emit(event, data)
    all()
  })
  changes.on('refused', error => emit('refused', error))
  return {
    topic,
    members,
    on,
    close() {
      isClosed = true
      changes.close()
    },
  }
}
