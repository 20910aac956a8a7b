// Fills the widgets of Parallel Denoise with the numbers that its profile stands for, which are those
// of the connected checkpoint's family and of the task; and shows on a widget with a linked input the
// value that comes in, not one that was typed before. The server goes by profile and link alone.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { after, allNodes, familyOf, LOADER, sourceOf, widgetOf } from './page.js'

const DENOISE = 'MMaDAParallelDenoise'
const ENCODE = 'MMaDAParallelEncodeInstruction'
const OWN = 'own values'
const RECOMMENDED = 'recommended'
const PROFILED = [
  'text_steps',
  'image_steps',
  'joint_guidance',
  'text_guidance',
  'image_guidance',
  'reasoning_guidance',
  'block_length',
  'preset'
] // mmp_core/sampler/settings.py

/** Widgets that came later and, in a workflow saved before, are what it had then. */
const BEFORE = {
  MMaDAParallelParaRLFinetune: { joint_guidance: 0 },
  MMaDAParallelDemoScene: { world: 'demo' }
}

/** Of new nodes, as the other new nodes have it. */
const NEW = { MMaDAParallelDemoScene: { world: 'picture-book' } }

const linked = (node, name) => node.inputs?.find((input) => input.name === name)?.link != null

/** The task of the prompt that comes to `node`, as Encode Instruction finds it. */
function taskOf(node, tasks) {
  const encode = sourceOf(node, 'MMADA_PROMPT', ENCODE)
  const chosen = encode && widgetOf(encode, 'task')?.value
  if (chosen && chosen !== 'auto') return chosen
  const auto = !encode || linked(encode, 'image') ? 'edit' : 'generate'
  const wanted = encode && linked(encode, 'second_image') ? 'style' : auto
  return tasks.includes(wanted) ? wanted : tasks[0]
}

async function fill(node) {
  const profile = widgetOf(node, 'profile')
  if (!profile || profile.value === OWN) return
  const family = await familyOf(node)
  const byTask = family?.profiles[profile.value]
  if (!byTask) return
  const values = byTask[taskOf(node, Object.keys(byTask))]
  for (const name of PROFILED) {
    const widget = widgetOf(node, name)
    if (widget && values && profile.value !== OWN) widget.value = values[name]
  }
  node.setDirtyCanvas?.(true)
}

function fillAll() {
  for (const node of allNodes()) if (node.comfyClass === DENOISE) fill(node)
}

/** `fillAll`, once the graph has what has just changed. */
const soon = () => setTimeout(fillAll)

function addProfile(node) {
  const profile = widgetOf(node, 'profile')
  if (!profile) return
  profile.value = RECOMMENDED // of a new node
  after(profile, 'callback', soon)
  for (const name of PROFILED) {
    const widget = widgetOf(node, name)
    if (widget) after(widget, 'callback', () => (profile.value = OWN))
  }
  after(node, 'onConfigure', (saved) => {
    if (saved?.widgets_values?.length > node.widgets.indexOf(profile)) return
    profile.value = OWN // saved before there was the choice
  })
  after(node, 'onConnectionsChange', (type, slot, connected) => {
    const name = node.inputs?.[slot]?.widget?.name
    if (type === LiteGraph.INPUT && connected && PROFILED.includes(name)) profile.value = OWN
    soon()
  })
}

function keepBefore(node, values) {
  after(node, 'onConfigure', (saved) => {
    for (const [name, value] of Object.entries(values)) {
      const place = node.widgets?.findIndex((widget) => widget.name === name) ?? -1
      if (place >= 0 && saved?.widgets_values?.length <= place) node.widgets[place].value = value
    }
  })
}

/** The value that comes in at an input, as far as the node behind it shows one of this kind. */
function valueFrom(source, kind) {
  const fitting = (source?.widgets ?? []).filter(
    ({ value, options }) => typeof value === kind && !options?.values
  )
  const shown = fitting.find(({ name }) => name === 'shown_text') // web/shown_text.js
  if (shown) return shown.value.split('\n')[0]
  return fitting.length === 1 ? fitting[0].value : undefined
}

