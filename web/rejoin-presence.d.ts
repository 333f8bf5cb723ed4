export type Member = {
    sub: string;
    info?: any;
};
export type PresenceEvents = {
    members: Member[];
    join: Member;
    leave: Member;
    refused: import('./rejoin.js').RejoinError;
};
export type Presence = {
    topic: string;
    members: Map<string, Member>;
    on<K extends keyof PresenceEvents>(type: K, handler: (event: PresenceEvents[K]) => void): () => void;
    close(): void;
};
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
export declare function presence(topic: string, subscribe: import('./rejoin.js').Rejoin['subscribe'], request: (path: string) => Promise<any>, emitter: () => {
    on: any;
    emit: (type: any, event: any) => void;
}): Presence;
