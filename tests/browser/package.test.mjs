// The npm package of the browser client: its size, its types, and that it can be installed.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { transform } from '../../web/node_modules/esbuild/lib/main.js'

const web = fileURLToPath(new URL('../../web/', import.meta.url))
const tsc = join(web, 'node_modules/typescript/bin/tsc')

async function run(program, args, cwd) {
  const env = { ...process.env, HOME: cwd, npm_config_cache: join(cwd, 'cache'), npm_config_update_notifier: 'false' }
  const { stdout } = await promisify(execFile)(program, args, { cwd, env }).catch(error => {
    throw new Error(error.stdout + error.stderr)
  })
  return stdout
}

async function inFolder(use) {
  const folder = await mkdtemp(join(tmpdir(), 'rejoin-'))
  try { await use(folder) } finally { await rm(folder, { recursive: true }) }
}

describe('the package', { concurrency: true }, () => {
  const MODULES = ['rejoin.js', 'rejoin-shared.js', 'rejoin-presence.js']
  for (const [names, most] of [[['rejoin.js'], 5000], [MODULES, 7000], [['react.js'], 600], [['vue.js'], 600]]) {
    test(`${names} are at most ${most} bytes`, async () => {
      // Without constants that no code reads, as a bundler leaves them out.
      let size = 0
      for (const name of names) {
        const { code } = await transform(await readFile(web + name, 'utf8'), { minify: true, treeShaking: true, format: 'esm' })
        size += gzipSync(code, { level: 9 }).length
      }
      assert.ok(size <= most, `${size} bytes`)
    })
  }

  test('the types hold, and the declarations are those of the source', () => inFolder(async folder => {
    await run(process.execPath, [tsc, '-p', web, '--noEmit', 'false', '--declaration', '--emitDeclarationOnly', '--outDir', folder], folder)
    for (const name of ['rejoin.d.ts', 'rejoin-shared.d.ts', 'rejoin-presence.d.ts', 'react.d.ts', 'vue.d.ts']) {
      assert.equal(await readFile(web + name, 'utf8'), await readFile(join(folder, name), 'utf8'), 'run npm run types')
    }
  }))

  test('the package can be installed, imported and type-checked', () => inFolder(async folder => {
    const packed = JSON.parse(await run('npm', ['pack', web, '--json', '--pack-destination', folder], folder))
    const files = packed[0].files.map(file => file.path).sort()
    assert.deepEqual(files, ['LICENSE', 'README.md', 'package.json', 'react.d.ts', 'react.js', 'rejoin-presence.d.ts', 'rejoin-presence.js',
      'rejoin-shared.d.ts', 'rejoin-shared.js', 'rejoin.d.ts', 'rejoin.js', 'vue.d.ts', 'vue.js'])
    await writeFile(join(folder, 'package.json'), '{"private": true, "type": "module"}')
    await run('npm', ['install', '--offline', '--no-audit', '--no-fund', join(folder, packed[0].filename)], folder)
    const user = `
      import { connect, type Message } from 'rejoin'
      const rejoin = connect('http://127.0.0.1:1/', { token: async () => 'a' })
      const orders = rejoin.subscribe<{ total: number }>('orders.*', { last: 10 })
      const stop: () => void = orders.on('message', ({ topic, id, data }) => console.log(topic, id, data.total.toFixed()))
      orders.on('gap', ({ reason }) => console.log(reason))
      async function all() { for await (const { data } of orders) console.log(data.total) }
      const subs: Promise<string[]> = rejoin.presence('room.1').then(({ members }) => [...members.keys()])
      const id: Promise<string | undefined> = rejoin.publish('orders.1', { total: 1 }, { event: 'paid' })
      // @ts-expect-error There is no such event.
      orders.on('massage', () => {})
      rejoin.close()`
    await writeFile(join(folder, 'user.ts'), user)
    await run(process.execPath, [tsc, '--strict', '--noEmit', '--skipLibCheck', '--target', 'es2022', '--module', 'nodenext', '--lib', 'es2022,dom', 'user.ts'], folder)
    const script = "import { connect } from 'rejoin'; const it = connect('http://127.0.0.1:1/'); it.close(); console.log(it.state)"
    assert.equal(await run(process.execPath, ['--input-type=module', '-e', script], folder), 'closed\n')
  }))
})
