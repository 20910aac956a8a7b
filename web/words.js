// What our scripts show, what the server says, and choices, in the language of the page.
// Translations: locales/*/main.json.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

let translations = {}
let choices = {}
let patterns = [] // of what the server says: a regular expression with its values, and the translation

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

const VALUE = '((?:(?![.!?] )[^\n])+?[.!?]?)' // of one sentence
const TEXT = '([^\n]+?)'

/** The sentence `english`, in which {0}, {1}, … stand for values, in three ways: as it begins a
 * text, first with values of one sentence at most, and as the whole of one. What is not a whole
 * sentence must be a whole line. */
function patternOf([english, sentence]) {
  const parts = english.split(/\{\d+\}/).map(escaped)
  const last = parts.at(-1) ? VALUE : TEXT
  const values = parts.map((_, i) => (i === parts.length - 2 ? last : VALUE))
  const strict = parts.reduce((all, part, i) => all + values[i - 1] + part)
  const loose = parts[0] ? parts.join(TEXT) : strict
  const end = /[.?]$/.test(english) ? '(?=\\s|$)' : '(?=\\n|$)'
  return {
    starts: [new RegExp(`^${strict}${end}`), new RegExp(`^${loose}${end}`)],
    whole: new RegExp(`^${strict}$`),
    sentence
  }
}

const filled = (sentence, values) =>
  sentence.replace(/\{(\d+)\}/g, (_, place) => listed(values[place]))

/** A sentence, or each part of `a, b, c` that is a sentence's own, such as "3 of 16 image tokens",
 * translated. */
function listed(value) {
  const each = (/[.?]$/.test(value) ? [value] : value.split(', ')).map((part) => {
    for (const { whole, sentence } of patterns) {
      const match = part.match(whole)
      if (match) return filled(sentence, match.slice(1))
    }
    return part
  })
  return each.join(', ')
}

/** How `rest` begins: what is to be replaced, and by what. */
function beginningOf(rest) {
  const kept = rest.match(/^\s+/) ?? rest.match(/^(?:(?![.!?] )[^\n])+?: (?=its? )/) // an item of a dataset
  if (kept) return [kept[0], kept[0]]
  for (const way of [0, 1]) {
    for (const { starts, sentence } of patterns) {
      const match = rest.match(starts[way])
      if (match) return [match[0], filled(sentence, match.slice(1))]
    }
  }
  const [other] = rest.match(/^[^\n]*?[.!?](?=\s)/) ?? rest.match(/^[^\n]+/)
  return [other, other]
}

/** What the server says, `text`, in the page's language as far as its sentences are translated. */
export function translated(text) {
  let done = ''
  for (let rest = patterns.length ? text : ''; rest; ) {
    const [from, to] = beginningOf(rest)
    done += to
    rest = rest.slice(from.length)
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
      choices = words.mmada_parallel_choices ?? {}
      const said = Object.entries(words.mmada_parallel_says ?? {})
      const part = (english) => !/[.:?]$/.test(english) // of a list
      const loose = (english) => english.startsWith('{')
      said.sort(([a], [b]) => part(a) - part(b) || loose(a) - loose(b) || b.length - a.length)
      patterns = said.map(patternOf)
    } catch (error) {
      console.warn('MMaDA-Parallel: its words stay English.', error)
    }
  },
  /** Choices are shown translated, with the name that workflows and sentences have them by. */
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith('MMaDAParallel') || !Object.keys(choices).length) return
    for (const { type, options } of node.widgets ?? []) {
      if (type !== 'combo') continue
      options.getOptionLabel = (value) =>
        choices[value] ? `${choices[value]} (${value})` : (value ?? '')
    }
  }
})
