// The bytes of the browser client beside those of other libraries, each bundled alone, minified and compressed.
//
//     npm ci --prefix web --ignore-scripts
//     npm install --prefix target/sizes --ignore-scripts centrifuge@5.8.0 ably@2.28.0 pusher-js@8.6.0 socket.io-client@4.8.4 partysocket@1.3.0
//     node benches/client/sizes.mjs target/sizes
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from '../../web/node_modules/esbuild/lib/main.js'

const [folder] = process.argv.slice(2)
const rejoin = fileURLToPath(new URL('../../web/', import.meta.url))
const programs = [
  ['rejoin.js', rejoin, "export { connect } from './rejoin.js'", './rejoin-*.js'],
  ['rejoin.js, with the two modules that it loads', rejoin, "export * from './rejoin.js'; export * from './rejoin-shared.js'; export * from './rejoin-presence.js'"],
  ['partysocket', folder, "export { WebSocket } from 'partysocket'"],
  ['socket.io-client', folder, "export { io } from 'socket.io-client'"],
  ['centrifuge', folder, "export { Centrifuge } from 'centrifuge'"],
  ['pusher-js', folder, "import Pusher from 'pusher-js'; export { Pusher }"],
  ['ably', folder, "export { Realtime } from 'ably'"],
]
for (const [name, resolveDir, contents, external] of programs) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir }, bundle: true, minify: true, format: 'esm', platform: 'browser', write: false,
    external: external ? [external] : [],
  })
  console.log(String(gzipSync(outputFiles[0].contents, { level: 9 }).length).padStart(7), name)
}
