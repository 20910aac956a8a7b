// Offers on Encode Instruction only the tasks that the family of the connected checkpoint was trained
// on, and sizes made of whole image tokens of that checkpoint. A task that a workflow has already is
// kept: the node then says what is wrong with it.
import { app } from '../../scripts/app.js'
import { after, allNodes, familyOf, LOADER, widgetOf } from './page.js'

const ENCODE = 'MMaDAParallelEncodeInstruction'
const OWN = 'own values'
const SIZES = ['width', 'height', 'text_length'] // what the widget size leaves to its node

function hide(widget, hidden) {
  widget.hidden = hidden
  widget.options.hidden = hidden
}

/** Show the sides only where they are used; then they hold real numbers. */
function showSides(node, family) {
  const size = widgetOf(node, 'size')
  if (!size) return
  const hidden = size.value !== OWN
  let changed = false
  for (const name of SIZES) {
    const widget = widgetOf(node, name)
    if (!widget) continue
    changed ||= Boolean(widget.hidden) !== hidden
    hide(widget, hidden)
    if (name === 'text_length') continue
    if (family?.unit) Object.assign(widget.options, { step: 10 * family.unit, step2: family.unit })
    if (!hidden && !widget.value && family?.side && size.chosen) widget.value = family.side
  }
  size.chosen = false
  if (changed) node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
}

async function offer(node) {
  const task = widgetOf(node, 'task')
  if (!task || !node.graph) return
  task.allTasks ??= task.options.values
  const family = await familyOf(node)
  const fits = (name) => !family || name === 'auto' || family.tasks.includes(name)
  task.options.values = task.allTasks.filter(fits)
  showSides(node, family)
}

function offerAll() {
  for (const node of allNodes()) if (node.comfyClass === ENCODE) offer(node)
}

function addTo(node) {
  after(node, 'onConnectionsChange', () => setTimeout(() => offer(node)))
  const size = widgetOf(node, 'size')
  if (!size) return
  size.value = 'automatic' // of a new node
  after(size, 'callback', () => {
    size.chosen = true
    offer(node)
  })
  after(node, 'onConfigure', (saved) => {
    if (saved?.widgets_values?.length > node.widgets.indexOf(size)) return
    const sides = SIZES.map((name) => widgetOf(node, name)?.value)
    size.value = sides.some(Boolean) ? OWN : 'automatic' // saved before there was the choice
  })
  showSides(node)
}

app.registerExtension({
  name: 'mmada_parallel.tasks',
  nodeCreated(node) {
    if (node.comfyClass === ENCODE) addTo(node)
    if (node.comfyClass !== LOADER) return
    for (const name of ['checkpoint', 'family']) {
      const widget = widgetOf(node, name)
      if (widget) after(widget, 'callback', () => setTimeout(offerAll))
    }
  },
  afterConfigureGraph: offerAll
})
