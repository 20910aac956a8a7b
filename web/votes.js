// The answers that a ParaRL run waits with, on its node: a click marks a winner, and every vote is
// kept by the server at once, in the run's folder. Nothing of it is saved with the workflow.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { addElement, allNodes, ask, eachResult, make, onResult, passToCanvas, widgetOf } from './page.js'
import { localised } from './words.js'

const NODE = 'MMaDAParallelParaRLFinetune'
const VOTES = '/mmada_parallel/votes' // nodes/host/votes.py
const BY_VOTES = 'your votes' // training/rewards/registry.py
const WAITS = 'mmada_parallel_waits' // nodes/training_run.py
const SIZE = [720, 420]

const STYLE = `
.mmada-votes { box-sizing: border-box; width: 100%; height: 100%; overflow: hidden auto;
  padding: 10px; border: 1px solid var(--border-color); border-radius: 6px;
  background: var(--comfy-input-bg); color: var(--input-text); font: 13px/1.4 sans-serif; }
.mmada-votes .head { display: flex; gap: 10px; align-items: center; margin-bottom: 8px; }
.mmada-votes .said { flex: 1; min-width: 0; }
.lg-node .mmada-votes { background: var(--component-node-widget-background, var(--comfy-input-bg)); }
.mmada-votes section { margin-bottom: 12px; border-top: 1px solid var(--border-color);
  padding-top: 8px; }
.mmada-votes .asked { display: flex; gap: 8px; align-items: center; margin-bottom: 6px; }
.mmada-votes .asked span { flex: 1; min-width: 0; overflow-wrap: anywhere; font-weight: 600; }
.mmada-votes .asked img { flex: none; width: 56px; height: 56px; object-fit: contain; }
.mmada-votes .answers { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); }
.mmada-votes button { font: inherit; color: var(--input-text); cursor: pointer;
  background: var(--comfy-menu-bg); border: 1px solid var(--border-color); border-radius: 5px; }
.mmada-votes button:hover:enabled, .mmada-votes button:focus-visible {
  border-color: var(--input-text); }
.mmada-votes button:disabled { cursor: default; opacity: 0.6; }
.mmada-votes .head button, .mmada-votes .asked button { flex: none; padding: 3px 10px; }
.mmada-votes .head button { font-weight: 600; }
.mmada-votes .answer { position: relative; padding: 6px; text-align: left; }
.mmada-votes .answer img { display: block; width: 100%; margin-bottom: 4px; }
.mmada-votes .answer span { overflow-wrap: anywhere; font-size: 12px; }
.mmada-votes [aria-pressed=true] { box-shadow: inset 0 0 0 3px rgb(255 186 40); }
.mmada-votes .answer[aria-pressed=true]::after { content: '★'; position: absolute; top: 4px;
  right: 8px; font-size: 22px; color: rgb(255 186 40); text-shadow: 0 0 3px #000; }
`

class Sheet {
  sheet = null
  sent = Promise.resolve()

  constructor(node) {
    this.node = node
    this.element = make('div', null, { className: 'mmada-votes', tabIndex: 0 })
    this.element.setAttribute('role', 'region')
    this.element.setAttribute('aria-label', localised('Answers to choose from'))
    this.element.dataset.captureWheel = 'true'
    passToCanvas(this.element, () => this.element.matches(':focus-within'))
  }

  /** Shows what the server has of the run of this name; one look at a time. Of the name that the
   * node has, without one: what comes in at its input is known from its result alone. */
  async load(name = widgetOf(this.node, 'run_name')?.value ?? '') {
    const asked = (this.asked = `${name} ${Date.now()}`)
    const answer = await ask(`${VOTES}?${new URLSearchParams({ run_name: name })}`)
    if (asked !== this.asked || !answer) return
    const sheet = answer.ok ? await answer.json() : null
    if (asked !== this.asked) return
    Object.assign(this, { sheet, name })
    this.show(answer.ok ? '' : await answer.text())
  }

  show(problem = '') {
    this.element.replaceChildren()
    placeWidget(this.node, this, Boolean(this.sheet || problem))
    const head = make('div', this.element, { className: 'head' })
    this.said = make('span', head, { className: 'said', textContent: problem })
    if (!this.sheet) return
    this.goOn = make('button', head, { className: 'queue', textContent: localised('Continue') })
    this.goOn.title = localised('Queues the graph again: the run continues with your votes.')
    this.goOn.addEventListener('click', () => app.queuePrompt(0, 1))
    this.sheet.groups.forEach((group, index) => this.showGroup(group, index + 1))
    this.say()
  }

