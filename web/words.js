// What our scripts show, what the server says, and choices, in the language of the page.
// Translations: locales/*/main.json.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

let translations = {}
let choices = {}
let patterns = [] // of what the server says

const MOST = 4000 // characters of a text that are read; what comes after them stays English
const LONGEST = 1500 // of a sentence of the server: its refusals have 1000 characters at most
const DEEPEST = 4 // sentences in a value of a sentence in a value of …

/** The sentence `english`, in which {0}, {1}, … stand for values, as it begins a text: first with
 * values of one sentence at most, then with any. What is not a whole sentence must be a whole line. */
function patternOf([english, sentence]) {
  const parts = english.split(/\{\d+\}/)
  return { parts, sentence, ends: /[.?]$/.test(english) ? /\s/ : /\n/ }
}

/** The values of a pattern that `text` begins with, or is the `whole` of, and after them where it
 * ends; null where it does not. Of several ways that with the shortest values, as of a regular
 * expression, but in a time that grows with the length of `text` alone. */
function valuesIn(text, { parts, ends }, { loose = false, whole = false }) {
  if (!text.startsWith(parts[0])) return null
  const tried = parts.map(() => new Set()) // where a value may end
  const follow = (place, start) => {
    if (!text.startsWith(parts[place], start)) return null
    const first = start + parts[place].length
    if (place === parts.length - 1) {
      const ended = first === text.length || (!whole && ends.test(text[first]))
      return ended ? [first] : null
    }
    const any = loose || (place === parts.length - 2 && !parts.at(-1))
    for (let at = first; at < text.length && text[at] !== '\n'; ) {
      const sentenceEnds = !any && text[at + 1] === ' ' && '.!?'.includes(text[at])
      if (sentenceEnds && at === first) return null
      if (tried[place].has(++at)) return null
      const rest = follow(place + 1, at)
      if (rest) return [text.slice(first, at), ...rest]
      if (sentenceEnds) return null
      tried[place].add(at)
    }
    return null
  }
  return follow(0, 0)
}

const filled = (sentence, values, depth = 1) =>
  sentence.replace(/\{(\d+)\}/g, (_, place) => listed(values[place], depth))

/** A sentence, or each part of `a, b, c` that is a sentence's own, such as "3 of 16 image tokens",
 * translated. */
function listed(value, depth) {
  if (depth > DEEPEST) return value
  const each = (/[.?]$/.test(value) ? [value] : value.split(', ')).map((part) => {
    for (const pattern of patterns) {
      const values = valuesIn(part, pattern, { whole: true })
      if (values) return filled(pattern.sentence, values, depth + 1)
    }
    return part
  })
  return each.join(', ')
}

/** How `rest` begins: what is to be replaced, and by what. */
function beginningOf(rest) {
  const kept = rest.match(/^\s+/) ?? rest.match(/^(?:(?![.!?] )[^\n])+?: (?=its? )/) // an item of a dataset
  if (kept) return [kept[0], kept[0]]
  for (const loose of [false, true]) {
    for (const pattern of patterns) {
      const values = loose && !pattern.parts[0] ? null : valuesIn(rest, pattern, { loose })
      if (values) return [rest.slice(0, values.at(-1)), filled(pattern.sentence, values)]
    }
  }
  const [other] = rest.match(/^[^\n]*?[.!?](?=\s)/) ?? rest.match(/^[^\n]+/)
  return [other, other]
}

/** What the server says, `text`, in the page's language as far as its sentences are translated. */
export function translated(text) {
  let done = ''
  for (let rest = patterns.length ? text.slice(0, MOST) : ''; rest; ) {
    const [from, to] = beginningOf(rest.slice(0, LONGEST))
    done += to
    rest = rest.slice(from.length)
  }
  return done ? done + text.slice(MOST) : text
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
