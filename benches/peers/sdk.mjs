// Prints each event of a subscription of Centrifugo's client library, as one line of JSON.
import { createRequire } from 'node:module'

const [modules, url, channel] = process.argv.slice(2)
const require = createRequire(modules + '/')
const { Centrifuge } = require('centrifuge')

const client = new Centrifuge(url, { websocket: globalThis.WebSocket ?? require('ws') })
const subscription = client.newSubscription(channel)
const print = event => console.log(JSON.stringify(event))
subscription.on('publication', ({ data }) => print({ type: 'message', data }))
subscription.on('subscribed', ({ wasRecovering, recovered }) => print({ type: 'subscribed', wasRecovering, recovered }))
subscription.on('unsubscribed', ({ code, reason }) => print({ type: 'unsubscribed', code, reason }))
subscription.subscribe()
client.connect()
