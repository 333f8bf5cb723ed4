export type Rejoin = import('./rejoin.js').Rejoin;
/**
 * Reads a topic or pattern while the component is there. `null` reads nothing.
 * @template T
 * @param {Rejoin} rejoin
 * @param {import('vue').MaybeRefOrGetter<string | null | undefined>} topic
 * @param {(message: import('./rejoin.js').Message<T>) => void} onMessage
 * @param {import('./rejoin.js').Start & {onGap?: (gap: import('./rejoin.js').Gap) => void}} [options]
 */
export declare function useTopic<T>(rejoin: Rejoin, topic: import('vue').MaybeRefOrGetter<string | null | undefined>, onMessage: (message: import('./rejoin.js').Message<T>) => void, { onGap, ...start }?: import('./rejoin.js').Start & {
    onGap?: (gap: import('./rejoin.js').Gap) => void;
}): void;
/**
 * The data of the newest message of a topic, and `initial` until there is one.
 * @template T
 * @param {Rejoin} rejoin
 * @param {import('vue').MaybeRefOrGetter<string | null | undefined>} topic
 * @param {T} initial
 * @returns {import('vue').ShallowRef<T>}
 */
export declare function useLatest<T>(rejoin: Rejoin, topic: import('vue').MaybeRefOrGetter<string | null | undefined>, initial: T): import('vue').ShallowRef<T>;
/**
 * The members of a topic while the component is there: the subjects that are present.
 * @param {Rejoin} rejoin
 * @param {import('vue').MaybeRefOrGetter<string | null | undefined>} topic
 * @returns {import('vue').ShallowRef<import('./rejoin-presence.js').Member[]>}
 */
export declare function usePresence(rejoin: Rejoin, topic: import('vue').MaybeRefOrGetter<string | null | undefined>): import('vue').ShallowRef<import('./rejoin-presence.js').Member[]>;
