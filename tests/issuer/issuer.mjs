// An OpenID provider for a test. A line on its input changes its key.
import {createServer} from 'node:http'
import {createInterface} from 'node:readline'
import {generateKeyPairSync} from 'node:crypto'
import Provider from 'oidc-provider'

const server = createServer((request, response) => handle(request, response))
await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
const issuer = `http://127.0.0.1:${server.address().port}`
let handle
let number = 0

function begin() {
  number += 1
  const key = generateKeyPairSync('ec', {namedCurve: 'P-256'}).privateKey.export({format: 'jwk'})
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'u1', client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
      id_token_signed_response_alg: 'ES256',
    }],
    jwks: {keys: [{...key, kid: `key-${number}`, alg: 'ES256', use: 'sig'}]},
    ttl: {ClientCredentials: 600},
    features: {
      clientCredentials: {enabled: true},
      devInteractions: {enabled: false},
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:push',
        getResourceServerInfo: () => ({
          scope: '', audience: 'push', accessTokenFormat: 'jwt', jwt: {sign: {alg: 'ES256'}},
        }),
      },
    },
  })
  handle = provider.callback()
}

begin()
console.log(issuer)
for await (const _ of createInterface({input: process.stdin})) {
  begin()
  console.log(`key ${number}`)
}
