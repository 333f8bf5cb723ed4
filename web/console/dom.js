// Elements of the page, and how numbers and times are written in it.

/** The first element that this selector finds. */
export const $ = (selector, within = document) => within.querySelector(selector)

/** An element with attributes and children. An attribute whose value is a function handles the event of its name. */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') made.addEventListener(name, value)
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? '' : value)
  }
  made.append(...children)
  return made
}

/** Writes a text only if it differs: a screen reader would read it aloud again. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text
}

const SHORT = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 })
const WHOLE = new Intl.NumberFormat('en')

export const short = number => number < 10_000 ? WHOLE.format(Math.round(number)) : SHORT.format(number)
export const rate = number => number >= 10 || number === 0 ? short(number) : number.toFixed(number < .1 ? 2 : 1)

export function size(bytes) {
  for (const unit of ['B', 'KiB', 'MiB']) {
    if (bytes < 1024) return `${bytes < 10 && unit !== 'B' ? bytes.toFixed(1) : Math.round(bytes)} ${unit}`
    bytes /= 1024
  }
  return `${bytes.toFixed(1)} GiB`
}

/** A span of time in its largest unit. */
export function span(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`
  for (const [unit, long] of [['s', 60], ['min', 60], ['h', 48]]) {
    ms /= unit === 's' ? 1000 : 60
    if (ms < long) return `${Math.floor(ms)} ${unit}`
  }
  return `${Math.floor(ms / 24)} d`
}

// An id is the microsecond in which its message was published.
export const timeOf = id => Number(id) / 1000
export const clock = ms =>
  new Date(ms).toLocaleTimeString('en-GB') + '.' + String(Math.floor(ms % 1000)).padStart(3, '0')

/** The payload of a message as one text. */
export function payload({ data, encoding, content_type }) {
  const bytes = data instanceof Uint8Array ? data.length : encoding === 'base64' ? atob(data).length : undefined
  if (bytes !== undefined) return `${size(bytes)} of ${content_type ?? 'application/octet-stream'}`
  return typeof data === 'string' ? data : JSON.stringify(data)
}

/** Runs a task now and then while its section is on the screen. Two runs never overlap: a run that is asked for meanwhile
 * comes right after. */
export function whileSeen(section, everyMs, task) {
  let isSeen = false, isRunning = false, isAsked = false, last = -Infinity
  const run = async (isForced = false) => {
    const isDue = performance.now() - last >= everyMs - 50
    if (isForced) isAsked = isRunning
    if (isRunning || document.hidden || !(isForced || isSeen && isDue)) return
    isRunning = true
    last = performance.now()
    try { await task() } finally { isRunning = false }
    if (isAsked) run(true)
  }
  new IntersectionObserver(([entry]) => {
    isSeen = entry.isIntersecting
    run()
  }).observe(section)
  setInterval(run, everyMs)
  return () => run(true)
}

/** Replaces the rows of a table. The focus stays in the row with the same key. */
export function refill(body, rows) {
  const key = body.contains(document.activeElement) && document.activeElement.closest('tr').dataset.key
  body.replaceChildren(...rows)
  if (key) rows.find(row => row.dataset.key === key)?.querySelector('button').focus({ preventScroll: true })
}
