// Shows the text of a node on the node itself, as it comes and as its result. Nothing of it is saved
// or queued.
import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'
import { eachResult, onLiveText, onResult } from './page.js'

const NODES = [
  'MMaDAParallelDecodeText',
  'MMaDAParallelDemoScene',
  'MMaDAParallelLoadEditDataset',
  'MMaDAParallelParaRLFinetune',
  'MMaDAParallelScoreAlignment',
  'MMaDAParallelSFTFinetune'
]
const WIDGET = 'shown_text'
const MIN_WIDTH = 240

const textOf = (node) => node.widgets?.find((widget) => widget.name === WIDGET)

function show(node, text) {
  const widget = textOf(node)
  if (!widget) return false
  widget.value = text
}

function showResult(node, output) {
  if (output?.text) show(node, [output.text].flat().join('\n\n'))
}

/** Live text as it was before it was made safe for a page that takes it for HTML. */
function plain(html) {
  const lines = html.replaceAll('<br>', '\n')
  return new DOMParser().parseFromString(lines, 'text/html').body.textContent.replaceAll('\u00a0', ' ')
}

app.registerExtension({
  name: 'mmada_parallel.shown_text',
  setup() {
    onLiveText((node, text) => show(node, plain(text)))
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    const { widget } = ComfyWidgets.STRING(node, WIDGET, ['STRING', { multiline: true }], app)
    widget.serialize = widget.options.serialize = false
    widget.options.read_only = true
    if (widget.element) widget.element.readOnly = true
    onResult(node, (output) => showResult(node, output))
    node.setSize([Math.max(node.size[0], MIN_WIDTH), node.computeSize()[1]])
  },
  onNodeOutputsUpdated(outputs) {
    eachResult(outputs, showResult)
  }
})
