// The numbers of this replica as sparklines: those of /stats, and what it stores and delivers in a second.

import { ask, words } from './api.js'
import { $, make, rate, short, size, span, whileSeen, write } from './dom.js'

const EVERY_MS = 2000
const KEPT = 60
const SVG = 'http://www.w3.org/2000/svg'

const TILES = [
  ['published', 'Published a second', rate],
  ['delivered', 'Delivered a second', rate],
  ['connections', 'Connections', short],
  ['topics', 'Topics', short],
  ['messages', 'Messages retained', short],
  ['bytes', 'Bytes retained', size],
]

/** The sum of a counter over all its labels. */
const sum = (text, name) => [...text.matchAll(new RegExp(`^${name}(?:\\{.*\\})? (\\d+)`, 'gm'))]
  .reduce((total, [, value]) => total + Number(value), 0)

export class Numbers {
  #before

  constructor(section) {
    this.section = section
    this.tiles = TILES.map(([name, title, show]) => {
      const value = make('strong', {}, '–'), line = document.createElementNS(SVG, 'svg')
      line.setAttribute('viewBox', `0 0 ${KEPT - 1} 24`)
      line.setAttribute('preserveAspectRatio', 'none')
      line.setAttribute('aria-hidden', 'true')
      line.append(document.createElementNS(SVG, 'path'))
      $('.tiles', section).append(make('div', { class: 'tile' }, make('span', {}, title), value, line))
      return { name, show, value, path: line.firstChild, kept: [] }
    })
    this.refresh = whileSeen(section, EVERY_MS, () => this.#refresh())
  }

  reset() {
    for (const tile of this.tiles) tile.kept = []
    this.refresh()
  }

  async #refresh() {
    try {
      const stats = await ask('stats'), metrics = await ask('metrics', { as: 'text' })
      const now = {
        at: performance.now(),
        published: sum(metrics, 'rejoin_publishes_total'),
        delivered: sum(metrics, 'rejoin_deliveries_total'),
      }
      const before = this.#before ?? now, seconds = (now.at - before.at) / 1000 || 1
      this.#before = now
      for (const name of ['published', 'delivered']) stats[name] = Math.max(0, now[name] - before[name]) / seconds
      for (const tile of this.tiles) this.#show(tile, stats[tile.name])
      this.#say(`Replica ${stats.replica}, up for ${span(stats.uptime_seconds * 1000)}.`
        + (stats.state_failed ? ' The state file cannot be written: a restart would lose messages.' : ''))
    } catch (problem) {
      this.#say(problem.code ? words(problem, 'see the numbers of the server', 'admin') : String(problem))
    }
  }

  #say(text) { write($('.say', this.section), text) }

  #show({ show, value, path, kept }, number) {
    kept.push(number)
    if (kept.length > KEPT) kept.shift()
    write(value, show(number))
    const low = Math.min(...kept), high = Math.max(...kept), range = high - low || 1
    const points = kept.map((it, at) => `${KEPT - kept.length + at} ${(22 - 20 * (it - low) / range).toFixed(1)}`)
    path.setAttribute('d', 'M' + points.join('L'))
  }
}
