// What our scripts show, and what the server says, in the language of the page. Translations:
// locales/*/main.json.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

let translations = {}
let patterns = [] // of what the server says: a regular expression with its values, and the translation

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

/** The sentence `english`, in which {0}, {1}, … stand for values: as it begins a text, and as the
 * whole of one. What is not a whole sentence must be a whole line. */
function patternOf([english, sentence]) {
  const [first, ...others] = english.split(/\{\d+\}/).map(escaped)
  const [begun, ...rest] = others // a value at the beginning is of one sentence
  const value = first ? '([^\n]+?)' : '((?:(?![.!?] )[^\n])+?)'
  const source = others.length ? [first + value + begun, ...rest].join('([^\n]+?)') : first
  const end = english.endsWith('.') ? '(?=\\s|$)' : '(?=\\n|$)'
  return { start: new RegExp(`^${source}${end}`), whole: new RegExp(`^${source}$`), sentence }
}

const filled = (sentence, values) =>
  sentence.replace(/\{(\d+)\}/g, (_, place) => listed(values[place]))

/** Each part of `a, b, c` that is a sentence's own, such as "3 of 16 image tokens", translated. */
function listed(value) {
  const each = value.split(', ').map((part) => {
    for (const { whole, sentence } of patterns) {
      const match = part.match(whole)
      if (match) return filled(sentence, match.slice(1))
    }
    return part
  })
  return each.join(', ')
}

/** What the server says, `text`, in the page's language as far as its sentences are translated. */
export function translated(text) {
  let done = ''
  for (let rest = patterns.length ? text : ''; rest; ) {
    let match = rest.match(/^\s+/)
    const found = match ? null : patterns.find(({ start }) => (match = rest.match(start)))
    match ??= rest.match(/^[^\n]*?[.!?](?=\s)/) ?? rest.match(/^[^\n]+/)
    done += found ? filled(found.sentence, match.slice(1)) : match[0]
    rest = rest.slice(match[0].length)
  }
  return done || text
}

/** `sentence` in the page's language, with `values` in place of their {names}. */
export function localised(sentence, values = {}) {
  const text = translations[sentence] ?? sentence
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name])
}

app.registerExtension({
  name: 'mmada_parallel.words',
  async init() {
    const language = app.extensionManager.setting.get('Comfy.Locale')
    try {
      const words = (await api.getCustomNodesI18n())[language] ?? {}
      translations = words.mmada_parallel ?? {}
      const said = Object.entries(words.mmada_parallel_says ?? {})
      const part = (english) => !/[.:]$/.test(english) // of a list
      const loose = (english) => english.startsWith('{')
      said.sort(([a], [b]) => part(a) - part(b) || loose(a) - loose(b) || b.length - a.length)
      patterns = said.map(patternOf)
    } catch (error) {
      console.warn('MMaDA-Parallel: its words stay English.', error)
    }
  }
})
