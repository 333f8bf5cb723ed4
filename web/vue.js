// Topics of Rejoin in Vue.
import { getCurrentInstance, getCurrentScope, onMounted, onScopeDispose, shallowRef, toValue, watch } from 'vue'

/** @typedef {import('./rejoin.js').Rejoin} Rejoin */

/** Begins once the component is mounted. A server that renders it mounts nothing. @param {() => void} begin */
function whenMounted(begin) {
  const instance = getCurrentInstance(), scope = getCurrentScope()
  if (!instance || instance.isMounted) begin()
  else onMounted(() => { if (scope?.active) scope.run(begin) })
}

/**
 * Reads a topic or pattern while the component is there. `null` reads nothing.
 * @template T
 * @param {Rejoin} rejoin
 * @param {import('vue').MaybeRefOrGetter<string | null | undefined>} topic
 * @param {(message: import('./rejoin.js').Message<T>) => void} onMessage
 * @param {import('./rejoin.js').Start & {onGap?: (gap: import('./rejoin.js').Gap) => void}} [options]
 */
export function useTopic(rejoin, topic, onMessage, { onGap, ...start } = {}) {
  /** @type {(() => void) | undefined} */
  let close
  whenMounted(() => watch(() => toValue(topic), name => {
    close?.()
    close = undefined
    if (name == null) return
    const subscription = rejoin.subscribe(name, start)
    subscription.on('message', onMessage)
    if (onGap) subscription.on('gap', onGap)
    close = subscription.close
  }, { immediate: true }))
  onScopeDispose(() => close?.())
}

/**
 * The data of the newest message of a topic, and `initial` until there is one.
 * @template T
 * @param {Rejoin} rejoin
 * @param {import('vue').MaybeRefOrGetter<string | null | undefined>} topic
 * @param {T} initial
 * @returns {import('vue').ShallowRef<T>}
 */
export function useLatest(rejoin, topic, initial) {
  /** @type {import('vue').ShallowRef<T>} */
  const latest = shallowRef(/** @type {any} */ (initial))
  watch(() => toValue(topic), () => { latest.value = initial }, { flush: 'sync' })
  useTopic(rejoin, topic, ({ data }) => { latest.value = /** @type {T} */ (data) }, { last: 1 })
  return latest
}

/**
 * The members of a topic while the component is there: the subjects that are present.
 * @param {Rejoin} rejoin
 * @param {import('vue').MaybeRefOrGetter<string | null | undefined>} topic
 * @returns {import('vue').ShallowRef<import('./rejoin-presence.js').Member[]>}
 */
export function usePresence(rejoin, topic) {
  /** @type {import('vue').ShallowRef<import('./rejoin-presence.js').Member[]>} */
  const members = shallowRef([])
  /** @type {(() => void) | undefined} */
  let close
  whenMounted(() => watch(() => toValue(topic), name => {
    close?.()
    close = undefined
    members.value = []
    if (name == null) return
    const opening = rejoin.presence(name)
    opening.then(room => room.on('members', all => { members.value = all }))
    close = () => { opening.then(room => { room.close() }) }
  }, { immediate: true }))
  onScopeDispose(() => close?.())
  return members
}
