// What our scripts show, in the language of the page. Translations: locales/*/main.json.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

let translations = {}

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
      translations = (await api.getCustomNodesI18n())[language]?.mmada_parallel ?? {}
    } catch (error) {
      console.warn('MMaDA-Parallel: its words stay English.', error)
    }
  }
})
