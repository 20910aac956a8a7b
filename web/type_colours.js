// One colour for each type that the nodes of this pack pass on, for sockets and wires in both
// renderers. A palette that names one of them keeps its own. And names of inputs that can be read in
// our help pages, where the page writes blue on dark blue.
import { app } from '../../scripts/app.js'

const COLOURS = {
  MMADA_MODEL: '#7C5CCB',
  MMADA_PROMPT: '#B8531A',
  MMADA_TOKENS: '#CB3876',
  MMADA_TRAJECTORY: '#0F7D8A',
  MMADA_DATASET: '#647C10'
}

const PICTURES = new URL('./docs/pictures/', import.meta.url).pathname // only our help shows them
const HELP = `.node-help-content:has(img[src^="${PICTURES}"]) :not(pre) > code {
  color: inherit; background: rgb(127 127 127 / 0.18); }`

/** The page forgets them with each palette that it loads. */
function paint() {
  for (const colours of [app.canvas.default_connection_color_byType, LGraphCanvas.link_type_colors]) {
    for (const [type, colour] of Object.entries(COLOURS)) colours[type] ||= colour
  }
}

app.registerExtension({
  name: 'mmada_parallel.type_colours',
  setup() {
    const style = document.createElement('style')
    const lines = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`)
    style.textContent = `:root { ${lines.join(' ')} } ${HELP}`
    document.head.append(style)
    paint()
    const themed = new MutationObserver(() => {
      paint()
      app.canvas.setDirty(true, true)
    })
    for (const element of [document.documentElement, document.body]) {
      themed.observe(element, { attributes: true, attributeFilter: ['style', 'class'] })
    }
  }
})
