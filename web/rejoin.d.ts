export type RejoinError = Error & {
    code: string;
    detail?: string;
    topic?: string;
};
export type Message<T = any> = {
    topic: string;
    id?: string;
    event?: string;
    data: T;
    by?: string;
    content_type?: string;
    encoding?: string;
    ephemeral?: boolean;
};
export type Gap = {
    topic: string;
    after: string;
    next: string | null;
    cursor: string;
    reason: string;
};
export type State = 'connecting' | 'live' | 'waiting' | 'refused' | 'closed';
export type Transport = 'ws' | 'ndjson' | 'poll';
export type Open = {
    connection?: string;
    cursor: string;
    mine?: string[];
    sub?: string;
    expires_in_ms?: number;
    heartbeat_ms?: number;
};
export type Options = {
    token?: () => string | null | undefined | Promise<string | null | undefined>;
    transports?: Transport[];
    shared?: string | true;
    mine?: boolean;
    after?: string;
    echo?: boolean;
    WebSocket?: any;
};
export type Start = {
    last?: number;
    after?: string;
    since?: string;
    state?: () => unknown;
    presence?: boolean;
};
export type SubscriptionEvents<T = any> = {
    message: Message<T>;
    gap: Gap;
    subscribed: {
        topic: string;
        cursor: string;
    };
    refused: RejoinError;
};
export type ClientEvents = {
    open: Open;
    state: State;
    refused: RejoinError;
    subscription: Subscription;
};
export type Subscription<T = any> = {
    topic: string;
    on<K extends keyof SubscriptionEvents<T>>(type: K, handler: (event: SubscriptionEvents<T>[K]) => void): () => void;
    close(): void;
    [Symbol.asyncIterator](): AsyncGenerator<Message<T>, void, void>;
};
export type PublishOptions = {
    event?: string;
    ephemeral?: boolean;
    key?: string;
};
export type Rejoin = {
    readonly state: State;
    readonly cursor: string | undefined;
    subscribe<T = any>(topic: string, start?: Start): Subscription<T>;
    publish(topic: string, data: unknown, options?: PublishOptions): Promise<string | undefined>;
    presence(topic: string): Promise<import('./rejoin-presence.js').Presence>;
    on<K extends keyof ClientEvents>(type: K, handler: (event: ClientEvents[K]) => void): () => void;
    close(): void;
};
export type Frame = {
    [name: string]: any;
};
export type Reading = {
    name: string;
    start: Start;
    presence?: boolean;
    load?: () => unknown;
    at?: string;
    caught?: boolean;
    live?: boolean;
    told?: boolean;
    lost?: boolean;
    ended?: boolean;
    by?: boolean;
    wait: number;
    error?: RejoinError;
    gap?: any;
    held: Frame[];
    subscription: Subscription;
    emit: (type: string, event?: any) => void;
};
export type Link = {
    names: Set<string>;
    added: Set<string>;
    readings: Reading[];
    ended?: boolean;
    timer?: any;
    reason?: Frame;
    abort: AbortController;
    asked: {
        answered?: (frame: Frame) => void;
        name?: string;
        topic?: string;
    }[];
    command?: (command: object, answered?: (frame: Frame) => void, name?: string) => void;
    frame(frame: Frame): void;
    end(why?: Frame): void;
};
/**
 * Connects to the Rejoin server at this address.
 * @param {string | URL} url
 * @param {Options} [options]
 * @returns {Rejoin}
 */
export declare function connect(url: string | URL, options?: Options): Rejoin;
