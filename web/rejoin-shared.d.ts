export type Link = import('./rejoin.js').Link;
export type Frame = import('./rejoin.js').Frame;
export type Subscription = import('./rejoin.js').Subscription;
export type Now = {
    link: Link | undefined;
    cursor: string | undefined;
    all: import('./rejoin.js').Reading[];
};
/**
 * Shares the connection of a client with other tabs. `again` lets the client connect anew.
 * Only a page with https has locks. Without them each tab connects by itself, as without a name for the login.
 * @param {string} base @param {import('./rejoin.js').Options} options @param {() => void} again @param {any} subscribe
 * @param {() => Now} now
 */
export declare function share(base: string, { shared, mine, token }: import('./rejoin.js').Options, again: () => void, subscribe: any, now: () => Now): {
    rise: () => ((one: Link, after?: string) => Promise<void>) | undefined;
    rest: () => void;
    tell: ({ ref, ...frame }: Frame) => void;
    readonly leads: boolean;
} | undefined;
