import {randomUUID} from 'node:crypto'
import {readFileSync} from 'node:fs'
import {createServer} from 'node:http'
import {json, text} from 'node:stream/consumers'

const sessions = new Map() // the user of each session

async function answer(request, response) {
  const {method} = request
  const [path] = request.url.split('?')
  if (method === 'POST' && path === '/login') {
    // Your application checks the password here.
    const session = randomUUID()
    sessions.set(session, new URLSearchParams(await text(request)).get('name'))
    // Over HTTPS add Secure.
    response.setHeader('Set-Cookie', `session=${session}; Path=/; HttpOnly; SameSite=Lax`)
    return response.writeHead(303, {Location: '/'}).end()
  }
  if (method === 'POST' && path === '/who') {
    // The question of Rejoin. The answer says what this user may do.
    const sub = sessions.get((await json(request)).cookies.session)
    const rooms = ['rooms.1']
    if (!sub) return response.writeHead(401).end()
    return response.end(JSON.stringify({sub, subscribe: rooms, publish: rooms, presence: rooms}))
  }
  if (method === 'GET' && path === '/') {
    const session = /(?:^|; )session=([^;]*)/.exec(request.headers.cookie)?.[1]
    const page = sessions.has(session) ? 'chat.html' : 'login.html'
    response.setHeader('Content-Type', 'text/html')
    return response.end(readFileSync(new URL(page, import.meta.url)))
  }
  response.writeHead(404).end()
}

createServer((request, response) => {
  answer(request, response).catch(() => response.writeHead(400).end())
}).listen(3000, 'localhost', () => console.log('http://localhost:3000/'))