/** Widgets of `node` whose input is linked show what comes in; unlinked, what was typed. */
function showLinked(node) {
  if (!node.graph) return // it was removed, or made for a look alone
  node.inputs?.forEach((input, slot) => {
    const widget = input.widget && widgetOf(node, input.widget.name)
    const kind = typeof widget?.value
    if (!['string', 'number'].includes(kind) || widget.options?.values) return
    if (input.link == null) {
      if (widget.typed !== undefined) widget.value = widget.typed
      widget.typed = undefined
      return
    }
    const source = node.getInputNode(slot)
    if (!source) return // the input of a subgraph: its node shows the value
    let value = valueFrom(source, kind)
    if (!value && kind === 'string') value = `[from ${source.title}]`
    if (value === undefined || value === widget.value) return
    widget.typed ??= kind === 'string' ? '' : widget.value
    widget.value = value
  })
}

const LETTERS = 12 // of an input's name, in pixels
const LINE = 16
const INDENT = 20
const MOST = 10000 // characters that could be seen

/** Lines of `text` that fit `width`, at most `count`. */
function linesOf(context, text, width, count) {
  const lines = ['']
  for (const word of text.slice(0, MOST).split(/\s+/)) {
    const longer = `${lines.at(-1)} ${word}`.trim()
    if (context.measureText(longer).width <= width) lines[lines.length - 1] = longer
    else if (lines.push(word) > count) break
  }
  return lines.slice(0, count)
}

/** On the canvas the page leaves a hole where the text of a linked input was, and does not say which
 * input it is: write its name and what comes in there. */
function writeLinked(node, context) {
  if (node.flags?.collapsed || app.canvas.low_quality || app.canvas.ds.scale < 0.5) return
  for (const widget of node.widgets ?? []) {
    if (widget.type !== 'customtext' || !linked(node, widget.name)) continue
    const top = widget.y ?? widget.last_y ?? 0
    const count = Math.floor(((widget.computedHeight ?? 0) - LINE) / LINE)
    if (count < 1) continue
    context.save()
    context.font = `${LETTERS}px sans-serif`
    context.textAlign = 'left'
    context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR
    context.fillText(widget.label ?? widget.name, INDENT, top + LINE - 2)
    context.fillStyle = LiteGraph.WIDGET_TEXT_COLOR
    linesOf(context, String(widget.value), node.size[0] - 2 * INDENT, count).forEach((line, i) =>
      context.fillText(line, INDENT, top + (2 + i) * LINE)
    )
    context.restore()
  }
}

const isOurs = (node) => node.comfyClass?.startsWith('MMaDAParallel')

function showAllLinked() {
  for (const node of allNodes()) if (isOurs(node)) showLinked(node)
}

app.registerExtension({
  name: 'mmada_parallel.settings',
  setup() {
    api.addEventListener('executed', () => setTimeout(showAllLinked))
    api.addEventListener('graphChanged', showAllLinked)
  },
  nodeCreated(node) {
    if (!isOurs(node)) return
    after(node, 'onConnectionsChange', () => setTimeout(() => showLinked(node)))
    after(node, 'onDrawForeground', (context) => writeLinked(node, context))
    if (node.comfyClass === DENOISE) addProfile(node)
    for (const [name, value] of Object.entries(NEW[node.comfyClass] ?? {})) {
      const widget = widgetOf(node, name)
      if (widget) widget.value = value
    }
    if (BEFORE[node.comfyClass]) keepBefore(node, BEFORE[node.comfyClass])
    if (node.comfyClass === ENCODE) {
      after(node, 'onConnectionsChange', soon)
      const task = widgetOf(node, 'task')
      if (task) after(task, 'callback', soon)
    }
    if (node.comfyClass !== LOADER) return
    for (const name of ['checkpoint', 'family']) {
      const widget = widgetOf(node, name)
      if (widget) after(widget, 'callback', soon)
    }
  },
  afterConfigureGraph() {
    fillAll()
    showAllLinked()
  }
})
