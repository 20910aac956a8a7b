// Text and picture on Parallel Denoise: as they form while it runs, and afterwards at any recorded
// step of each sample. A run can be stopped after the present step, and gone on with. Nothing of it
// is saved with the workflow.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { addElement, ask, eachResult, make, onLive, onNotQueued, onRefused, onResult, passToCanvas, pathOf, runsElsewhere } from './page.js'
import { localised, translated } from './words.js'

const NODE = 'MMaDAParallelDenoise'
const STEP_EVENT = 'mmada_parallel.step' // nodes/host/page.py
const RECORDED_STEPS = 'mmada_parallel_steps' // nodes/live.py
const GO_ON = 'go_on_from' // nodes/denoise.py
const MASKED = ' ░'
const MIN_WIDTH = 400
const MIN_HEIGHT = 220

const STYLE = `
.mmada-viewer { container-type: size; box-sizing: border-box; width: 100%; height: 100%;
  min-height: ${MIN_HEIGHT - 20}px; overflow: hidden; border: 1px solid var(--border-color);
  border-radius: 6px; background: var(--comfy-input-bg); color: var(--input-text);
  font: 13px/1.6 sans-serif; }
.lg-node .mmada-viewer { background: var(--component-node-widget-background, var(--comfy-input-bg)); }
.mmada-viewer .frame { display: flex; flex-direction: column; gap: 8px; box-sizing: border-box;
  height: 100%; padding: 10px; }
.mmada-viewer .stage { display: flex; flex: 1; gap: 10px; min-height: 0; }
.mmada-viewer canvas { flex: 0 0 auto; max-width: 45%; height: 100%; object-fit: contain;
  object-position: top left; }
.mmada-viewer .words { flex: 1; min-width: 0; overflow-y: auto; white-space: pre-line;
  overflow-wrap: anywhere; user-select: text; }
@container (max-aspect-ratio: 1) {
  .mmada-viewer .stage { flex-direction: column; }
  .mmada-viewer canvas { width: 100%; max-width: 100%; height: 58%; object-position: top; }
}
.mmada-viewer .masked { opacity: 0.75; }
.mmada-viewer .new { border-radius: 2px; background: rgb(255 186 40 / 0.34);
  box-shadow: 0 0 0 2px rgb(255 186 40 / 0.34); }
.mmada-viewer .empty { opacity: 0.85; }
.mmada-viewer .steps { display: flex; gap: 10px; align-items: center; }
.mmada-viewer .steps input { flex: 1; min-width: 0; margin: 0; accent-color: rgb(255 186 40); }
.mmada-viewer .steps input:disabled { appearance: none; height: 6px; border-radius: 3px;
  background: rgb(127 127 127 / 0.65); }
.mmada-viewer .steps input:disabled::-webkit-slider-thumb { appearance: none; width: 14px;
  height: 14px; border-radius: 50%; background: rgb(255 186 40); }
.mmada-viewer .steps output { min-width: 9ch; text-align: right; white-space: nowrap;
  font-size: 12px; font-variant-numeric: tabular-nums; }
.mmada-viewer .actions { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center;
  font-size: 12px; }
.mmada-viewer .note { flex: 1 1 170px; min-width: 0; line-height: 1.35; }
.mmada-viewer button, .mmada-viewer select { flex: none; padding: 3px 10px; font: inherit;
  border: 1px solid var(--border-color); border-radius: 5px; color: var(--input-text);
  background: var(--comfy-menu-bg); }
.mmada-viewer button { font-weight: 600; cursor: pointer; }
.mmada-viewer button:hover:enabled { border-color: var(--input-text); }
.mmada-viewer button:disabled { cursor: default; font-weight: 400; }
.mmada-viewer .samples { flex: none; white-space: nowrap; }
.mmada-viewer [hidden] { display: none; }
/* The Vue renderer's own picture of a running node would be the same once more. */
[data-testid^='node-body-']:has(.mmada-viewer) > img,
[data-testid^='node-body-']:has(.mmada-viewer) > img + div { display: none; }
`

const SLIDER_KEYS = ['Arrow', 'Home', 'End', 'Page']

