// Offers on Encode Instruction only the tasks that the family of the connected checkpoint was trained
// on. A task that a workflow has already is kept: the node then says what is wrong with it.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const ENCODE = 'MMaDAParallelEncodeInstruction'
const LOADER = 'MMaDAParallelLoader'
const MOST_NODES = 32 // from the encoder up to the loader

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

/** The loader whose model comes to `node`, through nodes that pass a model on. */
function loaderOf(node) {
  for (let i = 0; node && i < MOST_NODES; i++) {
    if (node.comfyClass === LOADER) return node
    const slot = node.inputs?.findIndex((input) => input.type === 'MMADA_MODEL') ?? -1
    node = slot < 0 ? null : node.getInputNode(slot)
  }
  return null
}

async function offer(node) {
  const task = widgetOf(node, 'task')
  if (!task) return
  task.allTasks ??= task.options.values
  const loader = loaderOf(node)
  const chosen = new URLSearchParams()
  for (const name of ['checkpoint', 'family']) {
    chosen.set(name, loader ? (widgetOf(loader, name)?.value ?? '') : '')
  }
  const answer = loader && (await api.fetchApi(`/mmada_parallel/tasks?${chosen}`))
  const known = answer?.ok ? await answer.json() : null
  const fits = (name) => !known || name === 'auto' || known.includes(name)
  task.options.values = task.allTasks.filter(fits)
}

function offerAll() {
  for (const node of app.graph?.nodes ?? []) if (node.comfyClass === ENCODE) offer(node)
}

/** Calls `then` after `node` had its own `method` called. */
function after(node, method, then) {
  const before = node[method]
  node[method] = function () {
    const result = before?.apply(this, arguments)
    setTimeout(then) // the graph has the new link by then
    return result
  }
}

app.registerExtension({
  name: 'mmada_parallel.tasks',
  nodeCreated(node) {
    if (node.comfyClass === ENCODE) after(node, 'onConnectionsChange', () => offer(node))
    if (node.comfyClass !== LOADER) return
    for (const name of ['checkpoint', 'family']) {
      const widget = widgetOf(node, name)
      if (widget) after(widget, 'callback', offerAll)
    }
  },
  afterConfigureGraph: offerAll
})
