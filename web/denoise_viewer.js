// Text and picture on Parallel Denoise: as they form while it runs, and afterwards at any recorded
// step. Nothing of it is saved or queued.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { eachResult, nodeOf, onLive, onResult, passToCanvas } from './page.js'

const NODE = 'MMaDAParallelDenoise'
const STEP_EVENT = 'mmada_parallel.step' // nodes/host/page.py
const RECORDED_STEPS = 'mmada_parallel_steps' // nodes/live.py
const MASKED = ' ░'
const MIN_WIDTH = 400
const MIN_HEIGHT = 220

const STYLE = `
.mmada-viewer { container-type: size; box-sizing: border-box; width: 100%; height: 100%;
  min-height: ${MIN_HEIGHT - 20}px; overflow: hidden; border: 1px solid var(--border-color);
  border-radius: 6px; background: var(--comfy-input-bg); color: var(--input-text);
  font: 13px/1.6 sans-serif; }
.mmada-viewer .frame { display: flex; flex-direction: column; gap: 8px; box-sizing: border-box;
  height: 100%; padding: 10px; }
.mmada-viewer .stage { display: flex; flex: 1; gap: 10px; min-height: 0; }
.mmada-viewer canvas { flex: 0 0 auto; width: 45%; height: 100%; object-fit: contain;
  object-position: top left; }
.mmada-viewer .words { flex: 1; min-width: 0; overflow-y: auto; white-space: pre-line;
  overflow-wrap: anywhere; user-select: text; }
@container (max-aspect-ratio: 1) {
  .mmada-viewer .stage { flex-direction: column; }
  .mmada-viewer canvas { width: 100%; height: 58%; object-position: top; }
}
.mmada-viewer .masked { opacity: 0.55; }
.mmada-viewer .new { border-radius: 2px; background: rgb(255 186 40 / 0.42);
  box-shadow: 0 0 0 2px rgb(255 186 40 / 0.42); }
.mmada-viewer .empty { opacity: 0.7; }
.mmada-viewer .steps { display: flex; gap: 10px; align-items: center; }
.mmada-viewer .steps input { flex: 1; min-width: 0; margin: 0; accent-color: rgb(255 186 40); }
.mmada-viewer .steps output { min-width: 9ch; text-align: right; white-space: nowrap;
  font-size: 12px; font-variant-numeric: tabular-nums; }
.mmada-viewer [hidden] { display: none; }
/* The Vue renderer's own picture of a running node would be the same once more. */
[data-testid^='node-body-']:has(.mmada-viewer) > img,
[data-testid^='node-body-']:has(.mmada-viewer) > img + div { display: none; }
`

function make(tag, parent, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties)
  parent?.append(element)
  return element
}

const SLIDER_KEYS = ['Arrow', 'Home', 'End', 'Page']

class Viewer {
  live = false

  constructor() {
    this.element = make('div', null, { className: 'mmada-viewer' })
    const frame = make('div', this.element, { className: 'frame' })
    const stage = make('div', frame, { className: 'stage' })
    this.canvas = make('canvas', stage, { hidden: true })
    this.canvas.setAttribute('role', 'img')
    this.canvas.setAttribute('aria-label', 'The picture at this step')
    this.words = make('div', stage, { className: 'words', tabIndex: 0 })
    this.words.setAttribute('role', 'region')
    this.words.setAttribute('aria-label', 'The text at this step')
    this.words.dataset.captureWheel = 'true' // once it has the focus
    this.steps = make('div', frame, { className: 'steps', hidden: true })
    this.range = make('input', this.steps, { type: 'range', min: 0, step: 1 })
    this.range.setAttribute('aria-label', 'Recorded step')
    this.label = make('output', this.steps)
    this.range.addEventListener('input', () => this.showRecorded(this.range.valueAsNumber))
    this.range.addEventListener('keydown', (event) => {
      const { key, ctrlKey, metaKey } = event
      if (!ctrlKey && !metaKey && SLIDER_KEYS.some((own) => key.startsWith(own))) {
        event.stopPropagation()
      }
    })
    passToCanvas(this.element, () => this.words.matches(':focus') && this.wordsScroll)
    this.reset()
  }

  get wordsScroll() {
    return this.words.scrollHeight > this.words.clientHeight
  }

  reset() {
    this.recorded = this.sheet = null
    this.canvas.hidden = this.steps.hidden = true
    const note = 'While this node runs, its text and picture form here.'
    this.words.replaceChildren(make('span', null, { className: 'empty', textContent: note }))
  }

  startLive() {
    if (this.live) return
    this.reset()
    this.live = true
  }

  showStep({ step, total, words }) {
    this.startLive()
    this.steps.hidden = false
    this.range.disabled = true
    this.setSteps(step, total, total, step)
    this.setWords(words)
  }

  async showPreview(blob) {
    this.startLive()
    const bitmap = await createImageBitmap(blob)
    if (this.live) this.draw(bitmap, 0, 0, bitmap.width, bitmap.height)
    bitmap.close()
  }

  /** What ran is over: its recorded steps can be chosen. */
  record(recorded) {
    this.live = false
    this.recorded = recorded
    this.sheet = null
    this.steps.hidden = false
    this.range.disabled = false
    this.showRecorded(recorded.steps.length - 1)
    if (recorded.sheet) this.loadSheet(recorded)
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
    this.label.textContent = `step ${step} / ${total}`
    this.range.setAttribute('aria-valuetext', `step ${step} of ${total}`)
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

const viewers = new WeakMap()
let created = 0 // the page takes widgets of one name at one node id for the same element

function show(viewer, output) {
  const recorded = output?.[RECORDED_STEPS]?.[0]?.[0]
  if (recorded) viewer.record(recorded)
}

function addViewer(node) {
  const viewer = new Viewer()
  viewers.set(node, viewer)
  const widget = node.addDOMWidget(`viewer ${++created}`, 'denoise_viewer', viewer.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT
  })
  widget.serialize = false
  node.onDrawBackground = () => {} // where the page would draw the picture once more
  onResult(node, (output) => show(viewer, output))
  const beforeStart = node.onExecutionStart
  node.onExecutionStart = function () {
    beforeStart?.apply(this, arguments)
    viewer.live = false // the run before may have been interrupted
  }
  node.setSize([Math.max(node.size[0], MIN_WIDTH), node.computeSize()[1]])
}

app.registerExtension({
  name: 'mmada_parallel.denoise_viewer',
  setup() {
    make('style', document.head, { textContent: STYLE })
    onLive(STEP_EVENT, (node, detail) => viewers.get(node)?.showStep(detail))
    api.addEventListener('b_preview_with_metadata', ({ detail }) =>
      viewers.get(nodeOf(detail.displayNodeId))?.showPreview(detail.blob)
    )
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