  showGroup(group, number) {
    const section = make('section', this.element)
    const asked = make('div', section, { className: 'asked' })
    const alt = localised('The input picture')
    if (group.source) make('img', asked, { src: this.url(group.source), alt })
    make('span', asked, { textContent: group.instruction })
    group.tie = make('button', asked, { className: 'tie' })
    group.tie.textContent = localised('None is better')
    group.tie.addEventListener('click', () =>
      this.vote(group, number, group.winners?.length === 0 ? null : [])
    )
    const answers = make('div', section, { className: 'answers' })
    group.buttons = group.answers.map(({ text, picture }, index) => {
      const button = make('button', answers, { className: 'answer' })
      const alt = localised('Picture of answer {number}', { number: index + 1 })
      make('img', button, { src: this.url(picture), alt })
      make('span', button, { textContent: text })
      button.addEventListener('click', () => {
        const others = (group.winners ?? []).filter((winner) => winner !== index + 1)
        const winners = group.winners?.includes(index + 1) ? others : [...others, index + 1]
        this.vote(group, number, winners.length ? winners : null)
      })
      return button
    })
    this.mark(group)
  }

  url(filename) {
    const { subfolder } = this.sheet
    return api.apiURL(`/view?${new URLSearchParams({ type: 'output', subfolder, filename })}`)
  }

  mark(group) {
    const pressed = (button, on) => button.setAttribute('aria-pressed', String(Boolean(on)))
    pressed(group.tie, group.winners?.length === 0)
    group.buttons.forEach((button, index) => pressed(button, group.winners?.includes(index + 1)))
  }

  async vote(group, number, winners) {
    const before = group.winners
    group.winners = winners
    this.mark(group)
    const { run, step } = this.sheet
    const body = JSON.stringify({ run, step, group: number, winners })
    const headers = { 'Content-Type': 'application/json' }
    const send = () => ask(VOTES, { method: 'POST', body, headers })
    this.sent = this.sent.then(send) // in the order of the clicks
    const answer = await this.sent
    if (!answer?.ok) {
      group.winners = before
      this.mark(group)
    }
    const problem = answer ? await answer.text() : localised('no answer from the server.')
    this.say(answer?.ok ? '' : localised('Not saved: {problem}', { problem }))
  }

  say(problem = '') {
    const { groups, step } = this.sheet
    const left = groups.filter((group) => !group.winners).length
    const todo = left
      ? localised('Step {step}: click the best answers of each instruction; {left} of {count} to go.', {
          step: step + 1,
          left,
          count: groups.length
        })
      : localised('Step {step}: you have voted on everything. Your votes are saved.', {
          step: step + 1
        })
    this.said.textContent = problem || todo
    this.goOn.disabled = left > 0
  }
}

const sheets = new WeakMap()

/** The widget is there only while there is something to vote on. */
function placeWidget(node, sheet, wanted) {
  if (!wanted && sheet.widget) {
    node.removeWidget(sheet.widget)
    sheet.widget = null
  } else if (wanted && !sheet.widget) {
    sheet.widget = addElement(node, 'votes', sheet.element, SIZE[1])
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width, SIZE[0]), Math.max(node.size[1], height)])
  }
}

/** By the widget, or by what is connected in its place. */
const byVotes = (node) =>
  node.widgets?.some(({ name, value }) => name?.startsWith('reward') && value === BY_VOTES)

function look(node) {
  if (byVotes(node)) sheets.get(node)?.load()
}

/** A result names the run that waits; one that names none ends what was waited with. */
function lookAgain(node, output) {
  const sheet = sheets.get(node)
  const [name] = output?.[WAITS] ?? []
  if (sheet && (name || sheet.sheet)) sheet.load(name ?? sheet.name)
}

app.registerExtension({
  name: 'mmada_parallel.votes',
  setup() {
    make('style', document.head, { textContent: STYLE })
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    sheets.set(node, new Sheet(node))
    onResult(node, (output) => lookAgain(node, output))
  },
  afterConfigureGraph() {
    for (const node of allNodes()) look(node)
  },
  onNodeOutputsUpdated(outputs) {
    eachResult(outputs, lookAgain)
  }
})
