// The code of a page: it reads and publishes as any page would, and records in order what it receives.
window.heard = [];
window.cursor = null;
const waiting = new Set();
const note = it => { heard.push(it); waiting.forEach(check => check()); };

window.messages = () => heard.filter(it => it.type === 'message');

window.listen = url => {
    const source = new EventSource(url);
    const state = () => ['connecting', 'open', 'closed'][source.readyState];
    source.onerror = () => note({type: 'error', state: state()});
    source.onmessage = it => note({type: 'message', id: it.lastEventId, data: it.data});
    for (const type of ['rejoin.open', 'rejoin.gap', 'rejoin.closing']) {
        source.addEventListener(type, it => note({type, id: it.lastEventId, frame: JSON.parse(it.data)}));
    }
};

window.connect = url => {
    const socket = new WebSocket(new URL(url, location.href.replace('http', 'ws')));
    socket.onclose = it => note({type: 'close', code: it.code});
    socket.onmessage = it => {
        const frame = JSON.parse(it.data);
        cursor = frame.id ?? frame.cursor;
        note(frame);
    };
};

window.post = async (url, body, options) => {
    try {
        const response = await fetch(url, {method: 'POST', body, ...options});
        return {status: response.status, answer: response.status === 201 ? await response.json() : null};
    } catch {
        return {status: 'failed'};
    }
};

window.read = url => fetch(url).then(response => response.status, () => 'failed');

window.until = (condition, within) => new Promise((resolve, reject) => {
    const late = () => reject(new Error('heard only ' + JSON.stringify(heard)));
    const timer = setTimeout(late, within);
    const check = () => {
        if (!condition()) return;
        clearTimeout(timer);
        clearInterval(looking);
        waiting.delete(check);
        resolve(heard);
    };
    // Changes of the page are not recorded, so check the condition regularly too.
    const looking = setInterval(check, 20);
    waiting.add(check);
    check();
});
