// Shows the text of an executed node on the node itself. Nothing of it is saved or queued.
import { app } from '../../scripts/app.js'

const NODES = [
  'MMaDAParallelDecodeText',
  'MMaDAParallelDemoScene',
  'MMaDAParallelLoadEditDataset',
  'MMaDAParallelScoreAlignment'
]
const MIN_WIDTH = 240
const MIN_HEIGHT = 60

app.registerExtension({
  name: 'mmada_parallel.shown_text',
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    const area = document.createElement('textarea')
    area.className = 'comfy-multiline-input'
    area.readOnly = true
    Object.assign(area.style, { width: '100%', height: '100%', minHeight: `${MIN_HEIGHT}px` })
    const options = { serialize: false, getMinHeight: () => MIN_HEIGHT }
    const widget = node.addDOMWidget('shown_text', 'shown_text', area, options)
    widget.serialize = false
    node.setSize([Math.max(node.size[0], MIN_WIDTH), node.computeSize()[1]])

    const before = node.onExecuted
    node.onExecuted = function (output) {
      before?.apply(this, arguments)
      if (output?.text) area.value = output.text.join('\n\n')
    }
  }
})
