// Shows the text of a node on the node itself, as it comes and as its result. Nothing of it is saved
// or queued.
import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'
import { eachResult, onLive, onResult } from './page.js'

const NODES = [
  'MMaDAParallelConvertCheckpoint',
  'MMaDAParallelDecodeText',
  'MMaDAParallelDemoScene',
  'MMaDAParallelLoadEditDataset',
  'MMaDAParallelParaRLFinetune',
  'MMaDAParallelScoreAlignment',
  'MMaDAParallelSFTFinetune'
]
const NOTING = [
  'MMaDAParallelEncodeInstruction',
  'MMaDAParallelExtendCanvas',
  'MMaDAParallelRemask',
  'MMaDAParallelSetTokens'
] // have a text only while they have something to say
const TEXT_EVENT = 'mmada_parallel.text' // nodes/host/page.py
const WIDGET = 'shown_text'
const MIN_WIDTH = 240

const textOf = (node) => node.widgets?.find((widget) => widget.name === WIDGET)

function show(node, text) {
  const widget = textOf(node)
  if (widget) widget.value = text
}

function addText(node) {
  const look = { multiline: true, placeholder: ' ' }
  const { widget } = ComfyWidgets.STRING(node, WIDGET, ['STRING', look], app)
  widget.label = 'text'
  widget.serialize = widget.options.serialize = false
  widget.options.read_only = true
  if (widget.element) widget.element.readOnly = true
}

function showResult(node, output) {
  if (NOTING.includes(node.comfyClass)) {
    if (output?.text && !textOf(node)) {
      addText(node)
      const [width, height] = node.computeSize()
      node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
    } else if (!output?.text && textOf(node)) node.removeWidget(textOf(node))
  }
  if (output?.text) show(node, [output.text].flat().join('\n\n'))
}

app.registerExtension({
  name: 'mmada_parallel.shown_text',
  setup() {
    onLive(TEXT_EVENT, (node, { text }) => show(node, text))
  },
  nodeCreated(node) {
    if (![...NODES, ...NOTING].includes(node.comfyClass)) return
    onResult(node, (output) => showResult(node, output))
    if (NOTING.includes(node.comfyClass)) return
    addText(node)
    node.setSize([Math.max(node.size[0], MIN_WIDTH), node.computeSize()[1]])
  },
  onNodeOutputsUpdated(outputs) {
    eachResult(outputs, showResult)
  }
})
