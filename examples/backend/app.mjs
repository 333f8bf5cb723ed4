// An application with sessions of its own. Its pages listen to Rejoin; the application says which topics they read.
import {randomUUID} from 'node:crypto'
import {readFileSync} from 'node:fs'
import {createServer} from 'node:http'
import {json, text} from 'node:stream/consumers'

const files = {'/': 'login.html', '/websocket': 'websocket.html', '/eventsource': 'eventsource.html',
  '/page.js': 'page.js', '/websocket.js': 'websocket.js', '/eventsource.js': 'eventsource.js'}
const sessions = new Map() // the user of each session

// The rule of your application: who may read and write which topic.
const mayUse = (user, topic) => topic === 'mytopic' || topic === 'users.' + user

// Sends a request to Rejoin. A replica that ends can leave it without an answer: then the status is 503.
async function rejoin(method, path, body, headers) {
  const request = {method, body, headers: {Authorization: 'Bearer ' + process.env.REJOIN_KEY, ...headers}}
  const send = async () => {
    const answer = await fetch('http://127.0.0.1:7070' + path, {...request, signal: AbortSignal.timeout(5000)})
    return {status: answer.status, words: await answer.text()}
  }
  const {status, words} = await send().catch(error => ({status: 503, words: error.message}))
  if (status >= 400) console.log(method, path, status, words)
  return status
}

// The page says on which connection it listens, and after an interruption also from where.
async function subscription(method, user, topic, {connection, after}) {
  // The id becomes a part of a path, so it must be one.
  if (!/^[0-9a-f]{32}$/.test(connection)) return 400
  // With `sub`, a user who sends the connection of another one gets 412.
  const query = new URLSearchParams({sub: user, ...after && {after}})
  return rejoin(method, `/connections/${connection}/topics/${topic}?${query}`)
}

// A repeat with the same key is not stored twice. The page keeps its key until it knows that the message is stored.
async function publish(topic, message, key = randomUUID()) {
  const headers = {'Content-Type': 'application/json', 'Idempotency-Key': encodeURIComponent(message.from) + ':' + key}
  for (let tries = 1; ; tries++) {
    const status = await rejoin('POST', '/topics/' + topic, JSON.stringify(message), headers)
    if (status < 500 && status !== 429 || tries === 5) return status
    await new Promise(resume => setTimeout(resume, 500 + 500 * Math.random()))
  }
}

async function answer(request, response) {
  const {method} = request
  const [path] = request.url.split('?')
  const user = sessions.get(/(?:^|; )session=([^;]*)/.exec(request.headers.cookie)?.[1])
  const [, topic, isSubscription] = /^\/ws\/([\w.-]+)(\/subscription)?$/.exec(path) ?? []

  if (method === 'POST' && path === '/login') {
    // Your application checks the password here.
    const session = randomUUID()
    sessions.set(session, new URLSearchParams(await text(request)).get('name'))
    // Over HTTPS add Secure.
    response.setHeader('Set-Cookie', `session=${session}; Path=/; HttpOnly; SameSite=Lax`)
    return response.writeHead(303, {Location: '/'}).end()
  }
  if (method === 'POST' && path === '/rejoin/who') {
    // The question of [hook]: whose cookie is this? The answer grants no topic, since the application adds them.
    const sub = sessions.get((await json(request)).cookies.session)
    return sub ? response.end(JSON.stringify({sub})) : response.writeHead(401).end()
  }
  if (method === 'GET' && files[path]) {
    response.setHeader('Content-Type', path.endsWith('.js') ? 'text/javascript' : 'text/html')
    return response.end(readFileSync(new URL(files[path], import.meta.url)))
  }
  if (!topic) return response.writeHead(path.startsWith('/ws/') ? 400 : 404).end()
  if (!user) return response.writeHead(401).end()
  if (!mayUse(user, topic)) return response.writeHead(403).end()
  if (isSubscription && (method === 'POST' || method === 'DELETE')) {
    const change = {POST: 'PUT', DELETE: 'DELETE'}[method]
    return response.writeHead(await subscription(change, user, topic, await json(request))).end()
  }
  if (method === 'POST') {
    const message = {from: user, text: await text(request)}
    return response.writeHead(await publish(topic, message, request.headers['idempotency-key'])).end()
  }
  response.writeHead(405).end()
}

createServer((request, response) => {
  answer(request, response).catch(error => response.writeHead(error instanceof SyntaxError ? 400 : 500).end())
}).listen(3000, '127.0.0.1', () => console.log('the application listens on port 3000'))
