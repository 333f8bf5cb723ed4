import {readFileSync} from 'node:fs'
import {createServer} from 'node:http'
import {mint} from './mint.mjs'

const seconds = Number(process.env.TOKEN_SECONDS ?? 600)
const files = {'/': 'page.html', '/client.js': 'client.js', '/cookie.js': 'cookie.js', '/token.js': 'token.js'}

createServer((request, response) => {
  const user = 'u1' // In your backend, the session of the request says which user asks.
  const [path] = request.url.split('?')
  const name = files[path]
  if (request.method === 'POST') console.log('a token for', user)
  if (request.method === 'POST' && path === '/token') {
    response.end(JSON.stringify({token: mint(user, seconds)}))
  } else if (request.method === 'POST' && path === '/cookie') {
    // Over HTTPS add Secure.
    const options = `Path=/; Max-Age=${seconds}; HttpOnly; SameSite=Strict`
    response.setHeader('Set-Cookie', `rejoin_token=${mint(user, seconds)}; ${options}`)
    response.end(JSON.stringify({seconds}))
  } else if (name) {
    response.setHeader('Content-Type', name.endsWith('.js') ? 'text/javascript' : 'text/html')
    response.end(readFileSync(new URL(name, import.meta.url)))
  } else {
    response.writeHead(404).end()
  }
}).listen(Number(process.env.PORT ?? 3000), 'localhost', function () {
  console.log(`http://localhost:${this.address().port}/`)
})
