// What both viewers of this pack need of the page, by its public interfaces alone: nodes by their
// ids, results as they come and come back, live text, refusals, and a canvas that can be moved through them.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

const rootGraph = () => app.rootGraph ?? app.graph

/** The nodes on the way to that of an execution id, which inside subgraphs is a path such as "1:2":
 * the subgraphs' own from the outermost in, then the node itself; none if it is not there. */
export function pathOf(executionId) {
  const nodes = []
  let graph = rootGraph()
  for (const id of String(executionId).split(':')) {
    const node = graph?.getNodeById(id)
    if (!node) return []
    nodes.push(node)
    graph = node.subgraph
  }
  return nodes
}

const MOST_PROMPTS = 64
const queuedFrom = new Map() // the workflow that was open when a prompt was queued, by its id
let runningPrompt = null

const openWorkflow = () => app.extensionManager?.workflow?.activeWorkflow ?? app

/** Whether the prompt that runs, or another, was queued from another workflow of this page than the
 * one that is open, in which its node ids are those of other nodes. */
export function runsElsewhere(prompt = runningPrompt) {
  const from = queuedFrom.get(prompt)
  return Boolean(from) && from !== openWorkflow()
}

function remember(prompt, workflow) {
  queuedFrom.set(prompt, workflow)
  if (queuedFrom.size > MOST_PROMPTS) queuedFrom.delete(queuedFrom.keys().next().value)
}

api.addEventListener('execution_start', ({ detail }) => (runningPrompt = detail.prompt_id))

/** The server's answer; null where none comes, as while it is started anew. */
export const ask = (path, options) => api.fetchApi(path, options).catch(() => null)

let created = 0 // the page takes widgets of one name at one node id for the same element

/** A new element, at the end of `parent` if there is one. */
export function make(tag, parent, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties)
  parent?.append(element)
  return element
}

/** Shows `element` on `node`, at least `height` high, as a widget that is neither saved nor queued. */
export function addElement(node, type, element, height) {
  const options = { serialize: false, hideInPanel: true, hideOnZoom: false }
  const widget = node.addDOMWidget(`${type} ${++created}`, type, element, {
    ...options,
    getMinHeight: () => height
  })
  widget.serialize = false
  // The page's side panel sets its own width on widgets that it draws, and the node would take it.
  Object.defineProperty(widget, 'width', { get: () => undefined, set() {} })
  return widget
}

/** Calls `show(output)` with each result of `node`. */
export function onResult(node, show) {
  const before = node.onExecuted
  node.onExecuted = function (output) {
    before?.apply(this, arguments)
    if (!runsElsewhere()) show(output)
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

/** Calls `show(nodes, detail)` with each of the server's events of this name, `nodes` as of `pathOf`.
 * The server is told that this page takes them; to others it sends a plain text for the page's own
 * preview. */
export function onLive(event, show) {
  let announced = null
  const tell = () => {
    if (!api.clientId || api.clientId === announced) return
    announced = api.clientId
    const body = new URLSearchParams({ client_id: announced, event })
    ask('/mmada_parallel/listen', { method: 'POST', body })
  }
  api.addEventListener('status', tell)
  api.addEventListener('reconnected', () => {
    announced = null
    tell()
  })
  api.addEventListener(event, ({ detail }) => {
    const nodes = runsElsewhere() ? [] : pathOf(detail.node)
    if (nodes.length) show(nodes, detail)
  })
  tell()
}

const REFUSALS = ['InputError', 'CheckpointError', 'OutOfMemory'] // mmp_core

const onReopened = []
const onFailed = []

/** Calls `then` when a prompt was not queued: it was refused, or the server did not answer. */
export const onNotQueued = (then) => onFailed.push(then)

app.registerExtension({
  name: 'mmada_parallel.page',
  /** Its nodes are new, and it becomes the open workflow when this has returned. */
  afterConfigureGraph() {
    setTimeout(() => onReopened.forEach((show) => show()))
  }
})

/** Calls `show(nodes, sentence, again)` when one of our nodes, the last of `nodes`, refuses its input,
 * as the graph is queued or as it runs, and `again` when its workflow is opened again, which may have
 * been behind another. Calls `clear(nodes)` when the workflow is queued the next time. */
export function onRefused(show, clear) {
  const refused = new WeakMap() // by workflow
  const refusals = () => refused.get(openWorkflow()) ?? []
  const tell = (refusal) => {
    const nodes = pathOf(refusal.id)
    if (!nodes.length) return
    show(nodes, refusal.sentence, refusal.told)
    refusal.told = true
  }
  const refuse = (workflow, id, sentence) => {
    const refusal = { id, sentence, told: false }
    refused.set(workflow, [...(refused.get(workflow) ?? []), refusal])
    if (workflow === openWorkflow()) tell(refusal)
  }
  const forget = () => {
    for (const { id } of refusals()) {
      const nodes = pathOf(id)
      if (nodes.length) clear(nodes)
    }
    refused.delete(openWorkflow())
  }
  onReopened.push(() => refusals().forEach(tell))
  api.addEventListener('execution_error', ({ detail }) => {
    if (!REFUSALS.includes(detail.exception_type)) return
    const sentence = detail.exception_message.split('\nThis error means you ran out')[0].trim()
    refuse(queuedFrom.get(detail.prompt_id) ?? openWorkflow(), detail.node_id, sentence)
  })
  const refuseAll = (workflow, problems) => {
    for (const [id, { class_type, errors }] of Object.entries(problems ?? {})) {
      const [problem] = errors.filter(({ type }) => type === 'custom_validation_failed')
      if (!problem || !class_type?.startsWith('MMaDAParallel')) continue
      refuse(workflow, id, problem.details.replace(/^\w+ - /, '')) // after the name of the input
    }
  }
  const queue = api.queuePrompt
  api.queuePrompt = async function () {
    forget()
    const workflow = openWorkflow()
    try {
      const answer = await queue.apply(this, arguments)
      if (answer?.prompt_id) remember(answer.prompt_id, workflow)
      refuseAll(workflow, answer?.node_errors) // what does not depend on these nodes runs
      return answer
    } catch (error) {
      refuseAll(workflow, error?.response?.node_errors)
      onFailed.forEach((then) => then())
      throw error
    }
  }
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
    const asked = ask(`/mmada_parallel/family?${chosen}`)
    families.set(key, asked.then((answer) => (answer?.ok ? answer.json() : null)))
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
