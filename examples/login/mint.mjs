import {createHmac} from 'node:crypto'

const secret = process.env.TOKEN_SECRET
if (!secret) throw new Error('TOKEN_SECRET is not set')

export function mint(sub, seconds) {
  const part = value => Buffer.from(JSON.stringify(value)).toString('base64url')
  const claims = {sub, exp: Math.floor(Date.now() / 1000) + seconds}
  const signed = part({alg: 'HS256'}) + '.' + part(claims)
  return signed + '.' + createHmac('sha256', secret).update(signed).digest('base64url')
}
