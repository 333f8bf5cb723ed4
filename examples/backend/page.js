// Both pages have this in common: they receive frames, and ask the application for topics.
const starts = new Map() // the topics of this page; for those that the server does not read yet, where to begin
let connection, turn = Promise.resolve()
export let cursor

const wait = () => new Promise(resume => setTimeout(resume, 1000 + 1000 * Math.random()))

export function receive(frame) {
  const {type, topic} = frame
  if (type === 'message') show(`${frame.data.from}: ${frame.data.text}`)
  if (type === 'gap') show(`messages of ${topic} are gone: load your state again`)
  if (type === 'open') {
    // A new connection reads nothing yet. Each topic goes on where this connection begins.
    connection = frame.connection
    for (const [topic, start] of starts) {
      starts.set(topic, start ?? frame.cursor)
      ask(topic)
    }
  }
  if (frame.replay) {
    // A message of one topic alone, from before the cursor. If the connection breaks now, begin after it.
    if (frame.id && starts.has(topic)) starts.set(topic, frame.id)
    return
  }
  // From here on the one cursor counts for this topic too.
  if (type === 'subscribed' && starts.has(topic)) starts.set(topic, null)
  cursor = (type === 'message' ? frame.id : frame.cursor) ?? cursor
}

// Asks the application to add or remove a topic, one request after the other, until there is an answer. If the
// connection has ended meanwhile, the next `open` asks.
function ask(topic) {
  const asked = connection
  turn = turn.then(async () => {
    while (asked && asked === connection) {
      const method = starts.has(topic) ? 'POST' : 'DELETE'
      const body = JSON.stringify({connection, after: starts.get(topic)})
      const answer = await fetch(`/ws/${topic}/subscription`, {method, body}).catch(() => null)
      if (answer?.status < 500) {
        // After a 404 the connection has ended.
        if (!answer.ok && answer.status !== 404) show(`not possible: ${topic} (${answer.status})`)
        return
      }
      await wait()
    }
  })
}

function show(text) {
  const item = document.createElement('li')
  item.textContent = text
  document.querySelector('ul').append(item)
}

const form = document.querySelector('form')
form.subscribe.onclick = () => {
  const topic = form.topic.value
  if (!starts.has(topic)) starts.set(topic, null)
  ask(topic)
}
form.unsubscribe.onclick = () => {
  starts.delete(form.topic.value)
  ask(form.topic.value)
}
// Another text is another message. The same text is sent again with its key, so it is stored once.
let key = crypto.randomUUID()
form.text.oninput = form.topic.oninput = () => { key = crypto.randomUUID() }
form.onsubmit = async event => {
  event.preventDefault()
  const message = {method: 'POST', headers: {'Idempotency-Key': key}, body: form.text.value}
  const answer = await fetch('/ws/' + form.topic.value, message).catch(() => null)
  if (!answer?.ok) return show('not published')
  form.text.value = ''
  form.text.oninput()
}
