// The time line: a row for each lane, with a dot for each message at the time at which it was published.
//
// An id is a time. So a message that came late stands where it belongs, and fills the cut in which it was published.

import { timeOf } from './dom.js'
import { SHORT_NAMES, TRANSPORTS } from './lane.js'

const WINDOW_MS = 60_000
const ROW = 26
const TOP = 4
const AXIS = 18
const COLOURS = ['text', 'quiet', 'line', 'accent', 'wait', 'gap', 'cut']

export class Timeline {
  #isStill = matchMedia('(prefers-reduced-motion: reduce)')
  #last = 0

  constructor(canvas, page, lanes) {
    this.page = page
    this.canvas = canvas
    this.lanes = lanes
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { this.colours = undefined })
    const draw = now => {
      requestAnimationFrame(draw)
      // Without motion the line moves on by whole seconds.
      if (now - this.#last < (this.#isStill.matches ? 1000 : 40)) return
      this.#last = now
      this.#draw()
    }
    requestAnimationFrame(draw)
  }

  #draw() {
    const { canvas } = this, scale = devicePixelRatio, width = canvas.clientWidth
    const height = TOP + ROW * this.lanes.length + AXIS
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale)
      canvas.height = Math.round(height * scale)
    }
    const style = getComputedStyle(canvas)
    this.colours ??= Object.fromEntries(COLOURS.map(name => [name, style.getPropertyValue('--' + name)]))
    const pen = canvas.getContext('2d')
    pen.setTransform(scale, 0, 0, scale, 0, 0)
    pen.clearRect(0, 0, width, height)
    pen.font = '11px ' + style.fontFamily
    const isWide = width > 600, names = isWide ? TRANSPORTS : SHORT_NAMES, left = isWide ? 128 : 68
    const now = Date.now() - this.page.skewMs
    // A message of this moment stands a little left of the edge.
    const x = ms => left + (width - left - 8) * (1 - (now - ms) / WINDOW_MS)
    this.#axis(pen, x, now, left, width)
    this.lanes.forEach((lane, row) => {
      const y = TOP + ROW * row
      pen.save()
      pen.fillStyle = this.colours.text
      pen.fillText(names[lane.transport], 0, y + ROW / 2 + 4)
      pen.beginPath()
      pen.rect(left, y, width - left, ROW)
      pen.clip()
      this.#row(pen, lane, x, y, now)
      pen.restore()
    })
  }

  #axis(pen, x, now, left, width) {
    const bottom = TOP + ROW * this.lanes.length, isNarrow = x(10_000) - x(0) < 52
    pen.strokeStyle = this.colours.line
    pen.fillStyle = this.colours.quiet
    pen.lineWidth = 1
    for (let at = Math.ceil((now - WINDOW_MS) / 10_000) * 10_000; at < now; at += 10_000) {
      const px = Math.round(x(at)) + .5
      pen.beginPath()
      pen.moveTo(px, TOP)
      pen.lineTo(px, bottom)
      pen.stroke()
      // A text is 48 pixels wide.
      if (px < left + 24 || px > width - 30 || isNarrow && at % 20_000) continue
      pen.fillText(new Date(at + this.page.skewMs).toLocaleTimeString('en-GB'), px - 24, bottom + 13)
    }
    for (let row = 0; row <= this.lanes.length; row++) {
      pen.beginPath()
      pen.moveTo(left, TOP + ROW * row + .5)
      pen.lineTo(width, TOP + ROW * row + .5)
      pen.stroke()
    }
  }

  #row(pen, lane, x, y, now) {
    const { colours } = this, middle = y + ROW / 2
    const skew = this.page.skewMs
    for (const { from, to } of lane.cuts) this.#hatch(pen, x(from - skew), x(to ? to - skew : now), y)
    for (const { after, next } of lane.account.gaps) {
      const start = x(timeOf(after)), end = Math.max(start + 3, x(timeOf(next)))
      pen.fillStyle = colours.gap
      pen.globalAlpha = .3
      pen.fillRect(start, y + 2, end - start, ROW - 4)
      pen.globalAlpha = 1
      pen.fillRect(start, y + 2, 2, ROW - 4)
      pen.fillRect(end - 2, y + 2, 2, ROW - 4)
      if (end - start > 28) pen.fillText('gap', Math.max(start, x(now - WINDOW_MS)) + 6, middle + 4)
    }
    for (const { ms, at, isLate, ephemeral } of lane.dots) {
      const when = ms ?? at - this.page.skewMs
      if (when < now - WINDOW_MS) continue
      pen.beginPath()
      pen.arc(x(when), middle, isLate || ephemeral ? 3.5 : 3, 0, 7)
      pen.fillStyle = pen.strokeStyle = isLate ? colours.wait : colours.accent
      pen.lineWidth = 1.75
      if (isLate || ephemeral) pen.stroke()
      else pen.fill()
    }
    // The cursor: everything left of it was given.
    if (!lane.cursor) return
    pen.fillStyle = colours.text
    pen.fillRect(x(Math.min(timeOf(lane.cursor), now)) - 1, y + 3, 2, ROW - 6)
  }

  /** A time without a connection. */
  #hatch(pen, start, end, y) {
    pen.save()
    pen.beginPath()
    pen.rect(start, y + 1, Math.max(2, end - start), ROW - 1)
    pen.clip()
    pen.strokeStyle = this.colours.cut
    pen.lineWidth = 1.25
    pen.beginPath()
    for (let at = Math.floor(Math.max(start, -50) / 7) * 7 - ROW; at < end; at += 7) {
      pen.moveTo(at, y + ROW)
      pen.lineTo(at + ROW, y)
    }
    pen.stroke()
    pen.restore()
  }
}
