// Folds the advanced widgets of our nodes away on the canvas too, where the page itself does so
// only in its newer renderer. "Show Advanced" in a node's menu brings them back.
import { app } from '../../scripts/app.js'

const WIDGET_HEIGHT = 20
const NO_HEIGHT = -4 // the page adds 4 below every widget

app.registerExtension({
  name: 'mmada_parallel.fold_advanced',
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith('MMaDAParallel')) return
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
    if (!advanced.length) return
    for (const widget of advanced) {
      widget.advanced = true
      // A widget that is not drawn still takes its place unless it says that it needs none.
      widget.computeSize = (width) => [width, node.showAdvanced ? WIDGET_HEIGHT : NO_HEIGHT]
    }
    node.setSize([node.size[0], node.computeSize()[1]])
  }
})
