// Topics of Rejoin in React.
import { useEffect, useRef, useState } from 'react'

/** @typedef {import('./rejoin.js').Rejoin} Rejoin */

/**
 * Reads a topic or pattern while the component is there. `null` reads nothing.
 * @template T
 * @param {Rejoin} rejoin
 * @param {string | null | undefined} topic
 * @param {(message: import('./rejoin.js').Message<T>) => void} onMessage
 * @param {import('./rejoin.js').Start & {onGap?: (gap: import('./rejoin.js').Gap) => void}} [options]
 */
export function useTopic(rejoin, topic, onMessage, options = {}) {
  const newest = useRef({ onMessage, options })
  useEffect(() => { newest.current = { onMessage, options } })
  useEffect(() => {
    if (topic == null) return
    const { onGap, ...start } = newest.current.options
    const subscription = rejoin.subscribe(topic, start)
    subscription.on('message', message => newest.current.onMessage(message))
    subscription.on('gap', gap => newest.current.options.onGap?.(gap))
    return subscription.close
  }, [rejoin, topic])
}

/**
 * The data of the newest message of a topic, and `initial` until there is one.
 * @template T
 * @param {Rejoin} rejoin
 * @param {string | null | undefined} topic
 * @param {T} initial
 * @returns {T}
 */
export function useLatest(rejoin, topic, initial) {
  // Another client is another user.
  const [latest, setLatest] = useState({ rejoin, topic, data: initial })
  useTopic(rejoin, topic, ({ data }) => setLatest({ rejoin, topic, data }), { last: 1 })
  return latest.rejoin === rejoin && latest.topic === topic ? latest.data : initial
}

/**
 * The members of a topic while the component is there: the subjects that are present.
 * @param {Rejoin} rejoin
 * @param {string | null | undefined} topic
 * @returns {import('./rejoin-presence.js').Member[]}
 */
export function usePresence(rejoin, topic) {
  const [members, setMembers] = useState(/** @type {import('./rejoin-presence.js').Member[]} */ ([]))
  useEffect(() => {
    setMembers([])
    if (topic == null) return
    const opening = rejoin.presence(topic)
    opening.then(room => room.on('members', setMembers))
    return () => { opening.then(room => { room.close() }) }
  }, [rejoin, topic])
  return members
}
