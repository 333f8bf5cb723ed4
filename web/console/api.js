// The requests of the page to its server, the token, and what the page says of a refusal.

/** The folder of the page, so that it also works below a path of another server. */
export const base = new URL('.', location.href.replace(/[?#].*/, ''))

/** A browser opens six connections to one server over HTTP/1.1. With two of these pages a request can wait for ever. */
const ANSWER_MS = 10_000

// A WebSocket can send only these characters of a token, because it sends the token as a subprotocol.
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/

// A browser may forbid storage. Then a reload of this page forgets everything.
function recall() {
  try { return JSON.parse(sessionStorage.rejoin ?? '{}') } catch { return {} }
}

let kept = recall()
export const topicKept = () => kept.topic
export const token = () => kept.token ?? ''
export const isToken = text => TOKEN.test(text)

/** Keeps the topic and the token for this tab alone. */
export function keep(more) {
  kept = { ...kept, ...more }
  try { sessionStorage.rejoin = JSON.stringify(kept) } catch { /* as above */ }
}

/** Topic and token after # in the address reach no server there. The page takes them, and removes them. */
export function takeHash() {
  const given = new URLSearchParams(location.hash.slice(1))
  if (!given.has('topic') && !given.has('token')) return
  keep({ topic: given.get('topic')?.trim(), token: given.get('token')?.trim() })
  history.replaceState(null, '', location.pathname + location.search)
}

/** The claims of the token, if it is one that can be read. The server alone decides what they mean. */
export function claims() {
  try {
    const text = atob(token().split('.')[1].replace(/-/g, '+').replace(/_/g, '/'))
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(text, it => it.charCodeAt(0))))
  } catch {
    return {}
  }
}

/** The topics and patterns that the token says of itself that it may read. */
export function granted() {
  const { rejoin, sub } = claims(), list = rejoin?.subscribe
  if (!Array.isArray(list)) return []
  // The server puts in a subject only if it is one plain segment of a topic.
  const isPlain = typeof sub === 'string' && /^(?!\$)[^\s.*,{}\p{Cc}]+$/u.test(sub)
  return list.map(name => isPlain ? String(name).replaceAll('{sub}', sub) : String(name)).filter(name => !name.includes('{'))
}

export const topicPath = topic => 'topics/' + encodeURIComponent(topic)
export const bearer = () => token() ? { Authorization: 'Bearer ' + token() } : {}

/** Asks the server. A refusal is thrown as its problem, and so is an answer that does not come. */
export async function ask(path, { method = 'GET', body, headers, as = 'json' } = {}) {
  let answer, given
  try {
    const signal = AbortSignal.timeout(ANSWER_MS)
    answer = await fetch(new URL(path, base), { method, body, headers: { ...bearer(), ...headers }, signal })
    if (answer.ok && as === 'answer') return answer
    given = answer.status === 204 ? undefined : await (answer.ok && as === 'text' ? answer.text() : answer.json())
  } catch (error) {
    throw { code: answer ? 'not_found' : error.name === 'TimeoutError' ? 'late' : 'away', status: answer?.status }
  }
  if (answer.ok) return given
  throw { ...given, status: answer.status }
}

export const askJson = (path, body) =>
  ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })

/** A sentence for a problem. `deed` is what was refused, and `grant` would allow it. */
export function words(problem, deed, grant) {
  switch (problem.code) {
    case 'away': return 'The server cannot be reached. The page tries again.'
    case 'late': return 'The server does not answer. A browser opens six connections to one server, and each tab of '
      + 'this page takes three of them: close another tab.'
    case 'unauthorized': return token()
      ? `The server does not accept this token: ${problem.detail}. Put another one into the field Token.`
      : 'This server wants a token, and has got none. Put one into the field Token, or log in on a page that sets the '
        + 'cookie rejoin_token.'
    case 'token_expired': return 'The token has ended. Put a new one into the field Token.'
    case 'forbidden': return `${token() ? 'This token' : 'A client without a token'} may not ${deed}. `
      + `It needs the grant ${grant}.`
    default: return `The server refused: ${problem.detail ?? problem.title ?? problem.code ?? problem}.`
  }
}
