// What both viewers of this pack need of the page, by its public interfaces alone: nodes by their
// ids, results as they come and come back, live text, refusals, and a canvas that can be moved through them.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const rootGraph = () => app.rootGraph ?? app.graph

/** The node of an execution id, which inside subgraphs is a path such as "1:2". */
export function nodeOf(executionId) {
  const path = String(executionId).split(':')
  let graph = rootGraph()
  for (const id of path.slice(0, -1)) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(path.at(-1))
}

/** Calls `show(output)` with each result of `node`. */
export function onResult(node, show) {
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    show(output)
  }
}

/** Calls `show(node, output)` for results that the page takes up again: another tab's workflow, an
 * undone change, an entry of the history. To be called by `onNodeOutputsUpdated`. */
export function eachResult(outputs, show) {
  for (const [locator, output] of Object.entries(outputs)) {
    const [id, subgraph] = locator.split(':').reverse()
    const graph = subgraph ? rootGraph().subgraphs.get(subgraph) : rootGraph()
    const node = graph?.getNodeById(id)
    if (node && output) show(node, output)
  }
}

/** Calls `show(node, detail)` with each of the server's events of this name. The server is told that
 * this page takes them; to others it sends a plain text for the page's own preview. */
export function onLive(event, show) {
  let announced = null
  const tell = () => {
    if (!api.clientId || api.clientId === announced) return
    announced = api.clientId
    const body = new URLSearchParams({ client_id: announced, event })
    api.fetchApi('/mmada_parallel/listen', { method: 'POST', body })
  }
  api.addEventListener('status', tell)
  api.addEventListener('reconnected', () => {
    announced = null
    tell()
  })
  api.addEventListener(event, ({ detail }) => {
    const node = nodeOf(detail.node)
    if (node) show(node, detail)
  })
  tell()
}

const REFUSALS = ['InputError', 'CheckpointError', 'OutOfMemory'] // mmp_core

/** Calls `show(node, sentence)` when one of our nodes refuses its input, as the graph is queued or as
 * it runs, and `clear(node)` when it is queued the next time. */
export function onRefused(show, clear) {
  let refused = []
  const refuse = (node, sentence) => {
    refused.push(node)
    show(node, sentence)
  }
  const forget = () => {
    refused.forEach(clear)
    refused = []
  }
  api.addEventListener('execution_error', ({ detail }) => {
    const node = nodeOf(detail.node_id)
    if (!node || !REFUSALS.includes(detail.exception_type)) return
    refuse(node, detail.exception_message.split('\nThis error means you ran out')[0].trim())
  })
  const refuseAll = (problems) => {
    for (const [id, { errors }] of Object.entries(problems ?? {})) {
      const [problem] = errors.filter(({ type }) => type === 'custom_validation_failed')
      const node = nodeOf(id)
      if (!problem || !node?.comfyClass?.startsWith('MMaDAParallel')) continue
      refuse(node, problem.details.replace(/^\w+ - /, '')) // after the name of the input
    }
  }
  const queue = api.queuePrompt
  api.queuePrompt = async function () {
    forget()
    try {
      const answer = await queue.apply(this, arguments)
      refuseAll(answer?.node_errors) // what does not depend on these nodes runs
      return answer
    } catch (error) {
      refuseAll(error?.response?.node_errors)
      throw error
    }
  }
}

/** Keeps `widget` as wide as its node: the page's panel of parameters sets the width of a widget that
 * it does not know to that of the panel. */
export function asWideAsItsNode(widget) {
  Object.defineProperty(widget, 'width', { get: () => undefined, set() {} })
}

/** Lets the canvas zoom and pan under `element`, as under the page's own text boxes: by the wheel,
 * unless `scrolls(event)`, and by dragging with the middle button. */
export function passToCanvas(element, scrolls = () => false) {
  const pass = (type, wanted, process) =>
    element.addEventListener(type, (event) => {
      if (!wanted(event)) return
      event.preventDefault()
      event.stopPropagation()
      app.canvas[process](event)
    })
  pass('wheel', (event) => event.ctrlKey || !scrolls(event), 'processMouseWheel')
  pass('pointerdown', (event) => event.button === 1, 'processMouseDown')
  pass('pointermove', (event) => (event.buttons & 4) === 4, 'processMouseMove')
  pass('pointerup', (event) => event.button === 1, 'processMouseUp')
}

export const LOADER = 'MMaDAParallelLoader'
const MOST_NODES = 32 // between two nodes that depend on each other

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

/** All nodes of the workflow, those in subgraphs, too. */
export function allNodes() {
  const graphs = [rootGraph(), ...(rootGraph()?.subgraphs?.values() ?? [])]
  return graphs.flatMap((graph) => graph?.nodes ?? [])
}

/** The node of this class from which `node` gets `type`, through nodes that pass it on. */
export function sourceOf(node, type, comfyClass) {
  for (let i = 0; node?.graph && i < MOST_NODES; i++) {
    if (node.comfyClass === comfyClass) return node
    const slot = node.inputs?.findIndex((input) => input.type === type) ?? -1
    node = slot < 0 ? null : node.getInputNode(slot)
  }
  return null
}

const families = new Map() // by the widgets of the loader

/** What the server knows of the family of the checkpoint that `node` is connected to, or null. */
export async function familyOf(node) {
  const loader = sourceOf(node, 'MMADA_MODEL', LOADER)
  if (!loader) return null
  const chosen = new URLSearchParams()
  for (const name of ['checkpoint', 'family']) {
    chosen.set(name, widgetOf(loader, name)?.value ?? '')
  }
  const key = chosen.toString()
  if (!families.has(key)) {
    const asked = api.fetchApi(`/mmada_parallel/family?${chosen}`)
    families.set(key, asked.then((answer) => (answer.ok ? answer.json() : null)))
    setTimeout(() => families.delete(key), 10000) // files may change
  }
  return families.get(key)
}

/** Calls `then` after `node` had its own `method` called. */
export function after(node, method, then) {
  const before = node[method]
  node[method] = function () {
    const result = before?.apply(this, arguments)
    then(...arguments)
    return result
  }
}