const END_EVENTS = ['execution_success', 'execution_error', 'execution_interrupted']
const running = new Set() // the viewers of the node that runs
let goingOn = null // the widget that says from where

class Viewer {
  live = false
  problem = '' // why the run could not be stopped

  constructor(node) {
    this.node = node
    this.element = make('div', null, { className: 'mmada-viewer' })
    const frame = make('div', this.element, { className: 'frame' })
    this.makeStage(make('div', frame, { className: 'stage' }))
    this.makeSteps(make('div', frame, { className: 'steps', hidden: true }))
    this.makeActions(make('div', frame, { className: 'actions', hidden: true }))
    passToCanvas(this.element, () => this.words.matches(':focus') && this.wordsScroll)
    this.reset()
  }

  makeStage(stage) {
    this.canvas = make('canvas', stage, { hidden: true })
    this.canvas.setAttribute('role', 'img')
    this.canvas.setAttribute('aria-label', localised('The picture at this step'))
    this.words = make('div', stage, { className: 'words', tabIndex: 0 })
    this.words.setAttribute('role', 'region')
    this.words.setAttribute('aria-label', localised('The text at this step'))
    this.words.dataset.captureWheel = 'true' // once it has the focus
  }

  makeSteps(steps) {
    this.steps = steps
    this.range = make('input', steps, { type: 'range', min: 0, step: 1 })
    this.range.setAttribute('aria-label', localised('Recorded step'))
    this.label = make('output', steps)
    this.range.addEventListener('input', () => this.showRecorded(this.range.valueAsNumber))
    this.range.addEventListener('keydown', (event) => {
      const { key, ctrlKey, metaKey } = event
      if (!ctrlKey && !metaKey && SLIDER_KEYS.some((own) => key.startsWith(own))) {
        event.stopPropagation()
      }
    })
  }

  makeActions(actions) {
    this.actions = actions
    this.which = make('span', actions, { className: 'samples' })
    this.picker = make('select', actions)
    this.picker.setAttribute('aria-label', localised('Sample to show'))
    this.picker.addEventListener('change', () => this.choose(this.picker.selectedIndex))
    this.picker.addEventListener('keydown', (event) => event.stopPropagation())
    this.note = make('span', actions, { className: 'note' })
    this.stopButton = make('button', actions, { className: 'stop' })
    this.stopButton.textContent = localised('Stop here')
    this.stopButton.title = localised('Stops after this step and passes the tokens on as they are.')
    this.stopButton.addEventListener('click', () => this.stop())
    this.goOnButton = make('button', actions, { className: 'go-on' })
    this.goOnButton.textContent = localised('Go on from here')
    this.goOnButton.title = localised(
      'Runs the graph again from these tokens and denoises what is still masked.'
    )
    this.goOnButton.addEventListener('click', () => this.goOn())
  }

  get wordsScroll() {
    return this.words.scrollHeight > this.words.clientHeight
  }

  reset() {
    this.recorded = this.sheet = null
    this.problem = ''
    this.choices = []
    this.kept = []
    this.canvas.hidden = this.steps.hidden = true
    this.showActions()
    const note = localised('Text and picture appear here while this node runs.')
    this.words.replaceChildren(make('span', null, { className: 'empty', textContent: note }))
  }

  refuse(sentence) {
    this.reset()
    this.words.replaceChildren(translated(sentence))
  }

  /** What is not named is not shown. */
  showActions({ note = '', which = '', pick = false, stop = false, goOn = false } = {}) {
    this.note.textContent = note
    this.which.textContent = which
    this.which.hidden = !which
    this.picker.hidden = !pick
    this.stopButton.hidden = !stop
    this.goOnButton.hidden = !goOn
    this.actions.hidden = !(note || which || pick || stop || goOn)
  }

  startLive() {
    if (this.live) return
    this.reset()
    this.live = true
    running.add(this)
    this.stopButton.disabled = false
  }

