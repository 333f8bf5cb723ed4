import {connect} from 'http://localhost:7070/rejoin.js'

async function token() {
  const answer = await fetch('/token', {method: 'POST'})
  if (!answer.ok) throw new Error(answer.status)
  return (await answer.json()).token
}

function show({data}) {
  const item = document.createElement('li')
  item.textContent = data
  document.querySelector('#by-client').append(item)
}

const news = connect('http://localhost:7070/', {token}).subscribe('users.u1.news')
news.on('message', show)
news.on('gap', () => console.log('gap, so load again'))
