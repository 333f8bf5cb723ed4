// The messages that were there before the page: shown on arrival, and further back on request.

import { ask, askJson, topicPath } from './api.js'

/** A cursor that is ahead of every store: "the newest". */
const NEWEST = '9007199254740991'
const FIRST = 20

/** True for a name with a wildcard. */
export const isPattern = topic => topic.split('.').some(part => /^\*\*?$/.test(part))

/** One topic has a history. Of a pattern there are only the newest messages of its topics. */
export class Past {
  before = undefined

  constructor(topic) { this.topic = topic }

  /** The newest messages, and the cursor from which the lanes go on. */
  async arrive() {
    if (isPattern(this.topic)) {
      const { messages, cursor } = await askJson('events', { topics: [this.topic], last: 1, wait: 0, limit: 1000 })
      return { messages: messages.slice(-FIRST), cursor, note: 'The newest message of each topic is shown.' }
    }
    const page = await this.#page(NEWEST, FIRST)
    return { ...page, cursor: page.messages.at(-1)?.id ?? '0' }
  }

  older() { return this.#page(this.before, 100) }

  async #page(before, limit) {
    const page = await ask(`${topicPath(this.topic)}?before=${before}&limit=${limit}`)
    this.before = page.before
    const note = page.before ? undefined
      : page.beginning ? 'This is the first message of the topic.'
      : `Older messages are gone (${page.gaps?.[0]?.reason ?? 'retention'}).`
    return { messages: page.messages, note: page.messages.length || !page.beginning ? note : undefined }
  }
}
