// The messages that the lanes have received together, so that each lane can be compared with the others.

/** How many of the newest messages are compared. */
const MOST_KNOWN = 5000

/** The ids that any lane has received, in their order. */
export class Ledger {
  #ids = []

  note(id) {
    const ids = this.#ids
    let at = ids.length
    while (at && ids[at - 1] > id) at--
    if (ids[at - 1] === id) return
    ids.splice(at, 0, id)
    if (ids.length > MOST_KNOWN + 500) ids.splice(0, 500)
  }

  /** How many messages an account lacks: `missing` up to its cursor, and `behind` those that are still to come. */
  compare(account, cursor) {
    let missing = 0, behind = 0
    for (let at = this.#ids.length - 1; at >= 0; at--) {
      const id = this.#ids[at]
      if (id <= account.start) break
      if (account.has(id)) continue
      if (id > cursor) behind++
      else if (!account.isTold(id)) missing++
    }
    return { missing, behind }
  }
}

/** What one lane has received, after `start`. */
export class Account {
  received = 0
  twice = 0
  gaps = []
  #seen = new Set()

  constructor(start) { this.start = start }

  has(id) { return this.#seen.has(id) }

  take(id) {
    this.received++
    if (this.#seen.has(id)) this.twice++
    this.#seen.add(id)
    // A set keeps the order in which its members came.
    if (this.#seen.size > 2 * MOST_KNOWN) this.#seen.delete(this.#seen.values().next().value)
  }

  /** The server has told that messages are gone. */
  gap({ after, next, cursor, reason }) {
    // After a cursor that the server does not know, everything is read again.
    if (reason === 'unknown_cursor') {
      this.#seen.clear()
      this.start = Number(cursor)
    }
    this.gaps.push({ after: Number(after) || 0, next: Number(next ?? cursor), reason })
  }

  isTold(id) { return this.gaps.some(({ after, next }) => after < id && id < next) }
}