  showStep({ node, step, total, words, sample, batch, item, kept, ended, planned, said }) {
    this.startLive()
    this.executionId = node
    this.steps.hidden = !total // before the first step
    this.range.disabled = true
    this.setSteps(step, total, total, step)
    this.setWords(words)
    const place = { sample, last: batch - 1 }
    const samples = batch > 1 ? [localised('sample {sample} of 0 to {last}', place)] : []
    const items = item ? [localised('item {item}', { item })] : []
    const which = [...items, ...samples].join(', ')
    const stopping = this.stopButton.disabled && localised('Stopping after this step.')
    const note = stopping || this.problem || translated(said ?? '')
    if (!kept) return this.showActions({ which, stop: true, note })
    this.kept[item] = kept
    this.showActions({ which, goOn: true, note: endedNote(ended, planned) })
  }

  async showPreview(blob) {
    this.startLive()
    const bitmap = await createImageBitmap(blob)
    if (this.live) this.draw(bitmap, 0, 0, bitmap.width, bitmap.height)
    bitmap.close()
  }

  async stop() {
    this.stopButton.disabled = true
    this.problem = ''
    this.note.textContent = localised('Stopping after this step.')
    const body = new URLSearchParams({ client_id: api.clientId, node: this.executionId })
    const answer = await ask('/mmada_parallel/stop', { method: 'POST', body })
    if (answer?.ok || !this.live) return
    this.problem = answer ? await answer.text() : localised('no answer from the server.')
    this.note.textContent = this.problem
    this.stopButton.disabled = false
  }

  /** Run the graph once with what the run that ended has left. */
  async goOn() {
    const widget = this.node.widgets.find(({ name }) => name === GO_ON)
    widget.value = Array.from(this.kept, (file) => file ?? '').join('\n')
    widget.afterQueued = () => (widget.value = '')
    goingOn = widget
    await app.queuePrompt(0, 1)
  }

  /** The run is over, whole or not. */
  end() {
    this.live = false
    if (!this.stopButton.hidden) this.showActions({ which: this.which.textContent })
  }

  /** What ran is over: its recorded steps can be chosen. `runs`: one for each item of a list. Samples
   * are counted from 0, as in Score Alignment, Pick Sample and ComfyUI's own nodes for batches. */
  record(runs) {
    this.live = false
    this.stopButton.disabled = false
    this.kept = runs.map(({ kept }) => kept)
    this.choices = runs.flatMap((run, item) =>
      run.samples.map((sample, place) => {
        const names = runs.length > 1 ? [localised('item {item}', { item })] : []
        if (run.samples.length > 1) names.push(localised('sample {sample}', { sample: place }))
        return { ...run, ...sample, name: names.join(', ') }
      })
    )
    this.picker.replaceChildren()
    for (const { name } of this.choices) make('option', this.picker, { textContent: name })
    this.choose(0)
  }

  choose(place) {
    const chosen = this.choices[place]
    const atEnd = !this.recorded || this.range.value === this.range.max
    const frame = atEnd ? Infinity : this.range.valueAsNumber
    this.picker.selectedIndex = place
    this.recorded = chosen
    this.sheet = null
    this.steps.hidden = false
    this.range.disabled = false
    const pick = this.choices.length > 1
    this.showActions({
      pick,
      goOn: this.kept.some(Boolean),
      note: chosen.kept ? endedNote(chosen.total, chosen.planned) : translated(chosen.used ?? '')
    })
    this.showRecorded(Math.min(frame, chosen.steps.length - 1))
    if (chosen.sheet) this.loadSheet(chosen)
    else this.canvas.hidden = true
  }

  loadSheet(recorded) {
    const image = new Image()
    image.onload = () => {
      if (this.recorded !== recorded) return
      this.sheet = image
      this.drawRecorded(this.range.valueAsNumber)
    }
    image.onerror = () => {
      if (this.recorded === recorded) this.canvas.hidden = true // the server was started anew
    }
    image.src = api.apiURL(`/view?${new URLSearchParams(recorded.sheet.file)}`)
  }

  showRecorded(frame) {
    const { steps, total, words, since } = this.recorded
    this.setSteps(frame, steps.length - 1, total, steps[frame])
    this.setWords(
      words.map((word, position) => {
        if (since[position] > frame) return [MASKED, 'masked']
        return [word, since[position] === frame ? 'new' : 'unmasked']
      })
    )
    this.drawRecorded(frame)
  }

