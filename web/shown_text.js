// Shows the text of a node on the node itself, as it comes and as its result. Nothing of it is saved
// or queued.
import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'
import { eachResult, onLive, onResult } from './page.js'

const NODES = [
  'MMaDAParallelDecodeText',
  'MMaDAParallelDemoScene',
  'MMaDAParallelLoadEditDataset',
  'MMaDAParallelParaRLFinetune',
  'MMaDAParallelScoreAlignment',
  'MMaDAParallelSFTFinetune'
]
const TEXT_EVENT = 'mmada_parallel.text' // nodes/host/page.py
const WIDGET = 'shown_text'
const MIN_WIDTH = 240

const textOf = (node) => node.widgets?.find((widget) => widget.name === WIDGET)

function show(node, text) {
  const widget = textOf(node)
  if (widget) widget.value = text
}

function showResult(node, output) {
  if (output?.text) show(node, [output.text].flat().join('\n\n'))
}

app.registerExtension({
  name: 'mmada_parallel.shown_text',
  setup() {
    onLive(TEXT_EVENT, (node, { text }) => show(node, text))
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    const look = { multiline: true, placeholder: ' ' }
    const { widget } = ComfyWidgets.STRING(node, WIDGET, ['STRING', look], app)
    widget.label = 'text'
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
