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

/** Calls `show(node, sentence)` when one of our nodes refuses its input, and `clear(node)` when the
 * next run begins. */
export function onRefused(show, clear) {
  let refused = null
  api.addEventListener('execution_error', ({ detail }) => {
    const node = nodeOf(detail.node_id)
    if (!node || !REFUSALS.includes(detail.exception_type)) return
    refused = node
    show(node, detail.exception_message.trim())
  })
  api.addEventListener('execution_start', () => {
    if (refused) clear(refused)
    refused = null
  })
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
