// Shows the text of a node on the node itself, as it comes and as its result. Nothing of it is saved
// or queued.
import { app } from '../../scripts/app.js'
import { ComfyWidgets } from '../../scripts/widgets.js'
import { eachResult, onLive, onRefused, onResult } from './page.js'
import { translated } from './words.js'

const NODES = [
  'MMaDAParallelConvertCheckpoint',
  'MMaDAParallelDecodeText',
  'MMaDAParallelDemoScene',
  'MMaDAParallelLoadEditDataset',
  'MMaDAParallelParaRLFinetune',
  'MMaDAParallelPreferenceFinetune',
  'MMaDAParallelScoreAlignment',
  'MMaDAParallelSFTFinetune'
]
const NOTING = [
  'MMaDAParallelCollectDataset',
  'MMaDAParallelEncodeInstruction',
  'MMaDAParallelExtendCanvas',
  'MMaDAParallelLoader',
  'MMaDAParallelPickSample',
  'MMaDAParallelPutBack',
  'MMaDAParallelRemask',
  'MMaDAParallelSetTokens',
  'MMaDAParallelVary'
] // have a text only while they have something to say
const DENOISE = 'MMaDAParallelDenoise' // web/denoise_viewer.js
const TEXT_EVENT = 'mmada_parallel.text' // nodes/host/page.py
const OF_THE_MODEL = 'MMaDAParallelDecodeText' // its result is not said by the server
const WIDGET = 'shown_text'
const MIN_WIDTH = 240

const textOf = (node) => node.widgets?.find((widget) => widget.name === WIDGET)

function show(node, text) {
  const widget = textOf(node)
  if (widget) widget.value = text
}

function addText(node) {
  if (textOf(node)) return
  const look = { multiline: true, placeholder: ' ' }
  const { widget } = ComfyWidgets.STRING(node, WIDGET, ['STRING', look], app)
  widget.label = 'text'
  widget.serialize = widget.options.serialize = false
  widget.options.read_only = true
  if (widget.element) widget.element.readOnly = true
}

function addTextBelow(node) {
  addText(node)
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
}

function removeText(node) {
  if (!NODES.includes(node.comfyClass) && textOf(node)) node.removeWidget(textOf(node))
}

/** What a node refuses, in one sentence: once in a toast, and on the node unless it has a viewer. */
function showRefusal(node, sentence, again) {
  const toast = { severity: 'error', summary: node.title, detail: translated(sentence), life: 15000 }
  if (!again) app.extensionManager.toast.add(toast)
  if (node.comfyClass === DENOISE) return
  addTextBelow(node)
  show(node, translated(sentence))
}

function showResult(node, output) {
  if (NOTING.includes(node.comfyClass)) {
    if (output?.text) addTextBelow(node)
    else removeText(node)
  }
  if (!output?.text) return
  const text = [output.text].flat().join('\n\n')
  show(node, node.comfyClass === OF_THE_MODEL ? text : translated(text))
}

app.registerExtension({
  name: 'mmada_parallel.shown_text',
  setup() {
    onLive(TEXT_EVENT, (nodes, { text }) => show(nodes.at(-1), translated(text)))
    onRefused(
      (nodes, sentence, again) => showRefusal(nodes.at(-1), sentence, again),
      (nodes) => removeText(nodes.at(-1))
    )
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