  drawRecorded(frame) {
    if (!this.sheet) return
    const { columns, width, height } = this.recorded.sheet
    const left = (frame % columns) * width
    this.draw(this.sheet, left, Math.floor(frame / columns) * height, width, height)
  }

  draw(source, left, top, width, height) {
    Object.assign(this.canvas, { width, height, hidden: false })
    this.canvas.getContext('2d').drawImage(source, left, top, width, height, 0, 0, width, height)
  }

  setSteps(value, max, total, step) {
    Object.assign(this.range, { max, value })
    this.label.textContent = localised('step {step} / {total}', { step, total })
    this.range.setAttribute('aria-valuetext', localised('step {step} of {total}', { step, total }))
  }

  /** `words`: pairs of text, spaces before it included, and state. */
  setWords(words) {
    this.words.replaceChildren()
    for (const [text, state] of words) {
      const word = text.trimStart()
      if (this.words.firstChild) this.words.append(text.slice(0, text.length - word.length))
      if (word) make('span', this.words, { className: state, textContent: word })
    }
  }
}

function endedNote(step, planned) {
  return localised(
    'Stopped after step {step} of {planned}. Load Tokens lists its tokens until ComfyUI closes.',
    { step, planned }
  )
}

const viewers = new WeakMap()

const runsOf = (output) => output?.[RECORDED_STEPS]?.map(([run]) => run) ?? []

function show(viewer, output) {
  const runs = runsOf(output)
  if (runs.length) viewer.record(runs)
}

/** The viewers that show what `nodes` do, the node that runs last: its own, and one on each node of
 * a subgraph that it is in. */
function viewersOf(nodes) {
  const node = nodes.at(-1)
  if (!viewers.has(node)) return []
  for (const outer of nodes.slice(0, -1)) {
    if (!viewers.has(outer)) addElementTo(outer, new Viewer(outer))
    viewers.get(outer).node = node
  }
  return nodes.map((each) => viewers.get(each))
}

function addElementTo(node, viewer) {
  viewers.set(node, viewer)
  addElement(node, 'denoise_viewer', viewer.element, MIN_HEIGHT)
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width, MIN_WIDTH), Math.max(node.size[1], height)])
}

function addViewer(node) {
  const viewer = new Viewer(node)
  addElementTo(node, viewer)
  const goOn = node.widgets.find(({ name }) => name === GO_ON)
  if (goOn) goOn.hidden = true
  node.onDrawBackground = () => {} // where the page would draw the picture once more
  onResult(node, (output) => show(viewer, output))
  const beforeStart = node.onExecutionStart
  node.onExecutionStart = function () {
    beforeStart?.apply(this, arguments)
    viewer.live = false // the run before may have been interrupted
  }
}

app.registerExtension({
  name: 'mmada_parallel.denoise_viewer',
  setup() {
    make('style', document.head, { textContent: STYLE })
    onLive(STEP_EVENT, (nodes, detail) =>
      viewersOf(nodes).forEach((viewer) => viewer.showStep(detail))
    )
    api.addEventListener('b_preview_with_metadata', ({ detail }) => {
      if (runsElsewhere()) return
      viewersOf(pathOf(detail.displayNodeId)).forEach((viewer) => viewer.showPreview(detail.blob))
    })
    api.addEventListener('executed', ({ detail }) => {
      if (!runsOf(detail.output).length || runsElsewhere()) return
      const outer = viewersOf(pathOf(detail.display_node ?? detail.node)).slice(0, -1)
      outer.forEach((viewer) => show(viewer, detail.output))
    })
    onRefused(
      (nodes, sentence) => viewersOf(nodes).forEach((viewer) => viewer.refuse(sentence)),
      (nodes) => viewersOf(nodes).forEach((viewer) => viewer.reset())
    )
    const end = () => {
      running.forEach((viewer) => viewer.end())
      running.clear()
    }
    onNotQueued(() => {
      if (goingOn) goingOn.value = ''
    })
    for (const name of END_EVENTS) api.addEventListener(name, end)
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addViewer(node)
  },
  /** The page has taken a workflow up again, or a past run. */
  onNodeOutputsUpdated(outputs) {
    eachResult(outputs, (node, output) => {
      const viewer = viewers.get(node)
      if (viewer) show(viewer, output)
    })
  }
})
